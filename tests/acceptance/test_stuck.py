"""What hangs for ever, a download or a kernel, keeps no worker from stopping, and no task from going back."""

import signal

import pytest
import redis

from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess
from tests.acceptance.site import TEXTS, Site

pytestmark = pytest.mark.slow  # it waits for the bounds to pass

ARGS = ("-P", "legit_async", "-l", "INFO", "--", "worker.soft_shutdown_timeout=0.1")
STOP_TIMEOUT_S = 90
"""Far more than all time limits on the way out together, and far less than the plugin hangs."""

PLUGIN = """
import sys
import time

from legit_embedding.testing.model import FakeAdapter, FakeModel


def hang(stage):
    print("hangs in", stage, file=sys.stderr, flush=True)
    time.sleep(3600)


class StuckModel(FakeModel):
    def forward(self, batch):
        hang("forward")


class StuckAdapter(FakeAdapter):
    def __init__(self):
        super().__init__()
        self.make = StuckModel

    def load(self, spec, limits):
        if spec.key == "load":
            hang("load")
        return super().load(spec, limits)
"""


@pytest.fixture
def server():
    with EmbeddedServer() as own:
        yield own


@pytest.fixture
def environment(server, tmp_path):
    """Two models of a plugin: the one that hangs in `load`, and the one that hangs in `forward`."""
    packages = tmp_path / "packages"
    about = packages / "stuck-1.0.dist-info"
    about.mkdir(parents=True)
    (packages / "stuck.py").write_text(PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stuck\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[legit_embedding.models]\nstuck = stuck:StuckAdapter\n")
    models = tmp_path / "models.toml"
    models.write_text('[models.load]\nadapter = "stuck"\n[models.forward]\nadapter = "stuck"\n')
    return {
        "LEGIT_BROKER_URL": server.url(),
        "LEGIT_MODELS": str(models),
        "LEGIT_WARM_UP": "false",
        "PYTHONPATH": str(packages),
    }


def test_a_worker_that_is_stopped_during_a_stuck_preload_ends(environment):
    worker = WorkerProcess("legit_embedding", args=ARGS, env={**environment, "LEGIT_PRELOAD": "load"})
    worker.launch()
    try:
        worker.wait_for_log("hangs in load", 60)
        worker.signal(signal.SIGTERM)
        assert worker.wait(STOP_TIMEOUT_S) == 0
    finally:
        worker.kill()
    assert "left behind" in worker.log


@pytest.mark.parametrize("stage", ["load", "forward"])
def test_a_worker_whose_task_is_stuck_ends_when_it_is_stopped_cold_and_gives_the_task_back(server, environment, stage):
    """TERM waits for running tasks, as it does in any worker; QUIT after it does not."""
    Site(server.url()).send(TEXTS, {"texts": ["a"], "model": stage, "reply_to": "replies"})
    with WorkerProcess("legit_embedding", args=ARGS, env=environment) as worker:
        worker.wait_for_log(f"hangs in {stage}", 60)
        worker.signal(signal.SIGTERM)
        worker.wait_for_log("Warm shutdown", 60)
        worker.signal(signal.SIGQUIT)
        assert worker.wait(STOP_TIMEOUT_S) is not None
    with redis.Redis.from_url(server.url()) as client:
        assert not client.exists("unacked")
        assert client.llen("text_embedding") == 1
        assert not client.exists("replies")

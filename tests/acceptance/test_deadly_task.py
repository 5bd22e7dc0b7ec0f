"""A task that kills its worker each time it is delivered is given up, told of, and kept; the next worker lives on."""

import redis

from legit_embedding.testing.worker import WorkerProcess
from tests.acceptance.site import TEXTS, Site

MOST = 2
PATIENCE_S = 60

PLUGIN = """
import os
import signal

from legit_embedding.testing.model import FakeAdapter, FakeModel


class DeadlyModel(FakeModel):
    def prepare(self, payloads, options):
        if "deadly" in payloads:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(payloads, options)


class DeadlyAdapter(FakeAdapter):
    def __init__(self):
        super().__init__()
        self.make = DeadlyModel
"""


def environment(server, folder):
    about = folder / "deadly-1.0.dist-info"
    about.mkdir()
    (folder / "deadly.py").write_text(PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: deadly\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[legit_embedding.models]\ndeadly = deadly:DeadlyAdapter\n")
    models = folder / "models.toml"
    models.write_text('[defaults]\ntext = "deadly"\n\n[models.deadly]\nadapter = "deadly"\n')
    return {
        "LEGIT_BROKER_URL": server.url(),
        "LEGIT_MODELS": str(models),
        "LEGIT_LEASE_S": "5",
        "LEGIT_MAX_DELIVERIES": str(MOST),
        "PYTHONPATH": str(folder),
    }


def worker_with(env):
    return WorkerProcess("legit_embedding", args=["-P", "legit_async", "-l", "INFO"], env=env)


def test_a_task_that_kills_each_of_its_workers_is_given_up_and_kept(server, tmp_path):
    site, env = Site(server.url()), environment(server, tmp_path)
    sent = site.send(TEXTS, {"texts": ["deadly"], "reply_to": "site:deadly"})
    for _ in range(MOST):
        with worker_with(env) as worker:
            assert worker.wait(PATIENCE_S) == -9, worker.log
    with worker_with(env) as worker:
        (entry,) = site.entries("site:deadly", 1, PATIENCE_S)
        assert (entry.task_id, entry.status, entry.error_type) == (sent.id, "error", "given_up"), worker.log
        assert entry.attempt == MOST + 1
        (vector,) = site.embed(TEXTS, {"texts": ["harmless"]})
        assert vector.status == "ok"
        assert worker.stop() == 0
    with redis.Redis.from_url(server.url(), decode_responses=True) as client:
        ((_, kept),) = client.xrange("embeddings:dead")
        assert (kept["task_id"], kept["attempt"]) == (sent.id, str(MOST + 1))
        assert not client.exists("unacked")
        assert client.llen("text_embedding") == 0

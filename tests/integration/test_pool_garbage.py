"""Finished tasks leave nothing that only the garbage collector could free: a real worker whose collector is off.

What waits for the collector is not freed at once, message and all, and to find it costs as much as running the task.
"""

import time
from pathlib import Path

import pytest
import redis
from celery import Celery

from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess

HERE = Path(__file__).parent
WARM_UP, TASKS = 20, 400
PATIENCE_S = 60


def until(condition, process):
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.running, process.log[-4000:]
        assert time.monotonic() < deadline_s
        process.wait(0.05)


@pytest.fixture(scope="module", params=["legit", "kombu"])
def worker(request):
    """Its client, and a function that runs so many tasks of a kind and tells what they left."""
    with EmbeddedServer() as server, redis.Redis.from_url(server.url(), decode_responses=True) as client:
        app = Celery(broker=server.url(), set_as_current=False)
        args = ["-P", "legit_async", "-c", "16", "-l", "WARNING", "--without-gossip", "--without-mingle"]
        env = {"GARBAGE_APP_URL": server.url(), "GARBAGE_APP_TRANSPORT": request.param}
        with WorkerProcess("garbage_app", args=args, env=env, cwd=HERE) as process:

            def left_by(name, count):
                with app.producer_or_acquire() as producer:
                    for _ in range(count):
                        app.send_task(f"garbage_app.{name}", args=["x" * 100], producer=producer)
                    until(lambda: client.llen("celery") + client.hlen("unacked") == 0, process)
                    app.send_task("garbage_app.collect", args=["found"], producer=producer)
                number = client.blpop("found", PATIENCE_S)[1]
                return int(number), client.blpop("found", PATIENCE_S)[1]

            yield left_by
        app.close()


@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("async_null", 0),
        ("plain_null", 0),
        ("wait", 0),
        ("start_children", 0),
        ("async_fail", 0),
        ("plain_fail", 0),
        ("async_limited", 0),
        ("async_retry", 10),  # Celery's exception for it holds itself
    ],
)
def test_finished_tasks_leave_no_cycles(worker, name, each):
    worker(name, WARM_UP)  # what is made once
    found, kinds = worker(name, TASKS)
    assert found < TASKS * (each + 0.5), kinds

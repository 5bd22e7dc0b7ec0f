"""Workers that are started as a team starts them: with gossip, mingle and heartbeats, which other tests leave out."""

from pathlib import Path

import pytest
from celery import Celery

from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess
from tests.waiting import close_client, until

HERE = Path(__file__).parent
ONE, TWO = "one@neighbours", "two@neighbours"
OURS = "legit_async"
PATIENCE_S = 30


@pytest.fixture(scope="module")
def server():
    with EmbeddedServer() as own:
        yield own


@pytest.fixture
def client(server):
    """A producer of `two_lines_app`."""
    app = Celery("client", broker=server.url(), backend=server.url(), set_as_current=False)
    try:
        yield app
    finally:
        close_client(app)


def worker_of(url, node, pool):
    """A worker that is not started yet; Celery tells of comings and goings at the level DEBUG."""
    return WorkerProcess(
        "two_lines_app",
        args=["-P", pool, "-n", node, "-l", "DEBUG"],
        env={"POOL_APP_URL": url, "POOL_APP_NOTES": url},
        cwd=HERE,
    )


def wait_until_heard(client, node):
    """A worker says that it is ready a moment before remote control reaches it, and mingle asks but once."""
    until(lambda: client.control.ping([node], timeout=1), f"an answer from {node}")


def run_both_kinds(client):
    """The nodes on which an async and a plain task have run."""
    results = [client.send_task(f"two_lines_app.{name}", [0.05]) for name in ("rest", "plain_rest")]
    return {result.get(timeout=PATIENCE_S) for result in results}


@pytest.mark.parametrize(("first", "second"), [(OURS, OURS), (OURS, "prefork"), ("prefork", OURS), ("threads", OURS)])
def test_neighbours_find_each_other_share_the_work_and_stop_warm(server, client, first, second):
    url = server.url()
    with worker_of(url, ONE, first) as one:
        assert "mingle: all alone" in one.log
        wait_until_heard(client, ONE)
        with worker_of(url, TWO, second) as two:
            assert "mingle: sync with 1 nodes" in two.log
            assert "mingle: sync complete" in two.log
            one.wait_for_log(f"{TWO} joined the party", PATIENCE_S)
            two.wait_for_log(f"{ONE} joined the party", PATIENCE_S)

            nodes = set()
            until(lambda: nodes.update(run_both_kinds(client)) or nodes == {ONE, TWO}, "both to work")

            assert f"{TWO} left" not in one.log
            assert two.stop() == 0
            one.wait_for_log(f"{TWO} left", PATIENCE_S)
        assert run_both_kinds(client) == {ONE}
        assert one.stop() == 0
    for worker in (one, two):
        assert "Traceback" not in worker.log

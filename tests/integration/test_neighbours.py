"""Workers that are started as a team starts them: with gossip, mingle and heartbeats, which other tests leave out."""

from pathlib import Path

import pytest
from celery import Celery

from legit_embedding.testing.worker import WorkerProcess
from tests.waiting import close_client, until

HERE = Path(__file__).parent
ONE, TWO = "one@neighbours", "two@neighbours"
OURS = "legit_async"
PATIENCE_S = 30


@pytest.fixture
def client(redis_url):
    """A producer of `two_lines_app`."""
    app = Celery("client", broker=redis_url, backend=redis_url, set_as_current=False)
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


def says_hello(client, node):
    """What a worker that starts asks its neighbours; for an answer it waits no longer than a second."""
    return client.control.inspect([node], timeout=PATIENCE_S).hello("someone@else", {})[node]


def run_both_kinds(client):
    """The nodes on which an async and a plain task have run."""
    results = [client.send_task(f"two_lines_app.{name}", [0.05]) for name in ("rest", "plain_rest")]
    return {result.get(timeout=PATIENCE_S) for result in results}


@pytest.mark.parametrize(("first", "second"), [(OURS, OURS), (OURS, "prefork"), ("prefork", OURS), ("threads", OURS)])
def test_neighbours_find_each_other_share_the_work_and_part(redis_url, client, first, second):
    with worker_of(redis_url, ONE, first) as one:
        assert "mingle: all alone" in one.log
        assert says_hello(client, ONE)["clock"] > 0
        with worker_of(redis_url, TWO, second) as two:
            assert "mingle: searching for neighbors" in two.log
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

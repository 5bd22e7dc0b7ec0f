"""Starting, stopping, dying: no task is lost, and none is acknowledged before its results are on their stream."""

import signal
from collections import Counter

import pytest
import redis

from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess, WorkerStartError
from tests.acceptance.site import TEXTS, Site, metrics

ARGS = ("-P", "legit_async", "-l", "INFO")
TASKS, ITEMS = 150, 4


@pytest.fixture
def server():
    """Each of these tests kills and pauses; none shares its server."""
    with EmbeddedServer() as own:
        yield own


@pytest.fixture
def client(server):
    with redis.Redis.from_url(server.url(), decode_responses=True) as connection:
        yield connection


@pytest.fixture
def site(server):
    return Site(server.url())


def environment(server, models_toml, **more):
    return {"LEGIT_BROKER_URL": server.url(), "LEGIT_MODELS": str(models_toml), **more}


def send_many(site, stream):
    """More than a worker does in a moment; what must come: (task id, index)."""
    text = "a sentence of some twenty words that goes on and on so that a worker has something to do"
    sent = [site.send(TEXTS, {"texts": [f"{number} {text}"] * ITEMS, "reply_to": stream}).id for number in range(TASKS)]
    return {(task_id, index) for task_id in sent for index in range(ITEMS)}


def until(condition, worker, timeout_s=60):
    for _ in range(int(timeout_s / 0.05)):
        if condition():
            return
        worker.wait(0.05)
    raise AssertionError("it did not happen in time")


def found_on(client, stream):
    return [(fields["task_id"], int(fields["index"])) for _, fields in client.xrange(stream)]


def queued(client):
    return client.llen("text_embedding")


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_another_pool_stops_the_start_and_says_which_one_to_use(server, models_toml, pool):
    worker = WorkerProcess("legit_embedding", args=["-P", pool], env=environment(server, models_toml))
    with pytest.raises(WorkerStartError, match="need `-P legit_async`"):
        worker.start()
    assert worker.wait(0) == 1


def test_a_model_that_is_to_be_preloaded_and_cannot_be_stops_the_start(server, tmp_path):
    models = tmp_path / "models.toml"
    models.write_text('[models.m]\nadapter = "transformers"\nweights = "/no/such/folder"\n')
    worker = WorkerProcess("legit_embedding", args=ARGS, env=environment(server, models, LEGIT_PRELOAD="m"))
    with pytest.raises(WorkerStartError, match="/no/such/folder"):
        worker.start()
    assert worker.wait(0) == 1


def test_a_warm_shutdown_finishes_what_is_running_and_leaves_the_rest_queued(server, client, site, models_toml):
    """SIGTERM in the middle of a backlog: each task is either done, published and acknowledged, or untouched."""
    expected = send_many(site, "replies")
    env = environment(server, models_toml, LEGIT_CONCURRENCY="16")
    with WorkerProcess("legit_embedding", args=ARGS, env=env) as worker:
        until(lambda: client.xlen("replies") >= 2 * ITEMS, worker)
        assert worker.stop() == 0
    counts = Counter(found_on(client, "replies"))
    assert set(counts.values()) == {1}
    assert len(counts) + queued(client) * ITEMS == len(expected)
    assert queued(client) > 0
    assert not client.exists("unacked", "unacked_index")


def test_a_cold_shutdown_returns_running_tasks_to_their_queue(server, client, site, models_toml):
    """SIGQUIT: after the soft shutdown's time, here a moment, what is still running goes back."""
    expected = send_many(site, "replies")
    env = environment(server, models_toml, LEGIT_CONCURRENCY="16")
    args = (*ARGS, "--", "worker.soft_shutdown_timeout=0.1")
    with WorkerProcess("legit_embedding", args=args, env=env) as worker:
        until(lambda: client.xlen("replies") >= ITEMS, worker)
        worker.signal(signal.SIGQUIT)
        assert worker.wait(60) is not None
    assert not client.exists("unacked")
    done = set(found_on(client, "replies"))
    with WorkerProcess("legit_embedding", args=ARGS, env=environment(server, models_toml)) as second:
        until(lambda: set(found_on(client, "replies")) == expected, second)
    assert done < expected


def test_a_killed_workers_tasks_are_done_by_another_and_their_entries_say_so(server, client, site, models_toml):
    """SIGKILL in the middle: what was taken and not acknowledged comes back after the visibility time-out."""
    expected = send_many(site, "replies")
    env = environment(server, models_toml, LEGIT_VISIBILITY_TIMEOUT_S="10", LEGIT_CONCURRENCY="16")
    with WorkerProcess("legit_embedding", args=ARGS, env=env) as worker:
        until(lambda: client.xlen("replies") >= 4 * ITEMS, worker)
        worker.kill()
    assert client.hlen("unacked") > 0
    with WorkerProcess("legit_embedding", args=ARGS, env=env) as second:
        until(lambda: set(found_on(client, "replies")) == expected, second)
        until(lambda: not client.exists("unacked"), second)
        assert second.stop() == 0
    attempts = {fields["attempt"] for _, fields in client.xrange("replies")}
    assert attempts == {"1", "2"}


def test_nothing_is_acknowledged_while_its_results_cannot_be_written(server, client, site, models_toml):
    """The result server hangs: tasks stay unacknowledged. It goes on: each entry is there, each task acknowledged."""
    with EmbeddedServer() as results:
        env = environment(server, models_toml, LEGIT_RESULTS_URL=results.url(), LEGIT_PRELOAD="minilm")
        with WorkerProcess("legit_embedding", args=ARGS, env={**env, "LEGIT_METRICS_PORT": "0"}) as worker:
            results.pause()
            sent = [site.send(TEXTS, {"texts": ["a", "b"], "reply_to": "replies"}).id for _ in range(5)]
            until(lambda: "legit_publish_backlog_entries 10.0" in metrics(worker), worker)
            assert client.hlen("unacked") == 5
            results.resume()
            until(lambda: not client.exists("unacked"), worker)
            assert worker.stop() == 0
        with redis.Redis.from_url(results.url(), decode_responses=True) as there:
            assert {task_id for task_id, _ in found_on(there, "replies")} == set(sent)


def test_a_stop_while_results_cannot_be_written_waits_and_a_cold_one_gives_the_tasks_back(
    server, client, site, models_toml
):
    """TERM alone waits for the result server, as for any task; QUIT after it ends the worker, and nothing is lost."""
    with EmbeddedServer() as results:
        env = environment(server, models_toml, LEGIT_RESULTS_URL=results.url(), LEGIT_PRELOAD="minilm")
        args = (*ARGS, "--", "worker.soft_shutdown_timeout=0.1")
        with WorkerProcess("legit_embedding", args=args, env={**env, "LEGIT_METRICS_PORT": "0"}) as worker:
            results.pause()
            for _ in range(3):
                site.send(TEXTS, {"texts": ["a"], "reply_to": "replies"})
            until(lambda: "legit_publish_backlog_entries 3.0" in metrics(worker), worker)
            worker.signal(signal.SIGTERM)
            worker.wait_for_log("Warm shutdown", 20)
            assert worker.running
            worker.signal(signal.SIGQUIT)
            assert worker.wait(60) is not None
        assert queued(client) == 3
        assert not client.exists("unacked")


def test_a_bounded_stop_gives_back_what_cannot_be_written_in_time_and_exits_with_0(server, client, site, models_toml):
    """TERM with `LEGIT_DRAIN_TIMEOUT_S`: the documentation promises an end within 25 s more."""
    with EmbeddedServer() as results:
        env = environment(server, models_toml, LEGIT_RESULTS_URL=results.url(), LEGIT_PRELOAD="minilm")
        env |= {"LEGIT_METRICS_PORT": "0", "LEGIT_DRAIN_TIMEOUT_S": "0.5"}
        with WorkerProcess("legit_embedding", args=ARGS, env=env) as worker:
            results.pause()
            for _ in range(3):
                site.send(TEXTS, {"texts": ["a"], "reply_to": "replies"})
            until(lambda: "legit_publish_backlog_entries 3.0" in metrics(worker), worker)
            worker.signal(signal.SIGTERM)
            assert worker.wait(0.5 + 25) == 0
            assert "3 tasks still run after 0.5 s: their messages go back" in worker.log
        assert queued(client) == 3
        assert not client.exists("unacked")


def test_a_worker_takes_only_the_queues_it_is_told(server, client, site, models_toml):
    site.send("tasks.preparation.prepare_images", {"items": [{"data": "AAAA"}]})
    site.send(TEXTS, {"texts": ["a"], "reply_to": "replies"})
    args = (*ARGS, "-Q", "text_embedding")
    with WorkerProcess("legit_embedding", args=args, env=environment(server, models_toml)) as worker:
        until(lambda: client.xlen("replies") == 1, worker)
        assert client.llen("image_preparation") == 1


def test_two_living_workers_of_one_identity_are_told_in_both_logs(server, models_toml):
    env = environment(server, models_toml, LEGIT_WORKER_ID="twin", LEGIT_STATS_INTERVAL_S="0.2")
    with (
        WorkerProcess("legit_embedding", args=ARGS, env=env) as first,
        WorkerProcess("legit_embedding", args=ARGS, env=env) as second,
    ):
        for worker in (first, second):
            worker.wait_for_log("another worker runs as 'twin'", 20)


def test_an_expired_task_tells_its_producer(server, client, site, models_toml):
    site.send(TEXTS, {"texts": ["a", "b"], "reply_to": "replies"}, expires=0.01)
    with WorkerProcess("legit_embedding", args=ARGS, env=environment(server, models_toml)):
        entries = site.entries("replies", 2)
    assert [(entry.index, entry.error_type) for entry in entries] == [(0, "expired"), (1, "expired")]

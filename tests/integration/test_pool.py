"""The pool in real workers of a foreign app (`pool_app.py`), on a real broker."""

import json
import os
import signal
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from celery import Celery, chain, chord, group
from celery.exceptions import TaskError, TaskRevokedError, TimeLimitExceeded, WorkerLostError

from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess, WorkerStartError

HERE = Path(__file__).parent
NODE = "pool@test"
PATIENCE_S = 30


class Client:
    """A producer: tasks by name, and what the app noted."""

    def __init__(self, url, notes_url):
        self.url, self.notes_url = url, notes_url
        self.app = Celery("client", broker=url, backend=notes_url, set_as_current=False)
        self.broker = redis.Redis.from_url(url, decode_responses=True)
        self.redis = redis.Redis.from_url(notes_url, decode_responses=True)

    def send(self, name, *args, **options):
        return self.app.send_task(f"pool_app.{name}", args=args, **options)

    def signature(self, name, *args):
        return self.app.signature(f"pool_app.{name}", args=args)

    def ask(self, question, **arguments):
        """What the worker answers to `celery inspect`."""
        answers = getattr(self.app.control.inspect([NODE], timeout=PATIENCE_S), question)(**arguments)
        return (answers or {}).get(NODE)

    def notes(self, key):
        return self.redis.lrange(f"note:{key}", 0, -1)

    def wait_for_notes(self, key, count):
        until(lambda: len(self.notes(key)) >= count, f"{count} notes on {key}")
        return self.notes(key)

    def release(self, key):
        self.redis.set(key, "go")

    @property
    def unacked(self):
        return self.broker.hlen("unacked")

    @property
    def queued(self):
        return self.broker.llen("celery")

    def close(self):
        # Results that are collected later would unsubscribe at a server that is gone by then.
        self.app.backend.remove_pending_result = lambda result: result
        self.app.backend.result_consumer.stop()
        self.app.backend.client.close()
        self.app.close()
        self.broker.close()
        self.redis.close()


def until(condition, what):
    """Returns once `condition` holds; fails loudly where it does not within the bound."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"still waiting for {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server():
    with EmbeddedServer() as own:
        yield own


@contextmanager
def connected(url, notes_url):
    client = Client(url, notes_url)
    try:
        yield client
    finally:
        client.close()


def worker_for(client, *args, pool="legit_async", config=None):
    """A worker that is not started yet."""
    return WorkerProcess(
        "pool_app",
        args=["-P", pool, "-n", NODE, "-l", "INFO", "--without-gossip", "--without-mingle", *args],
        env={
            "POOL_APP_URL": client.url,
            "POOL_APP_NOTES": client.notes_url,
            "POOL_APP_CONFIG": json.dumps(config or {}),
        },
        cwd=HERE,
    )


@pytest.fixture(scope="module")
def shared(server):
    """A client with a worker that most tests share: they must leave it as they find it."""
    with connected(server.url(), server.url()) as client, worker_for(client, "-c", "1100") as worker:
        client.worker = worker
        yield client


@pytest.fixture
def client(server):
    """A client alone, on an emptied database of its own; the test starts its workers."""
    with connected(server.url(1), server.url(1)) as own:
        own.redis.flushdb()
        yield own


@pytest.fixture
def key():
    return uuid.uuid4().hex


# -- results -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "value"),
    [
        ("add", (1, 2), 3),
        ("plain_add", (1, 2), 3),
        ("retry", (), 2),
        ("plain_retry", (), 2),
        ("autoretry", (), 1),
        ("call_directly", (1, 2), 3),
        ("soft_limit", (), "cleaned up"),
        ("soft_limit_within_timeout", (), 0),
    ],
)
def test_a_task_returns_its_value(shared, name, args, value):
    assert shared.send(name, *args).get(timeout=PATIENCE_S) == value


@pytest.mark.parametrize(
    ("name", "args", "error", "says"),
    [
        ("fail", ("why",), KeyError, "why"),
        ("plain_fail", ("why",), KeyError, "why"),
        ("fail_unpicklably", (), Exception, "cannot be pickled"),
        ("leave", ("exit",), WorkerLostError, "SystemExit"),
        ("leave", ("interrupt",), WorkerLostError, "KeyboardInterrupt"),
        ("leave", ("cancel",), TaskError, "nobody asked for"),
        ("hard_limit", (), TimeLimitExceeded, "0.2"),
        ("plain_hard_limit", (), TimeLimitExceeded, "0.2"),
    ],
)
def test_a_failure_reaches_the_caller_and_leaves_the_worker_alone(shared, name, args, error, says):
    with pytest.raises(error, match=says):
        shared.send(name, *args).get(timeout=PATIENCE_S)
    assert shared.send("add", 1, 1).get(timeout=PATIENCE_S) == 2


def test_a_hard_limit_lets_the_body_clean_up(shared):
    result = shared.send("hard_limit")
    assert shared.wait_for_notes(result.id, 1) == ["cleaned up"]


def test_an_ignored_task_stores_nothing_and_is_acknowledged(shared):
    result = shared.send("ignore", acks_late=True)
    shared.worker.wait_for_log(f"[{result.id}] ignored", PATIENCE_S)
    until(lambda: shared.unacked == 0, "the ack")
    assert result.state == "PENDING"


def test_a_rejected_task_with_requeue_comes_back(shared):
    result = shared.send("reject", True)
    assert result.get(timeout=PATIENCE_S) == "second time"
    assert shared.notes(result.id) == ["redelivered False", "redelivered True"]


def test_a_rejected_task_without_requeue_does_not_come_back(shared):
    result = shared.send("reject", False)
    shared.wait_for_notes(result.id, 1)
    until(lambda: shared.unacked == 0, "the reject")
    assert shared.queued == 0
    assert shared.notes(result.id) == ["redelivered False"]


def test_a_class_based_task_has_its_hooks(shared):
    result = shared.send("counting", 1)
    assert result.get(timeout=PATIENCE_S) == 2
    assert shared.wait_for_notes(result.id, 2) == ["before_start", "on_success 2"]


# -- many at once ------------------------------------------------------------------------------------------------------


def test_the_current_request_is_right_among_many_and_in_children(shared, key):
    """Each of 250 bodies at the same time, its gathered children and its thread see their own request and no other."""
    results = [shared.send("who", key, 250) for _ in range(250)]
    for result in results:
        seen = result.get(timeout=PATIENCE_S)
        assert len(seen) == 11
        assert set(seen) == {result.id}


def test_a_plain_task_runs_in_a_thread_and_sees_its_request(shared):
    result = shared.send("plain_who")
    of_body, of_current, thread = result.get(timeout=PATIENCE_S)
    assert of_body == of_current == result.id
    assert thread.startswith("legit-task")


def test_a_thousand_tasks_are_in_flight_at_once(shared, key):
    """Each waits for all others: with one slot fewer none would ever return."""
    results = [shared.send("meet", key, 1000) for _ in range(1000)]
    assert {result.get(timeout=PATIENCE_S) for result in results} == {"legit-loop"}


# -- what a body sends -------------------------------------------------------------------------------------------------


def test_group_chain_and_chord(shared):
    add, plain, total = "add", "plain_add", "total"
    members = group(shared.signature(name, number, 1) for number in range(5) for name in (add, plain))
    assert sorted(members.apply_async().get(timeout=PATIENCE_S)) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    steps = chain(shared.signature(add, 1, 1), shared.signature(plain, 2), shared.signature(add, 3), app=shared.app)
    assert steps.apply_async().get(timeout=PATIENCE_S) == 7
    header = [shared.signature(add, number, number) for number in range(30)]
    assert chord(header, app=shared.app)(shared.signature(total)).get(timeout=PATIENCE_S) == 870


def test_a_chord_whose_member_fails_fails(shared):
    header = [shared.signature("add", 1, 1), shared.signature("fail", "broken member")]
    with pytest.raises(Exception, match="broken member"):
        chord(header, app=shared.app)(shared.signature("total")).get(timeout=PATIENCE_S)


def test_a_body_reports_its_progress(shared, key):
    result = shared.send("report_progress", key)
    until(lambda: result.state == "PROGRESS", "the progress")
    assert result.info == {"done": 1}
    shared.release(key)
    assert result.get(timeout=PATIENCE_S) == "done"


def test_a_body_sends_another_task(shared):
    sent = shared.send("call_another", 2, 3).get(timeout=PATIENCE_S)
    assert shared.app.AsyncResult(sent).get(timeout=PATIENCE_S) == 5


# -- acks and interruptions --------------------------------------------------------------------------------------------


def test_a_late_ack_follows_the_body(shared, key):
    result = shared.send("wait_late", key)
    until(lambda: result.id in shared.notes("started"), "the start")
    assert shared.unacked == 1
    shared.release(key)
    assert result.get(timeout=PATIENCE_S) == "waited"
    until(lambda: shared.unacked == 0, "the ack")


def test_a_running_task_is_revoked_with_terminate_and_cleans_up_once(shared, key):
    result = shared.send("wait", key)
    until(lambda: result.id in shared.notes("started"), "the start")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE_S)
    until(lambda: result.id in shared.notes("cleaned up"), "the cleaning up")
    assert shared.notes("cancelled").count(result.id) == 1


def test_remote_control_sees_the_pool(shared, key):
    assert shared.ask("ping") == {"ok": "pong"}
    result = shared.send("wait", key)
    until(lambda: result.id in shared.notes("started"), "the start")
    assert [request["id"] for request in shared.ask("active")] == [result.id]
    pool = shared.ask("stats")["pool"]
    assert pool["implementation"] == "legit_embedding.pool.legit_async:TaskPool"
    assert pool["max-concurrency"] == 1100
    assert pool["processes"] == [shared.worker.pid]
    assert pool["in-flight"] == 1
    shared.release(key)
    assert result.get(timeout=PATIENCE_S) == "waited"
    until(lambda: shared.ask("active") == [], "the end")


# -- how many run ------------------------------------------------------------------------------------------------------


def test_slots_hold_back_grow_and_shrink(client, key):
    """What waits for a slot can be revoked and never starts; a grown pool runs more at once, a shrunk one fewer."""
    with worker_for(client, "-c", "1", config={"worker_prefetch_multiplier": 10}) as worker:
        first, second, third, fourth = (client.send("wait_late", f"{key}{number}") for number in range(4))
        client.wait_for_notes("started", 1)
        worker.wait_for_log(f"[{fourth.id}] received", PATIENCE_S)
        second.revoke()
        client.app.control.pool_grow(1, destination=[NODE], reply=True, timeout=PATIENCE_S)
        assert client.wait_for_notes("started", 2) == [first.id, third.id]
        client.app.control.pool_shrink(1, destination=[NODE], reply=True, timeout=PATIENCE_S)
        assert client.ask("stats")["pool"]["max-concurrency"] == 1
        client.release(f"{key}0")
        assert first.get(timeout=PATIENCE_S) == "waited"
        # `fourth` waits: the slot was taken away
        until(lambda: client.ask("stats")["pool"]["in-flight"] == 1, "the slot to be taken away")
        client.release(f"{key}2")
        client.release(f"{key}3")
        assert fourth.get(timeout=PATIENCE_S) == "waited"
        assert client.notes("started") == [first.id, third.id, fourth.id]
        with pytest.raises(TaskRevokedError):
            second.get(timeout=PATIENCE_S)


def test_autoscale_follows_the_load(client, key):
    with worker_for(client, "--autoscale", "3,1"):
        results = [client.send("meet", key, 3) for _ in range(3)]
        assert [result.get(timeout=PATIENCE_S) for result in results] == ["legit-loop"] * 3


# -- life cycle --------------------------------------------------------------------------------------------------------


def test_the_lifespan_surrounds_the_tasks_on_the_loops_thread(client, key):
    with worker_for(client, config={"legit_async_lifespan": "pool_app:lifespan"}) as worker:
        assert client.notes("life") == ["enter legit-loop"]
        assert client.ask("stats")["pool"]["max-concurrency"] == os.cpu_count()  # Celery's own default
        result = client.send("wait_late", key)
        client.wait_for_notes("started", 1)
        worker.signal(signal.SIGTERM)
        worker.wait_for_log("Warm shutdown", PATIENCE_S)
        assert client.notes("life") == ["enter legit-loop"]
        client.release(key)
        assert worker.wait(PATIENCE_S) == 0
    assert result.state == "SUCCESS"
    assert client.notes("life") == ["enter legit-loop", "exit legit-loop"]


def test_a_lifespan_that_fails_stops_the_start_with_its_error_and_a_code(client):
    worker = worker_for(client, config={"legit_async_lifespan": "pool_app:broken_lifespan"})
    with pytest.raises(WorkerStartError, match="ended with code 1"):
        worker.start()
    assert "ValueError: the model cannot be found" in worker.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_start_is_called_off_by_a_signal(client, number):
    worker = worker_for(client, config={"legit_async_lifespan": "pool_app:endless_start"})
    worker.launch()
    try:
        client.wait_for_notes("life", 1)
        worker.signal(number)
        assert worker.wait(PATIENCE_S) is not None
        assert client.notes("life") == ["starting", "start called off"]
    finally:
        worker.kill()


def test_a_lifespan_that_does_not_end_is_left_behind(client):
    config = {"legit_async_lifespan": "pool_app:endless_exit", "legit_async_lifespan_exit_timeout_s": 0.2}
    with worker_for(client, config=config) as worker:
        assert worker.stop(PATIENCE_S) == 0
        assert "did not end within 0.2 s" in worker.log


def test_a_warm_shutdown_finishes_what_runs_and_acknowledges_it(client, key):
    with worker_for(client, "-c", "30") as worker:
        names = ["wait_late", "plain_wait_late", "wait"] * 5
        results = [client.send(name, key) for name in names]
        client.wait_for_notes("started", 15)
        worker.signal(signal.SIGTERM)
        worker.wait_for_log("Warm shutdown", PATIENCE_S)
        client.release(key)
        assert worker.wait(PATIENCE_S) == 0
    assert {result.state for result in results} == {"SUCCESS"}
    assert (client.unacked, client.queued) == (0, 0)


def test_a_cold_shutdown_returns_tasks_and_another_worker_runs_them(client, key):
    """Those that run, async and plain, and those that wait for a slot: none of the latter starts on the way."""
    config = {"worker_prefetch_multiplier": 4}
    with worker_for(client, "-c", "4", config=config) as worker:
        names = ["wait_late", "plain_wait_late"] * 5
        results = [client.send(name, key) for name in names]
        client.wait_for_notes("started", 4)
        worker.wait_for_log(f"[{results[-1].id}] received", PATIENCE_S)
        worker.signal(signal.SIGQUIT)
        assert worker.wait(PATIENCE_S) is not None
        assert len(client.notes("started")) == 4
    assert (client.unacked, client.queued) == (0, 10)
    client.release(key)
    with worker_for(client, "-c", "4"):
        assert {result.get(timeout=PATIENCE_S) for result in results} == {"waited"}
        until(lambda: client.unacked == 0, "the acks")
    assert client.queued == 0


def test_a_second_signal_turns_a_warm_shutdown_into_a_cold_one(client, key):
    with worker_for(client, "-c", "4") as worker:
        for name in ("wait_late", "plain_wait_late"):
            client.send(name, key)
        client.wait_for_notes("started", 2)
        worker.signal(signal.SIGTERM)
        worker.wait_for_log("Warm shutdown", PATIENCE_S)
        worker.signal(signal.SIGQUIT)
        assert worker.wait(PATIENCE_S) is not None
    assert (client.unacked, client.queued) == (0, 2)


def test_a_soft_shutdown_lets_running_tasks_finish_and_acknowledges_them(client, key):
    with worker_for(client, "-c", "4", config={"worker_soft_shutdown_timeout": 2}) as worker:
        results = [client.send(name, key) for name in ("wait_late", "plain_wait_late")]
        client.wait_for_notes("started", 2)
        worker.signal(signal.SIGQUIT)
        worker.wait_for_log("Initiating Soft Shutdown", PATIENCE_S)
        client.release(key)
        assert worker.wait(PATIENCE_S) is not None
    assert {result.state for result in results} == {"SUCCESS"}
    assert (client.unacked, client.queued) == (0, 0)


def test_a_cold_shutdown_does_not_wait_for_a_body_that_blocks_the_loop(client, key):
    config = {"legit_async_lifespan_exit_timeout_s": 0.2}
    with worker_for(client, "-c", "4", config=config) as worker:
        client.send("block_loop", key)
        client.wait_for_notes("started", 1)
        worker.signal(signal.SIGQUIT)
        assert worker.wait(PATIENCE_S) is not None
    assert (client.unacked, client.queued) == (0, 1)


def test_the_tasks_of_a_killed_worker_come_back(client, key):
    """Within the visibility timeout, by the restore settings that the documentation names."""
    options = {"visibility_timeout": 1, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    config = {"broker_transport_options": options}
    with worker_for(client, "-c", "4", config=config) as worker:
        results = [client.send(name, key) for name in ("wait_late", "plain_wait_late")]
        client.wait_for_notes("started", 2)
        worker.kill()
    assert client.unacked == 2
    client.release(key)
    with worker_for(client, "-c", "4", config=config):
        assert {result.get(timeout=PATIENCE_S) for result in results} == {"waited"}
        until(lambda: client.unacked == 0, "the acks")


def test_a_loop_that_dies_fails_its_tasks_and_stops_the_worker(client):
    with worker_for(client, "-c", "4") as worker:
        result = client.send("stop_loop")
        assert worker.wait(PATIENCE_S) == 1
    assert "the event loop of the pool has ended" in worker.log
    assert isinstance(result.result, WorkerLostError)
    assert (client.unacked, client.queued) == (0, 0)


def test_running_tasks_are_cancelled_when_the_broker_is_lost_and_work_goes_on_when_it_is_back(server, own_server, key):
    with connected(own_server.url(), server.url(2)) as client:
        client.redis.flushdb()
        with worker_for(client, "-c", "1") as worker:
            lost = client.send("wait_late", key)
            client.wait_for_notes("started", 1)
            own_server.restart()
            worker.wait_for_log("Connected to", PATIENCE_S, count=2)
            after = client.send("add", 1, 2)
            assert after.get(timeout=PATIENCE_S) == 3
            assert lost.state == "RETRY"
            assert client.notes("finished") == []


def test_a_task_that_outlives_the_connection_keeps_its_slot(server, own_server, key):
    config = {"worker_cancel_long_running_tasks_on_connection_loss": False}
    with connected(own_server.url(), server.url(2)) as client:
        client.redis.flushdb()
        with worker_for(client, "-c", "1", config=config) as worker:
            first = client.send("wait_late", key)
            client.wait_for_notes("started", 1)
            own_server.restart()
            worker.wait_for_log("Connected to", PATIENCE_S, count=2)
            second = client.send("wait_late", key)
            worker.wait_for_log(f"[{second.id}] received", PATIENCE_S)
            assert client.ask("stats")["pool"]["in-flight"] == 1
            client.release(key)
            assert second.get(timeout=PATIENCE_S) == "waited"
            assert client.notes("started") == [first.id, second.id]


# -- elsewhere ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_the_same_tasks_run_under_celerys_own_pools(client, pool):
    with worker_for(client, "-c", "2", pool=pool):
        assert client.send("add", 1, 2).get(timeout=PATIENCE_S) == 3
        assert client.send("autoretry").get(timeout=PATIENCE_S) == 1
        assert client.send("counting", 1).get(timeout=PATIENCE_S) == 2
        with pytest.raises(KeyError, match="why"):
            client.send("fail", "why").get(timeout=PATIENCE_S)

"""What monitors are told: Celery's own receiver and `celery events`, listening to real workers of a foreign app."""

import json
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import celery
import pytest
import redis
from celery import Celery, chain

from legit_embedding.testing.processes import GuardedProcess
from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess, environment_without_site_settings
from tests.conformance.brokers import RabbitBroker
from tests.waiting import until

HERE = Path(__file__).parent
NODE = "pool@test"
PATIENCE_S = 30
SLOTS = 4
ALONE = ["--without-gossip", "--without-mingle"]

RECEIVED, STARTED, SUCCEEDED, FAILED = "task-received", "task-started", "task-succeeded", "task-failed"
RETRIED, REVOKED, REJECTED, SENT = "task-retried", "task-revoked", "task-rejected", "task-sent"

# Since 5.7 Celery also tells of failures that it used to record alone.
FAILED_SINCE_5_7 = [FAILED] if celery.VERSION[:2] >= (5, 7) else []


class Watch:
    """Celery's receiver in a thread: all events in their order, and the state that they add up to."""

    def __init__(self, app):
        self._app = app
        self._events = []
        self.state = app.events.State()

    def __enter__(self):
        self._connection = self._app.connection_for_read()
        self._receiver = self._app.events.Receiver(self._connection, handlers={"*": self._on_event})
        # Nobody is woken up: what comes, the workers send of their own accord.
        self._thread = threading.Thread(target=self._receiver.capture, kwargs={"wakeup": False})
        self._thread.start()
        try:
            # A subscription is in force some time after the receiver says that it is ready: ask until it hears us.
            with self._app.connection_for_write() as connection, self._app.events.Dispatcher(connection) as dispatcher:
                until(lambda: dispatcher.send("probe-sent") or self.types() != [], "the subscription")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._receiver.should_stop = True
        self._thread.join(PATIENCE_S)
        self._connection.close()

    def _on_event(self, event):
        self.state.event(event)
        self._events.append(event)

    def events(self, task_id=None, kind=None):
        """Those of a task (None: those of workers), of one kind or of all, in the order in which they came."""
        return [
            event
            for event in list(self._events)
            if event.get("uuid") == task_id and (kind is None or event["type"] == kind)
        ]

    def types(self, task_id=None):
        """The same, the types alone."""
        return [event["type"] for event in self.events(task_id)]

    def wait_for(self, task_id, kind, count=1):
        """The event of that kind, once there are `count` of them: the last."""
        until(lambda: len(self.events(task_id, kind)) >= count, f"{count} {kind}, after {self.types(task_id)}")
        return self.events(task_id, kind)[-1]

    def task(self, task_id):
        """What the events of a task add up to."""
        return self.state.freeze_while(self.state.tasks.get, task_id)

    def tasks(self):
        """The same, of all tasks."""
        return self.state.freeze_while(lambda: list(self.state.tasks.values()))


class Client:
    """A producer, what the app noted for it, and a watch over everything."""

    def __init__(self, url, notes_url=None):
        self.url, self.notes_url = url, notes_url or url
        self.app = Celery("client", broker=url, set_as_current=False)
        self.app.conf.task_send_sent_event = True
        self.redis = redis.Redis.from_url(self.notes_url, decode_responses=True)

    def send(self, name, *args, **options):
        """The id of the task that was sent."""
        return self.app.send_task(name, args=args, **options).id

    def wait_for_note(self, key, value):
        until(lambda: value in self.redis.lrange(f"note:{key}", 0, -1), f"{value} in {key}")

    def release(self, key):
        self.redis.set(key, "go")

    def revoke(self, task_id, **options):
        """Returns when the worker has done it."""
        answers = self.app.control.revoke(task_id, destination=[NODE], reply=True, timeout=PATIENCE_S, **options)
        assert "ok" in answers[0][NODE]

    def tell(self, command):
        """What the worker answers to a control command."""
        answers = self.app.control.broadcast(command, destination=[NODE], reply=True, timeout=PATIENCE_S)
        return answers[0][NODE]["ok"]

    def settle(self, name="pool_app.add", args=(1, 1)):
        """Returns when nothing more is to come of what the worker has been done with by now."""
        self.watch.wait_for(self.send(name, *args), SUCCEEDED)


@contextmanager
def watching(url, notes_url=None):
    """A client that hears everything from here on."""
    client = Client(url, notes_url)
    try:
        with Watch(client.app) as client.watch:
            yield client
    finally:
        client.redis.close()
        client.app.close()


def worker_for(client, *args, app="events_app"):
    """A worker that is not started yet; what the bodies of `events_app` send, they announce."""
    return WorkerProcess(
        app,
        args=["-P", "legit_async", "-n", NODE, "-l", "INFO", "--heartbeat-interval", "1", *ALONE, *args],
        env={
            "POOL_APP_URL": client.url,
            "POOL_APP_NOTES": client.notes_url,
            "POOL_APP_CONFIG": json.dumps({"task_send_sent_event": True}),
        },
        cwd=HERE,
    )


@pytest.fixture(scope="module")
def events_server():
    with EmbeddedServer() as own:
        yield own


@pytest.fixture(scope="module")
def shared(events_server):
    """A watching client with a worker that most tests share: they must leave it as they find it."""
    with watching(events_server.url()) as client, worker_for(client, "-E", "-c", str(SLOTS)):
        yield client


@pytest.fixture
def watcher(events_server):
    """A watching client alone, on an emptied database of its own; the test starts its worker."""
    with redis.Redis.from_url(events_server.url(1)) as connection:
        connection.flushdb()
    with watching(events_server.url(1)) as client:
        yield client


@pytest.fixture(scope="module")
def rabbit():
    if reason := RabbitBroker.missing():
        pytest.skip(reason)
    broker = RabbitBroker()
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def rabbit_watcher(rabbit, events_server):
    """As `watcher`, on RabbitMQ; results and notes are kept on Valkey."""
    with watching(rabbit.url, events_server.url(2)) as client:
        yield client


@pytest.fixture
def key():
    return uuid.uuid4().hex


# -- one task ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pool_app.add", "pool_app.plain_add"])
def test_a_task_is_received_started_and_succeeds(shared, name):
    task_id = shared.send(name, 1, 2)
    shared.watch.wait_for(task_id, SUCCEEDED)
    shared.watch.wait_for(task_id, SENT)  # the producer's own, on a connection of its own: at any place
    assert [kind for kind in shared.watch.types(task_id) if kind != SENT] == [RECEIVED, STARTED, SUCCEEDED]
    task = shared.watch.task(task_id)
    assert (task.name, task.state, task.args, task.result) == (name, "SUCCESS", "(1, 2)", "3")
    assert (task.worker.hostname, task.retries, task.root_id) == (NODE, 0, task_id)
    assert task.received <= task.started <= task.succeeded


def test_each_of_many_at_once_has_the_runtime_of_its_own_body(shared):
    names = ["events_app.rest", "events_app.plain_rest"] * (SLOTS // 2)
    durations_s = [0.1, 0.2, 0.6, 0.8]
    before_s = time.monotonic()
    sent = [shared.send(name, duration_s) for name, duration_s in zip(names, durations_s, strict=True)]
    runtimes_s = [shared.watch.wait_for(task_id, SUCCEEDED)["runtime"] for task_id in sent]
    elapsed_s = time.monotonic() - before_s
    for duration_s, runtime_s in zip(durations_s, runtimes_s, strict=True):
        assert duration_s - 0.01 <= runtime_s <= elapsed_s  # a loop's clock may be early by its resolution


@pytest.mark.parametrize(("name", "frame"), [("pool_app.fail", "in fail"), ("pool_app.plain_fail", "in plain_fail")])
def test_a_failure_comes_with_its_error_and_the_bodys_frame(shared, name, frame):
    task_id = shared.send(name, "why")
    event = shared.watch.wait_for(task_id, FAILED)
    assert event["exception"] == "KeyError('why')"
    assert frame in event["traceback"]
    shared.settle()
    assert [kind for kind in shared.watch.types(task_id) if kind != SENT] == [RECEIVED, STARTED, FAILED]
    assert shared.watch.task(task_id).state == "FAILURE"


def test_a_body_that_exits_fails_as_a_lost_worker(shared):
    event = shared.watch.wait_for(shared.send("pool_app.leave", "exit"), FAILED)
    assert "WorkerLostError: the task ended with SystemExit(3)" in event["traceback"]


@pytest.mark.skipif(not FAILED_SINCE_5_7, reason="before 5.7 Celery sends no event of a hard time limit")
@pytest.mark.parametrize("name", ["pool_app.hard_limit", "pool_app.plain_hard_limit"])
def test_a_hard_limit_is_a_failure(shared, name):
    task_id = shared.send(name)
    assert "TimeLimitExceeded(0.2" in shared.watch.wait_for(task_id, FAILED)["traceback"]
    shared.settle()
    assert shared.watch.types(task_id).count(FAILED) == 1


@pytest.mark.parametrize("name", ["pool_app.retry", "pool_app.plain_retry"])
def test_each_attempt_of_a_retried_task_is_told(shared, name):
    task_id = shared.send(name)
    shared.watch.wait_for(task_id, SUCCEEDED)
    shared.watch.wait_for(task_id, RETRIED, count=2)
    shared.watch.wait_for(task_id, SENT, count=3)
    shared.settle()
    assert Counter(shared.watch.types(task_id)) == {SENT: 3, RECEIVED: 3, STARTED: 3, RETRIED: 2, SUCCEEDED: 1}
    assert [event["retries"] for event in shared.watch.events(task_id, RECEIVED)] == [0, 1, 2]


def test_a_retry_comes_with_the_error_that_caused_it(shared):
    event = shared.watch.wait_for(shared.send("pool_app.autoretry"), RETRIED)
    assert event["exception"] == "ValueError('again')"
    assert "in autoretry" in event["traceback"]


@pytest.mark.parametrize("name", ["pool_app.reject", "events_app.plain_reject"])
def test_a_rejected_task_that_comes_back_is_told_twice(shared, name):
    task_id = shared.send(name, True)
    shared.watch.wait_for(task_id, SUCCEEDED)
    assert [kind for kind in shared.watch.types(task_id) if kind != SENT] == [
        RECEIVED, STARTED, REJECTED, RECEIVED, STARTED, SUCCEEDED,
    ]  # fmt: skip
    assert shared.watch.events(task_id, REJECTED)[0]["requeue"] is True


@pytest.mark.parametrize("name", ["pool_app.reject", "events_app.plain_reject"])
def test_a_rejected_task_that_does_not_come_back_is_told_once(shared, name):
    task_id = shared.send(name, False)
    assert shared.watch.wait_for(task_id, REJECTED)["requeue"] is False
    shared.settle()
    types = [kind for kind in shared.watch.types(task_id) if kind != SENT]
    assert types == [RECEIVED, STARTED, *FAILED_SINCE_5_7, REJECTED]
    for event in shared.watch.events(task_id, FAILED):
        assert event["exception"] == "reject requeue=False: not now"


# -- revoked -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pool_app.wait", "pool_app.plain_wait_late"])
def test_a_terminated_task_is_revoked_once_and_nothing_else(shared, name, key):
    task_id = shared.send(name, key)
    shared.wait_for_note("started", task_id)
    shared.revoke(task_id, terminate=True)
    event = shared.watch.wait_for(task_id, REVOKED)
    assert (event["terminated"], event["expired"]) == (True, False)
    shared.release(key)  # the thread of the plain one, which nobody can stop
    shared.wait_for_note("cleaned up" if name == "pool_app.wait" else "finished", task_id)
    shared.settle()
    assert [kind for kind in shared.watch.types(task_id) if kind != SENT] == [RECEIVED, STARTED, REVOKED]
    assert shared.watch.task(task_id).state == "REVOKED"


def test_a_task_that_is_revoked_while_it_waits_for_a_slot_never_starts(shared, key):
    holders = [shared.send("pool_app.wait", key) for _ in range(SLOTS)]
    for task_id in holders:
        shared.watch.wait_for(task_id, STARTED)
    waiting = shared.send("pool_app.add", 1, 1)
    shared.watch.wait_for(waiting, RECEIVED)
    shared.revoke(waiting)
    shared.release(key)
    event = shared.watch.wait_for(waiting, REVOKED)
    assert (event["terminated"], event["expired"]) == (False, False)
    for task_id in holders:
        shared.watch.wait_for(task_id, SUCCEEDED)
    assert [kind for kind in shared.watch.types(waiting) if kind != SENT] == [RECEIVED, REVOKED]


def test_an_expired_task_is_revoked_as_expired(shared):
    task_id = shared.send("pool_app.add", 1, 1, expires=datetime.now(UTC) - timedelta(minutes=1))
    event = shared.watch.wait_for(task_id, REVOKED)
    assert (event["terminated"], event["expired"]) == (False, True)
    assert STARTED not in shared.watch.types(task_id)


# -- sent --------------------------------------------------------------------------------------------------------------


def test_a_producer_announces_what_it_sends(shared):
    event = shared.watch.wait_for(shared.send("pool_app.add", 1, 2), SENT)
    assert (event["name"], event["args"], event["queue"]) == ("pool_app.add", "(1, 2)", "celery")


@pytest.mark.parametrize(
    ("name", "args", "sends"),
    [
        ("pool_app.call_another", (1, 2), 1),
        ("events_app.plain_call_another", (1, 2), 1),
        ("events_app.call_group", (3,), 3),
    ],
)
def test_a_body_announces_what_it_sends_as_its_child(shared, name, args, sends):
    """Several at once: each child has its own parent, whichever thread has sent it."""
    parents = [shared.send(name, *args) for _ in range(SLOTS)]

    def children():
        ended = [task for task in shared.watch.tasks() if task.sent and task.state == "SUCCESS"]
        return [task for task in ended if task.parent_id in parents]

    until(lambda: len(children()) == SLOTS * sends, "the children")
    assert Counter(child.parent_id for child in children()) == dict.fromkeys(parents, sends)
    assert all(child.root_id == child.parent_id for child in children())
    for child in children():
        assert len(shared.watch.events(child.uuid, SENT)) == 1


def test_a_chains_follow_up_is_announced_by_the_tracer(shared):
    first, second = (
        shared.app.signature("pool_app.add", args=(1, 1)),
        shared.app.signature("pool_app.plain_add", args=(2,)),
    )
    last = chain(first, second, app=shared.app).apply_async()
    shared.watch.wait_for(last.id, SUCCEEDED)
    event = shared.watch.wait_for(last.id, SENT)
    assert event["parent_id"] == event["root_id"] == last.parent.id


# -- the worker itself -------------------------------------------------------------------------------------------------


def test_heartbeats_count_what_runs_and_what_was_accepted(shared, key):
    before = shared.watch.wait_for(None, "worker-heartbeat")["processed"]
    for name in ("pool_app.wait", "pool_app.plain_wait_late"):
        shared.wait_for_note("started", shared.send(name, key))

    def counts_both():  # the last heartbeat may be older than the tasks, and tell of two others
        last = shared.watch.events(kind="worker-heartbeat")[-1]
        return last["active"] == 2 and last["processed"] >= before + 2

    until(counts_both, "a heartbeat with both")
    assert shared.watch.state.freeze_while(shared.watch.state.workers.get, NODE).alive
    shared.release(key)
    until(lambda: shared.watch.events(kind="worker-heartbeat")[-1]["active"] == 0, "a heartbeat with none")


def test_a_worker_comes_online_and_goes_offline_and_tells_how_its_last_tasks_ended(watcher, key):
    with worker_for(watcher, "-E", "-c", "2") as worker:
        online = watcher.watch.wait_for(None, "worker-online")
        assert (online["hostname"], online["sw_ident"]) == (NODE, "py-celery")
        sent = [watcher.send(name, key) for name in ("pool_app.wait_late", "pool_app.plain_wait_late")]
        for task_id in sent:
            watcher.wait_for_note("started", task_id)
        worker.signal(signal.SIGTERM)
        watcher.watch.wait_for(None, "worker-offline")
        watcher.release(key)
        for task_id in sent:
            watcher.watch.wait_for(task_id, SUCCEEDED)
        assert worker.wait(PATIENCE_S) == 0


# -- other brokers, and Celery's own dispatcher ------------------------------------------------------------------------


def assert_each_is_told_once(client, app, *, count=25, duration_s=0.1):
    """Of so many async and so many plain tasks at once, and of the worker that runs them."""
    assert client.watch.wait_for(None, "worker-online")["hostname"] == NODE
    names = [f"{app}.rest", f"{app}.plain_rest"]
    sent = {client.send(name, duration_s): name for name in names * count}
    for task_id in sent:
        client.watch.wait_for(task_id, SUCCEEDED)
        client.watch.wait_for(task_id, SENT)
    client.settle(names[0], [0])
    for task_id, name in sent.items():
        types = client.watch.types(task_id)
        assert types.count(SENT) == 1
        assert [kind for kind in types if kind != SENT] == [RECEIVED, STARTED, SUCCEEDED]
        task = client.watch.task(task_id)
        assert (task.name, task.state, task.worker.hostname) == (name, "SUCCESS", NODE)
        assert task.received <= task.started <= task.succeeded
        assert duration_s - 0.01 <= task.runtime < PATIENCE_S  # a loop's clock may be early by its resolution
    assert client.watch.state.freeze_while(client.watch.state.workers.get, NODE).alive


@pytest.mark.parametrize("app", ["events_app", "two_lines_app"])
def test_on_rabbitmq_a_worker_comes_online_and_each_task_is_told_once(rabbit_watcher, app):
    """With the pool's dispatcher, which the first app asks for, and with Celery's own."""
    with worker_for(rabbit_watcher, "-E", "-c", "10", app=app) as worker:
        assert_each_is_told_once(rabbit_watcher, app)
        assert worker.stop() == 0
    rabbit_watcher.watch.wait_for(None, "worker-offline")


def test_with_celerys_own_dispatcher_each_task_is_told_once(watcher):
    """The two lines of docs/pool.md, which leave events to Celery."""
    with worker_for(watcher, "-E", "-c", "10", app="two_lines_app") as worker:
        assert_each_is_told_once(watcher, "two_lines_app")
        assert worker.stop() == 0
    watcher.watch.wait_for(None, "worker-offline")


# -- switched on and off -----------------------------------------------------------------------------------------------


def test_task_events_are_sent_when_asked_for_and_no_longer(watcher):
    """Off without `-E`; remote control turns them on and off; what was not told then is not told later."""
    with worker_for(watcher, "-c", "2"):
        watch = watcher.watch
        watch.wait_for(None, "worker-heartbeat")  # those of the worker itself are sent all the same
        silent = [watcher.send(name, 1, 1) for name in ("pool_app.add", "pool_app.plain_add")]
        until(lambda: watch.events(kind="worker-heartbeat")[-1]["processed"] == 2, "both to be accepted")
        until(lambda: watch.events(kind="worker-heartbeat")[-1]["active"] == 0, "both to be done")
        assert watcher.tell("enable_events") == "task events enabled"
        assert watcher.tell("enable_events") == "task events already enabled"
        told = watcher.send("pool_app.add", 1, 1)
        watch.wait_for(told, SUCCEEDED)
        assert watcher.tell("disable_events") == "task events disabled"
        silent.append(watcher.send("pool_app.add", 1, 1))
        until(lambda: watch.events(kind="worker-heartbeat")[-1]["processed"] == 4, "the next to be accepted")
        until(lambda: watch.events(kind="worker-heartbeat")[-1]["active"] == 0, "the next to be done")
        watcher.tell("enable_events")
        watch.wait_for(watcher.send("pool_app.add", 1, 1), SUCCEEDED)
        assert [watch.types(task_id) for task_id in silent] == [[SENT]] * 3


# -- `celery events` ---------------------------------------------------------------------------------------------------


@contextmanager
def dump_of(url):
    """`celery events --dump`, in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="legit-events-"))
    process = GuardedProcess(
        [sys.executable, "-m", "celery", "-b", url, "events", "--dump"],
        folder=folder,
        log_name="events.log",
        env={**environment_without_site_settings(), "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_celery_events_dumps_what_the_tasks_do(shared):
    with dump_of(shared.url) as dump:
        until(lambda: f"{NODE} [" in dump.log, f"a heartbeat in\n{dump.log}")
        good, plain = shared.send("pool_app.add", 1, 2), shared.send("pool_app.plain_add", 3, 4)
        bad = shared.send("pool_app.fail", "why")

        def lines(kind, task_id):
            return [line for line in dump.log.splitlines() if f"] task {kind}: " in line and task_id in line]

        for task_id in (good, plain, bad):
            until(lambda task_id=task_id: lines("started", task_id), f"{task_id} in\n{dump.log}")
        until(lambda: lines("succeeded", good) and lines("succeeded", plain), f"both results in\n{dump.log}")
        until(lambda: lines("failed", bad), f"the failure in\n{dump.log}")
        assert f"pool_app.add({good}) args=(1, 2) kwargs={{}}" in lines("received", good)[0]
        assert "result=3" in lines("succeeded", good)[0]
        assert "result=7" in lines("succeeded", plain)[0]
        assert "runtime=" in lines("succeeded", plain)[0]
        assert "exception=KeyError('why')" in lines("failed", bad)[0]

"""What is this pool's alone, in real workers of a foreign app, `pool_app.py`; `tests/conformance` has the rest."""

import json
import os
import signal
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from celery import Celery
from celery.exceptions import TaskRevokedError, WorkerLostError

from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess, WorkerStartError
from tests.waiting import close_client, until

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
        close_client(self.app)
        self.broker.close()
        self.redis.close()


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


def worker_for(client, *args, pool="legit_async", config=None, env=None):
    """A worker that is not started yet."""
    return WorkerProcess(
        "pool_app",
        args=["-P", pool, "-n", NODE, "-l", "INFO", "--without-gossip", "--without-mingle", *args],
        env={
            "POOL_APP_URL": client.url,
            "POOL_APP_NOTES": client.notes_url,
            "POOL_APP_CONFIG": json.dumps(config or {}),
            **(env or {}),
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


# -- many at once ------------------------------------------------------------------------------------------------------


def test_a_plain_task_runs_in_a_thread_and_sees_its_request(shared):
    result = shared.send("plain_who")
    of_body, of_current, thread = result.get(timeout=PATIENCE_S)
    assert of_body == of_current == result.id
    assert thread.startswith("legit-task")


def test_a_thousand_tasks_are_in_flight_at_once(shared, key):
    """Each waits for all others: with one slot fewer none would ever return."""
    results = [shared.send("meet", key, 1000) for _ in range(1000)]
    assert {result.get(timeout=PATIENCE_S) for result in results} == {"legit-loop"}


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


def test_a_loop_that_dies_fails_its_tasks_and_stops_the_worker(client):
    with worker_for(client, "-c", "4") as worker:
        result = client.send("stop_loop")
        assert worker.wait(PATIENCE_S) == 1
    assert "the event loop of the pool has ended" in worker.log
    assert isinstance(result.result, WorkerLostError)
    assert (client.unacked, client.queued) == (0, 0)


# -- pool_restart ------------------------------------------------------------------------------------------------------


class ChangingModules:
    """Two task modules in a folder of their own: `changing`, which the worker has from the start, and `late`."""

    def __init__(self, folder):
        self._folder = folder
        for name in ("changing", "late"):
            self.write(name, "first")

    def write(self, name, version):
        """Its file, with tasks of that version."""
        text = (HERE / "versioned_tasks.py").read_text().replace('"first"', f'"{version}"')
        if name != "changing":
            text = text.replace('"pool_app.', f'"pool_app.{name}_')
        # The lengths differ: Python takes a file of the same length and the same second for the one it has compiled.
        (self._folder / f"{name}.py").write_text(text)

    def worker(self, client):
        """One that may restart its pool; it is not started yet."""
        path = [str(self._folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        config = {"worker_pool_restarts": True, "include": ["changing"]}
        return worker_for(client, "-c", "8", config=config, env={"PYTHONPATH": os.pathsep.join(path)})


@pytest.fixture
def modules(tmp_path):
    return ChangingModules(tmp_path)


def restart_pool(client, **options):
    answers = client.app.control.pool_restart(destination=[NODE], reply=True, timeout=PATIENCE_S, **options)
    assert "ok" in answers[0][NODE]


def assert_answers(results, version):
    """Those of an async and a plain task: each has its own request, and the first alone runs on the loop."""
    for result, on_loop in zip(results, (True, False), strict=True):
        assert result.get(timeout=PATIENCE_S) == [version, result.id, on_loop]


def assert_version(client, version, *, prefix=""):
    """What the tasks say of themselves, those with a decorator and those with a class."""
    decorated = [client.send(f"{prefix}{name}") for name in ("version", "plain_version")]
    assert [result.get(timeout=PATIENCE_S) for result in decorated] == [version] * 2
    assert_answers([client.send(f"{prefix}{name}") for name in ("versioned", "plain_versioned")], version)


def test_a_pool_restart_with_reload_brings_new_code_and_loses_nothing_that_runs(client, modules, key):
    """A body that runs meanwhile ends as it began; what starts afterwards is new, and sees its own request."""
    with modules.worker(client) as worker:
        assert_version(client, "first")
        running = [client.send(name, key) for name in ("versioned", "plain_versioned")]
        client.wait_for_notes("started", 2)
        modules.write("changing", "the second")
        assert_version(client, "first")  # a changed file alone changes nothing
        restart_pool(client, modules=["changing"], reload=True)
        assert_version(client, "the second")
        client.release(key)
        assert_answers(running, "first")
        assert worker.stop(PATIENCE_S) == 0
    assert "Traceback" not in worker.log
    assert (client.unacked, client.queued) == (0, 0)


def test_a_pool_restart_without_reload_keeps_the_code_it_has_and_imports_what_is_new(client, modules, key):
    with modules.worker(client) as worker:
        running = [client.send(name, key) for name in ("versioned", "plain_versioned")]
        client.wait_for_notes("started", 2)
        modules.write("changing", "the second")
        restart_pool(client)
        assert_version(client, "first")
        restart_pool(client, modules=["changing", "late"])
        assert_version(client, "first")
        assert_version(client, "first", prefix="late_")
        client.release(key)
        assert_answers(running, "first")
        assert worker.stop(PATIENCE_S) == 0
    assert "Traceback" not in worker.log
    assert (client.unacked, client.queued) == (0, 0)


# -- elsewhere ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_the_same_tasks_run_under_celerys_own_pools(client, pool):
    with worker_for(client, "-c", "2", pool=pool):
        assert client.send("add", 1, 2).get(timeout=PATIENCE_S) == 3
        assert client.send("autoretry").get(timeout=PATIENCE_S) == 1
        assert client.send("counting", 1).get(timeout=PATIENCE_S) == 2
        with pytest.raises(KeyError, match="why"):
            client.send("fail", "why").get(timeout=PATIENCE_S)

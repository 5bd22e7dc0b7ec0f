"""`celery.contrib.testing`: a worker with the pool in a thread of the test's own process, as suites of apps use it."""

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import celery.contrib.testing.tasks  # noqa: F401  every app has the ping
import pytest
from celery import Celery, signals
from celery.contrib.testing.app import setup_default_app
from celery.contrib.testing.worker import start_worker

import legit_embedding.pool  # noqa: F401  makes `legit_async` known
from legit_embedding.testing.worker import environment_without_site_settings
from tests.waiting import until

# The result backend's call of redis-py, in this process; other tests' workers have processes of their own.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

HERE = Path(__file__).parent
PATIENCE_S = 30
WORKER = {"pool": "legit_async", "ping_task_timeout": PATIENCE_S, "shutdown_timeout": PATIENCE_S}


class Notes:
    """What happens in the worker; it shares this process's memory."""

    def __init__(self):
        self.life = []
        self.started = threading.Event()
        self.cancelled = threading.Event()


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture
def app(redis_url, notes):
    """An app with tasks; which app is current, and logging, are left as they were."""
    own = Celery(
        "start_worker",
        task_cls="legit_embedding.pool.task:AsyncTask",
        broker=redis_url,
        backend=redis_url,
        set_as_current=False,
    )

    @own.task(name="add", shared=False)
    async def add(a, b):
        await asyncio.sleep(0)
        return a + b

    @own.task(name="plain_add", shared=False)
    def plain_add(a, b):
        return a + b

    @own.task(name="fail", shared=False)
    async def fail(message):
        await asyncio.sleep(0)
        raise KeyError(message)

    @own.task(name="where", shared=False)
    async def where():
        return threading.current_thread().name

    @own.task(name="wait", shared=False, acks_late=True)
    async def wait():
        notes.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            notes.cancelled.set()
            raise

    @own.task(name="send_on", shared=False)
    async def send_on():
        return add.delay(1, 2).id

    @asynccontextmanager
    async def lifespan(_app):
        notes.life.append(f"enter {threading.current_thread().name}")
        yield
        notes.life.append(f"exit {threading.current_thread().name}")

    own.conf.legit_async_lifespan = lifespan

    def keep_logging(**_):
        """Celery configures no logging where somebody listens."""

    signals.setup_logging.connect(keep_logging)
    try:
        with setup_default_app(own):
            yield own
            own.backend.remove_pending_result = lambda result: result
            own.backend.result_consumer.stop()
            own.backend.client.close()
    finally:
        signals.setup_logging.disconnect(keep_logging)


def test_it_starts_answers_the_ping_and_stops_several_times_in_a_row(app, notes):
    """Each time with a lifespan of its own, async and plain tasks, and no thread left."""
    before = set(threading.enumerate())
    for number in range(1, 4):
        with start_worker(app, concurrency=10, **WORKER):
            assert app.tasks["where"].delay().get(timeout=PATIENCE_S) == "legit-loop"
            results = [app.tasks[name].delay(1, n) for name in ("add", "plain_add") for n in range(20)]
            assert [result.get(timeout=PATIENCE_S) for result in results] == [*range(1, 21)] * 2
        assert notes.life == ["enter legit-loop", "exit legit-loop"] * number
        until(lambda: set(threading.enumerate()) <= before, f"the end of {set(threading.enumerate()) - before}")


def test_a_failure_reaches_the_test_and_the_worker_goes_on(app):
    with start_worker(app, **WORKER):
        with pytest.raises(KeyError, match="why"):
            app.tasks["fail"].delay("why").get(timeout=PATIENCE_S)
        sent = app.tasks["send_on"].delay().get(timeout=PATIENCE_S)
        assert app.AsyncResult(sent).get(timeout=PATIENCE_S) == 3


def test_without_the_ping_it_starts_too(app):
    with start_worker(app, perform_ping_check=False, **WORKER) as worker:
        assert app.tasks["add"].delay(1, 2).get(timeout=PATIENCE_S) == 3
        assert worker.pool.info["max-concurrency"] == 1


def test_a_body_that_still_runs_at_the_end_is_cancelled_and_its_message_goes_back(app, notes, client):
    """The end of the block is a cold shutdown for Celery; nothing hangs, and the next worker gets the task."""
    before = set(threading.enumerate())
    for _ in range(2):
        notes.started.clear()
        notes.cancelled.clear()
        with start_worker(app, concurrency=2, perform_ping_check=False, **WORKER):
            if not client.exists("sent"):
                app.tasks["wait"].delay()
                client.set("sent", 1)
            assert notes.started.wait(PATIENCE_S)
        assert notes.cancelled.is_set()
        until(lambda: set(threading.enumerate()) <= before, "the end of the threads")
        assert client.llen("celery") == 1
    assert notes.life == ["enter legit-loop", "exit legit-loop"] * 2


def test_an_error_of_the_test_itself_ends_the_worker_as_well(app):
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError), start_worker(app, **WORKER):
        raise ZeroDivisionError
    until(lambda: set(threading.enumerate()) <= before, "the end of the threads")


def test_the_app_is_as_before_once_the_worker_has_ended(app):
    """Tasks run eagerly and are sent; what the pool put around the app's calls is gone."""
    calls = set(vars(app)), set(vars(app.backend))
    with start_worker(app, **WORKER):
        assert app.tasks["add"].delay(1, 2).get(timeout=PATIENCE_S) == 3
    assert "send_task" not in set(vars(app)) - calls[0]
    assert not {"mark_as_done", "mark_as_failure", "store_result"} & (set(vars(app.backend)) - calls[1])
    assert app.tasks["add"].apply((1, 2)).get() == 3


def test_celerys_fixtures_for_pytest_start_it(redis_url, tmp_path):
    """A suite of its own (`fixtures_app.py`) in a process of its own: `celery_worker` and `celery_session_worker`."""
    command = [
        sys.executable,
        "-W",
        "error::RuntimeWarning",
        "-m",
        "pytest",
        "-q",
        "--noconftest",
        "--rootdir",
        tmp_path,
    ]
    command += ["-c", os.devnull, "-p", "no:cacheprovider", "-p", "celery.contrib.pytest", HERE / "fixtures_app.py"]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "FIXTURES_APP_URL": redis_url}
    suite = subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert suite.returncode == 0, suite.stdout + suite.stderr
    assert "4 passed" in suite.stdout


def test_the_pool_runs_tasks_where_the_libraries_of_models_and_services_are_missing():
    command = [sys.executable, HERE / "alone_app.py"]
    env = environment_without_site_settings() | {"POOL_APP_URL": "memory://", "POOL_APP_NOTES": "cache+memory://"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout == "[True, True]\n", done.stderr
    assert done.returncode == 0

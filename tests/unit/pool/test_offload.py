"""The tracer's blocking calls: on a thread when a greenlet can wait for them, where they are everywhere else."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from celery import Celery

from legit_embedding.pool.bridge import Drive, await_
from legit_embedding.pool.offload import STORING, offloading

colour = contextvars.ContextVar("colour", default="none")


class Backend:
    """Notes on which thread it is called, and with which context."""

    def __init__(self):
        self.calls = []

    def _note(self, name):
        thread = threading.current_thread()
        self.calls.append((name, thread.name.split("_")[0], colour.get()))
        return name

    def mark_as_done(self, task_id, result, request=None, store_result=True):
        return self._note("mark_as_done")

    def mark_as_failure(self, task_id, error):
        return self._note("mark_as_failure")

    def mark_as_retry(self, task_id, error):
        return self._note("mark_as_retry")

    def store_result(self, task_id, result, state):
        if result == "broken":
            raise ConnectionError("no store")
        return self._note("store_result")


@pytest.fixture
def backend():
    return Backend()


@pytest.fixture
def app(backend):
    own = Celery("offload", broker="memory://", set_as_current=False)
    own._local.backend = backend
    own.send_task = lambda *_, **__: backend._note("send_task")
    yield own
    own.close()


@pytest.fixture
def executor():
    with ThreadPoolExecutor(2, "io") as own:
        yield own


async def test_inside_a_greenlet_blocking_calls_run_on_a_thread_with_their_context(app, backend, executor):
    def trace():
        colour.set("red")
        backend.mark_as_done("id", 1)
        backend.mark_as_failure("id", KeyError())
        backend.mark_as_retry("id", KeyError())
        backend.store_result("id", 1, "STARTED")
        return app.send_task("name")

    with offloading(app, executor):
        assert await Drive(trace) == "send_task"
    assert backend.calls == [(name, "io", "red") for name in (*STORING, "send_task")]


async def test_the_loop_goes_on_while_a_call_blocks(app, backend, executor):
    """The call ends only after another coroutine has run."""
    other_ran = threading.Event()
    backend.mark_as_failure = lambda *_: other_ran.wait(30)
    with offloading(app, executor):
        waiting = asyncio.ensure_future(drive(lambda: backend.mark_as_failure("id", KeyError())))
        await asyncio.sleep(0)
        other_ran.set()
        assert await waiting is True


async def test_what_a_call_raises_is_raised_in_the_greenlet(app, backend, executor):
    def trace():
        with pytest.raises(ConnectionError, match="no store"):
            backend.store_result("id", "broken", "STARTED")
        return "handled"

    with offloading(app, executor):
        assert await Drive(trace) == "handled"


def test_outside_a_greenlet_calls_stay_where_they_are(app, backend, executor):
    with offloading(app, executor):
        backend.store_result("id", 1, "STARTED")
        app.send_task("name")
    assert backend.calls == [("store_result", "MainThread", "none"), ("send_task", "MainThread", "none")]


@pytest.mark.parametrize(
    ("request_", "store_result", "thread"),
    [
        (None, False, "MainThread"),
        (SimpleNamespace(chord=None), False, "MainThread"),
        (SimpleNamespace(chord="chord"), False, "io"),
        (None, True, "io"),
    ],
)
async def test_an_ignored_result_costs_no_thread_unless_a_chord_waits_for_it(
    app, backend, executor, request_, store_result, thread
):
    with offloading(app, executor):
        await Drive(lambda: backend.mark_as_done("id", 1, request_, store_result))
    assert backend.calls == [("mark_as_done", thread, "none")]


@pytest.mark.parametrize("holding", ["producer", "connection"])
async def test_who_holds_a_producer_sends_from_where_he_is(app, backend, executor, holding):
    with offloading(app, executor):
        await Drive(lambda: app.send_task("name", **{holding: object()}))
    assert backend.calls == [("send_task", "MainThread", "none")]


def test_afterwards_everything_is_as_it_was(app, backend, executor):
    own = app.send_task
    with offloading(app, executor):
        assert set(STORING) <= set(vars(backend))
        assert app.send_task is not own
    assert not set(STORING) & set(vars(backend))
    assert app.send_task is own


def test_a_disabled_backend_is_left_alone(executor):
    app = Celery("offload", broker="memory://", set_as_current=False)
    with offloading(app, executor):
        assert not set(STORING) & set(vars(app.backend))
    app.close()


async def test_an_async_body_may_send_too(app, backend, executor):
    async def body():
        await asyncio.sleep(0)
        return app.send_task("name")

    with offloading(app, executor):
        await Drive(lambda: await_(body()))
    assert backend.calls == [("send_task", "io", "none")]


async def drive(function):
    return await Drive(function)

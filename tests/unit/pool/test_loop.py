"""The loop's thread and the lifespan on it: entered before anything runs, left after everything, never for ever."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from celery import Celery
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import state

from legit_embedding.pool.loop import LoopThread, lifespan_of

PATIENCE_S = 30


@pytest.fixture
def app():
    own = Celery("loop", broker="memory://", set_as_current=False)
    yield own
    own.close()


@pytest.fixture(autouse=True)
def _no_signal(monkeypatch):
    monkeypatch.setattr(state, "should_stop", None)
    monkeypatch.setattr(state, "should_terminate", None)


@pytest.fixture
def make(app):
    """Builds loop threads, and ends them after the test."""
    made = []
    with ThreadPoolExecutor(1) as executor:

        def build(lifespan=None, on_death=lambda: None):
            app.conf.legit_async_lifespan = lifespan
            thread = LoopThread(app, executor=executor, on_death=on_death)
            made.append(thread)
            return thread

        yield build
        for thread in made:
            thread.stop(PATIENCE_S)
            thread.loop.close()


def test_the_lifespan_is_entered_and_left_on_the_loops_thread(make, app):
    steps = []

    @asynccontextmanager
    async def lifespan(given):
        steps.append(("enter", threading.current_thread().name, given is app))
        yield
        steps.append(("exit", threading.current_thread().name, asyncio.get_running_loop().is_running()))

    thread = make(lifespan)
    thread.start()
    assert steps == [("enter", "legit-loop", True)]
    thread.stop(PATIENCE_S)
    assert steps[1:] == [("exit", "legit-loop", True)]
    assert not thread.alive


def test_without_a_lifespan_the_loop_just_runs(make):
    thread = make()
    thread.start()
    called = threading.Event()
    assert thread.call(called.set)
    assert called.wait(PATIENCE_S)


def test_the_setting_may_name_the_lifespan(app):
    app.conf.legit_async_lifespan = "contextlib:nullcontext"
    assert lifespan_of(app).__name__ == "nullcontext"


def test_the_app_is_current_on_the_loops_thread(make, app):
    seen = []

    @asynccontextmanager
    async def lifespan(_app):
        from celery import current_app

        seen.append(current_app._get_current_object())
        yield

    make(lifespan).start()
    assert seen == [app]


@pytest.mark.parametrize("setting", [None, "no_such_module:lifespan"])
def test_a_start_that_fails_raises_the_real_error(make, setting):
    @asynccontextmanager
    async def lifespan(_app):
        raise ModuleNotFoundError("no_such_module")
        yield

    deaths = []
    thread = make(setting or lifespan, on_death=lambda: deaths.append("death"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        thread.start()
    assert not thread.alive
    assert deaths == []


def test_a_start_that_ends_in_sys_exit_is_an_error(make):
    @asynccontextmanager
    async def lifespan(_app):
        raise SystemExit(0)
        yield

    with pytest.raises(RuntimeError, match="SystemExit"):
        make(lifespan).start()


@pytest.mark.parametrize(("flag", "raised"), [("should_stop", WorkerShutdown), ("should_terminate", WorkerTerminate)])
def test_a_signal_calls_a_start_off(make, monkeypatch, flag, raised):
    steps = []

    @asynccontextmanager
    async def lifespan(_app):
        monkeypatch.setattr(state, flag, 0)
        try:
            await asyncio.Event().wait()
        finally:
            steps.append("cleaned up")
        yield

    thread = make(lifespan)
    with pytest.raises(raised):
        thread.start()
    assert steps == ["cleaned up"]
    assert not thread.alive


def test_a_lifespan_that_does_not_end_is_left_behind(make, caplog):
    release = asyncio.Event()

    @asynccontextmanager
    async def lifespan(_app):
        yield
        await release.wait()

    thread = make(lifespan)
    thread.start()
    thread.stop(0)
    assert thread.alive
    assert "left behind" in caplog.text
    thread.call(release.set)


def test_a_lifespan_that_fails_at_its_end_is_logged_and_is_no_death(make, caplog):
    deaths = []

    @asynccontextmanager
    async def lifespan(_app):
        yield
        raise ValueError("cannot flush")

    thread = make(lifespan, on_death=lambda: deaths.append("death"))
    thread.start()
    thread.stop(PATIENCE_S)
    assert "cannot flush" in caplog.text
    assert deaths == []


def test_a_loop_that_ends_by_itself_is_a_death_told_before_what_is_left_is_cancelled(make, caplog):
    steps, told = [], threading.Event()

    async def stubborn():
        try:
            asyncio.get_running_loop().stop()
            await asyncio.Event().wait()
        finally:
            steps.append("cancelled")

    def die():
        steps.append("death")
        told.set()

    thread = make(on_death=die)
    thread.start()
    thread.call(lambda: setattr(thread, "kept", thread.loop.create_task(stubborn())))
    assert told.wait(PATIENCE_S)
    thread._thread.join(PATIENCE_S)
    assert steps == ["death", "cancelled"]
    assert "ended with an error" in caplog.text


def test_once_the_loop_is_gone_calls_are_refused_and_a_second_stop_does_nothing(make):
    thread = make()
    thread.start()
    thread.stop(PATIENCE_S)
    assert not thread.call(print)
    thread.stop(PATIENCE_S)


def test_what_still_runs_is_cancelled_after_the_lifespan(make):
    steps = []

    async def task():
        try:
            await asyncio.Event().wait()
        finally:
            steps.append("task cancelled")

    @asynccontextmanager
    async def lifespan(_app):
        kept = asyncio.create_task(task())
        yield
        steps.append(f"exit, task {'done' if kept.done() else 'runs'}")

    thread = make(lifespan)
    thread.start()
    thread.stop(PATIENCE_S)
    assert steps == ["exit, task runs", "task cancelled"]

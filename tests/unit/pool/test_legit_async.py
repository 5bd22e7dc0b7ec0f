"""The pool as Celery's worker drives it: a real hub and semaphore, and bodies that the test holds in its hand."""

import asyncio
import functools
import gc
import json
import os
import select
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import pytest
from celery import Celery, _state
from celery.exceptions import ImproperlyConfigured, SoftTimeLimitExceeded, TaskError, Terminated, WorkerLostError
from celery.worker import state
from kombu.asynchronous import Hub
from kombu.asynchronous.semaphore import LaxBoundedSemaphore

from legit_embedding import threads as threads_module
from legit_embedding.pool import compat
from legit_embedding.pool import execution as execution_module
from legit_embedding.pool import legit_async as pool_module
from legit_embedding.pool.bridge import await_
from legit_embedding.pool.legit_async import TaskPool
from legit_embedding.testing.gate import Gate

PATIENCE_S = 30


class Report:
    """What Celery is told of one job, and where."""

    def __init__(self):
        self.pid = None
        self.told = []
        self.threads = set()

    def accept(self, pid, accepted_s):
        assert accepted_s <= time.monotonic()
        self.pid = pid

    def callback(self, kind):
        def called(*args):
            self.told.append((kind, *args))
            self.threads.add(threading.get_ident())

        return called

    @property
    def error(self):
        (kind, info) = self.told[-1]
        assert kind == "error"
        return info.exception


class Worker:
    """Celery's part: this thread is the consumer's."""

    def __init__(self, app, limit=10, *, hub=True, **options):
        self.hub = Hub() if hub else None
        self.semaphore = LaxBoundedSemaphore(limit)
        self.pool = TaskPool(limit, app=app, semaphore=self.semaphore, threads=not hub, putlocks=False, **options)
        self.pool.start()
        if self.hub is not None:
            self.pool.register_with_event_loop(self.hub)

    def apply(self, body, kind="async", **options):
        """Hands over one task, as a request does that has a slot."""
        report = Report()
        options = {"accept_callback": report.accept, **options}
        start = functools.partial(
            self.pool.apply_async,
            body if kind == "plain" else lambda _name: await_(body()),
            (kind,),
            callback=report.callback("done"),
            error_callback=report.callback("error"),
            timeout_callback=report.callback("timeout"),
            **options,
        )
        self.semaphore.acquire(start)
        return report

    def until(self, condition):
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s
            self.hub.run_once()

    def until_told(self, *reports):
        self.until(lambda: all(report.told for report in reports))


@pytest.fixture(autouse=True)
def _worker_state(monkeypatch):
    monkeypatch.setattr(state, "should_stop", None)
    monkeypatch.setattr(state, "should_terminate", None)
    before = _state._task_stack.__ident_func__
    yield
    _state._task_stack.__ident_func__ = before


@pytest.fixture(autouse=True)
def _celery(monkeypatch):
    """As from Celery 5.7 on; what differs before is in the tests of `compat`."""
    monkeypatch.setattr(compat, "TIMEOUT_CALLBACK_TELLS_ALL", True)


@pytest.fixture
def app():
    own = Celery("pool", broker="memory://", set_as_current=False)
    own.conf.legit_async_gc_threshold = 0  # a full collection at each start would take longer than the tests
    own.tasks["async"] = SimpleNamespace(is_async=True, request_stack=SimpleNamespace())
    own.tasks["plain"] = SimpleNamespace(is_async=False, request_stack=SimpleNamespace())
    yield own
    own.close()


@pytest.fixture
def start(app):
    """Starts workers' pools, and terminates them after the test."""
    started = []

    def build(*args, **options):
        started.append(Worker(app, *args, **options))
        return started[-1]

    yield build
    for worker in started:
        worker.pool.terminate()
        if worker.hub is not None:
            worker.hub.close()


@pytest.fixture
def gate():
    own = Gate()
    yield own
    own.release()


class Body:
    """A body that waits until it is told to end; on which thread, and what came to it, stands in `seen`."""

    def __init__(self, *, stubborn=False, value="value"):
        self.running = threading.Event()
        self.seen = []
        self._stubborn = stubborn
        self._value = value
        self._end = None
        self._loop = None

    async def __call__(self):
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self.running.set()
        while True:
            try:
                await self._end.wait()
            except BaseException as error:
                self.seen.append(type(error))
                if not self._stubborn:
                    raise
            else:
                return self._value

    def end(self):
        self._loop.call_soon_threadsafe(self._end.set)

    def await_start(self):
        assert self.running.wait(PATIENCE_S)


async def at_once():
    return "value"


async def fail(error):
    raise error


# -- one report for each job, on the consumer's thread -----------------------------------------------------------------


@pytest.mark.parametrize(("body", "kind"), [(at_once, "async"), (lambda _name: "value", "plain")])
def test_a_result_is_reported_once_on_the_consumers_thread(start, body, kind):
    worker = start()
    report = worker.apply(body, kind)
    assert report.pid is not None
    assert report.told == []
    worker.until_told(report)
    assert report.told == [("done", "value")]
    assert report.threads == {threading.get_ident()}


@pytest.mark.parametrize(
    ("raised", "reported"),
    [
        (KeyError("why"), KeyError),
        (SystemExit(3), WorkerLostError),
        (KeyboardInterrupt(), WorkerLostError),
        (asyncio.CancelledError(), TaskError),
    ],
)
@pytest.mark.parametrize("kind", ["async", "plain"])
def test_whatever_a_target_raises_is_reported_once_and_the_pool_goes_on(start, raised, reported, kind):
    def target(_name):
        raise raised

    worker = start()
    report = worker.apply((lambda: fail(raised)) if kind == "async" else target, kind)
    worker.until_told(report)
    assert isinstance(report.error, reported)
    after = worker.apply(at_once)
    worker.until_told(after)
    assert len(report.told) == 1


def test_a_body_that_reports_an_exception_that_cannot_be_pickled_is_reported(start):
    class Unpicklable(Exception):  # noqa: N818
        def __reduce__(self):
            raise TypeError("no")

    worker = start()
    report = worker.apply(lambda: fail(Unpicklable("why")))
    worker.until_told(report)
    assert "why" in str(report.told[0][1].exception)


def test_many_jobs_get_one_report_each(start):
    worker = start(300)
    reports = [worker.apply(at_once) for _ in range(150)]
    reports += [worker.apply(lambda _name: "value", "plain") for _ in range(150)]
    worker.until_told(*reports)
    assert [report.told for report in reports] == [[("done", "value")]] * 300
    assert worker.semaphore.value == 300
    assert worker.pool.info["served"] == 300


def test_a_callback_that_fails_is_logged_and_frees_its_slot(start, caplog):
    worker = start(1)

    def broken(_result):
        raise RuntimeError("ack failed")

    target = lambda _name: await_(at_once())  # noqa: E731
    worker.semaphore.acquire(functools.partial(worker.pool.apply_async, target, ("async",), callback=broken))
    report = worker.apply(at_once)
    worker.until_told(report)
    assert "ack failed" in caplog.text


def test_a_task_that_cannot_be_started_is_reported(start, monkeypatch):
    worker = start()

    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(worker.pool._threads, "submit", no_thread)
    report, after = worker.apply(lambda _name: "value", "plain"), worker.apply(at_once)
    worker.until_told(report, after)
    assert isinstance(report.error, WorkerLostError)
    assert after.told == [("done", "value")]


def test_without_a_hub_callbacks_come_from_where_the_task_ran(start):
    """As with Celery's threads pool: brokers whose transport knows no event loop."""
    worker = start(hub=False)
    told = threading.Event()
    report = worker.apply(at_once)
    while not report.told:
        told.wait(0.005)
    assert report.told == [("done", "value")]


# -- interruptions -----------------------------------------------------------------------------------------------------


def test_terminate_cancels_the_body_once_though_celery_asks_twice(start):
    worker, body = start(), Body()
    report = worker.apply(body)
    body.await_start()
    job = worker.pool._jobs[report.pid.job_id]
    worker.pool.terminate_job(report.pid, 15)
    job.terminate(15)
    worker.until_told(report)
    assert isinstance(report.error, Terminated)
    assert body.seen == [asyncio.CancelledError]


def test_celery_is_told_this_processs_id_and_a_plain_number_ends_nothing(start):
    worker, body = start(), Body()
    report = worker.apply(body)
    body.await_start()
    assert report.pid == os.getpid()
    assert json.dumps(report.pid) == str(os.getpid())
    worker.pool.terminate_job(os.getpid(), 15)
    body.end()
    worker.until_told(report)
    assert [kind for kind, *_ in report.told] == ["done"]


def test_a_second_interruption_does_not_hit_the_cleaning_up(start):
    worker, ended = start(), []
    running, cleaning, finish = threading.Event(), threading.Event(), asyncio.Event()

    async def body():
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await finish.wait()
            ended.append("cleaned up")

    report = worker.apply(body)
    assert running.wait(PATIENCE_S)
    worker.pool.terminate_job(report.pid, 15)
    assert cleaning.wait(PATIENCE_S)
    worker.pool.terminate_job(report.pid, 15)
    worker.pool._loop.call(finish.set)
    worker.until_told(report)
    assert isinstance(report.error, Terminated)
    assert ended == ["cleaned up"]


def test_a_job_whose_task_somebody_else_cancels_before_its_first_step_has_an_outcome(start):
    worker = start()

    async def cancel_everybody():
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if task.get_name().startswith("legit-job"):
                task.cancel()
        return "value"

    reports = [worker.apply(cancel_everybody), worker.apply(at_once), worker.apply(at_once)]
    worker.until_told(*reports)
    assert reports[0].told == [("done", "value")]
    assert all(len(report.told) == 1 for report in reports)


def test_a_job_that_is_terminated_before_it_starts_never_starts(start):
    worker = start()
    started = []

    async def body():
        started.append("body")

    def accept(pid, _accepted_s):
        worker.pool.terminate_job(pid, 9)

    report = worker.apply(body, accept_callback=accept)
    worker.until_told(report)
    assert isinstance(report.error, Terminated)
    assert started == []


def test_a_plain_job_that_is_terminated_before_it_is_handed_to_a_free_thread_never_starts(start):
    """The loop sees the interruption before the job has anything that it could cancel."""
    worker, started = start(), []
    worker.until_told(worker.apply(lambda _name: "value", "plain"))
    worker.until(lambda: ", 0 calls" in repr(worker.pool._threads))

    def accept(pid, _accepted_s):
        worker.pool.terminate_job(pid, 9)
        seen = threading.Event()
        worker.pool._loop.call(seen.set)
        assert seen.wait(PATIENCE_S)

    report = worker.apply(lambda _name: started.append("body"), "plain", accept_callback=accept)
    worker.until_told(report)
    assert isinstance(report.error, Terminated)
    assert started == []


def test_a_body_that_swallows_its_cancellation_and_returns_has_succeeded(start):
    worker = start()
    running = threading.Event()

    async def body():
        running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "all the same"

    report = worker.apply(body)
    assert running.wait(PATIENCE_S)
    worker.pool.terminate_job(report.pid, 15)
    worker.until_told(report)
    assert report.told == [("done", "all the same")]


def test_a_body_that_swallows_its_cancellation_and_stays_is_reported_without_it(start, monkeypatch):
    """Its slot is free; what it returns at last is told to nobody."""
    monkeypatch.setattr(execution_module, "GRACE_S", 0.01)
    worker, body = start(1), Body(stubborn=True)
    report = worker.apply(body)
    body.await_start()
    worker.pool.terminate_job(report.pid, 15)
    worker.until_told(report)
    assert isinstance(report.error, Terminated)
    body.end()
    after = worker.apply(at_once)
    worker.until_told(after)
    assert len(report.told) == 1


def test_the_soft_limit_is_an_exception_in_the_body_and_the_body_goes_on(start):
    worker = start()

    async def body():
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.Event().wait()
        except SoftTimeLimitExceeded:
            await asyncio.sleep(0)
            return asyncio.current_task().cancelling()

    report = worker.apply(body, soft_timeout=0.01)
    worker.until(lambda: len(report.told) == 2)
    assert report.told == [("timeout", True, 0.01), ("done", 0)]


def test_the_hard_limit_cancels_and_is_told_as_a_timeout(start):
    worker, body = start(), Body()
    report = worker.apply(body, timeout=0.01)
    worker.until_told(report)
    assert report.told == [("timeout", False, 0.01)]
    assert body.seen == [asyncio.CancelledError]


def test_both_limits_in_turn(start):
    """A body that ignores the soft limit meets the hard one."""
    worker = start()
    seen = []

    async def body():
        try:
            await asyncio.Event().wait()
        except SoftTimeLimitExceeded:
            seen.append("soft")
        await asyncio.Event().wait()

    report = worker.apply(body, soft_timeout=0.01, timeout=0.1)
    worker.until(lambda: len(report.told) == 2)
    assert report.told == [("timeout", True, 0.01), ("timeout", False, 0.1)]
    assert seen == ["soft"]


def test_the_workers_own_limits_count_where_the_task_has_none(start):
    worker = start(timeout=0.01)
    report = worker.apply(Body())
    worker.until_told(report)
    assert report.told == [("timeout", False, 0.01)]


@pytest.mark.parametrize(
    ("of_call", "of_task", "told"),
    [
        ((0.01, None), 1000.0, 0.01),
        ((None, None), 0.01, 0.01),
        (None, 0.01, 0.01),
    ],
)
def test_the_limits_are_those_of_the_call_else_those_that_the_task_has_now(app, start, of_call, of_task, told):
    """What Celery passes is what the task had when the worker connected: its `time_limit` command would do nothing."""
    worker = start()
    app.tasks["async"].soft_time_limit = None
    app.tasks["async"].time_limit = of_task
    report = Report()
    worker.pool.apply_async(
        lambda *_: await_(Body()()),
        ("async", "id", {"timelimit": of_call}),
        accept_callback=report.accept,
        timeout_callback=report.callback("timeout"),
        error_callback=report.callback("error"),
        timeout=2000.0,
    )
    worker.until_told(report)
    assert report.told == [("timeout", False, told)]


def test_a_plain_task_beyond_its_limit_is_left_behind_and_another_thread_takes_its_place(app, start, gate):
    app.conf.legit_async_threads = 1
    worker = start()
    gate.hold()
    stuck = worker.apply(lambda _name: gate.enter(), "plain", timeout=0.01)
    worker.until_told(stuck)
    assert stuck.told == [("timeout", False, 0.01)]
    after = worker.apply(lambda _name: "value", "plain")
    worker.until_told(after)
    assert after.told == [("done", "value")]


def test_a_limit_does_not_count_the_wait_for_a_thread(app, start, gate):
    app.conf.legit_async_threads = 1
    worker = start()
    gate.hold()
    first = worker.apply(lambda _name: gate.enter(), "plain")
    second = worker.apply(lambda _name: "value", "plain", timeout=0.2)
    passed = worker.apply(Body(), timeout=0.25)  # told when the limit would have passed
    worker.until_told(passed)
    assert second.told == []
    gate.release()
    worker.until_told(first, second)
    assert second.told == [("done", "value")]


# -- size --------------------------------------------------------------------------------------------------------------


def test_what_exceeds_the_limit_waits_in_the_semaphore(start):
    worker = start(2)
    bodies = [Body() for _ in range(3)]
    reports = [worker.apply(body) for body in bodies]
    bodies[0].await_start()
    bodies[1].await_start()
    assert [report.pid is None for report in reports] == [False, False, True]
    bodies[0].end()
    worker.until_told(reports[0])
    assert reports[2].pid is not None


def test_grow_and_shrink_change_the_limit(start):
    worker = start(2)
    worker.pool.grow(3)
    assert (worker.pool.limit, worker.semaphore.initial_value, worker.pool.num_processes) == (5, 5, 5)
    worker.pool.shrink(4)
    assert (worker.pool.limit, worker.semaphore.initial_value) == (1, 1)
    worker.pool.shrink(4)
    assert worker.pool.limit == 0


def test_after_a_lost_connection_running_tasks_keep_their_slots(start):
    worker, body = start(1), Body()
    worker.apply(body)
    body.await_start()
    worker.hub.reset()
    worker.semaphore.clear()
    worker.pool.flush()
    worker.pool.register_with_event_loop(worker.hub)
    second = worker.apply(at_once)
    assert second.pid is None
    body.end()
    worker.until_told(second)


def test_the_figures_are_those_that_readers_expect(start):
    worker, body = start(3), Body()
    worker.apply(body)
    info = worker.pool.info
    assert {name: info[name] for name in ("max-concurrency", "processes", "in-flight", "served", "timeouts")} == {
        "max-concurrency": 3,
        "processes": [os.getpid()],
        "in-flight": 1,
        "served": 0,
        "timeouts": [0, 0],
    }


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_a_warm_stop_returns_when_every_job_is_done_and_reported(start, gate):
    """Acks included: the hub no longer runs, so the pool reports by itself."""
    worker = start()
    gate.hold()
    bodies = [Body() for _ in range(3)]
    reports = [worker.apply(body) for body in bodies]
    reports.append(worker.apply(lambda _name: gate.enter(), "plain"))

    def finish():
        for body in bodies:
            body.await_start()
            body.end()
        gate.release()

    threading.Thread(target=finish).start()
    worker.pool.stop()
    assert [report.told[0][0] for report in reports] == ["done"] * 4
    assert {thread for report in reports for thread in report.threads} == {threading.get_ident()}


def test_a_warm_stop_while_nothing_has_started_runs_everything(start):
    worker = start(50)
    reports = [worker.apply(at_once) for _ in range(50)]
    worker.pool.stop()
    assert [report.told for report in reports] == [[("done", "value")]] * 50


def test_terminate_interrupts_everything_and_reports_nothing_so_that_messages_go_back(start, gate):
    worker = start()
    gate.hold()
    body = Body()
    reports = [worker.apply(body), worker.apply(lambda _name: gate.enter(), "plain")]
    body.await_start()
    worker.pool.terminate()
    assert [report.told for report in reports] == [[], []]
    assert body.seen == [asyncio.CancelledError]


def test_a_cold_stop_does_not_wait_for_a_body_that_blocks_the_loop(app, start, gate, monkeypatch):
    app.conf.legit_async_lifespan_exit_timeout_s = 0.01
    monkeypatch.setattr(pool_module, "COLD_TIMEOUT_S", 0.01)
    worker = start()
    gate.hold()

    async def body():
        gate.enter()

    report = worker.apply(body)
    state.should_terminate = True
    worker.pool.stop()
    assert report.told == []


def test_a_slot_that_a_cold_stop_frees_starts_nothing_new(start):
    """What waited for it is not even accepted: an early ack would lose it."""
    worker, body = start(1), Body()
    running = worker.apply(body)
    waiting = worker.apply(at_once)
    body.await_start()
    worker.pool.terminate_job(running.pid, 15)
    state.should_terminate = True
    worker.pool.stop()
    assert isinstance(running.error, Terminated)
    assert (waiting.pid, waiting.told) == (None, [])


def test_a_slot_that_is_free_when_another_job_is_terminated_goes_to_nobody_before_the_hub_runs(start):
    """A cold shutdown terminates job after job before it says that it stops; a revoke goes on with the hub."""
    worker = start(2)
    done, doomed = Body(), Body()
    reports = [worker.apply(done), worker.apply(doomed)]
    waiting = worker.apply(at_once)
    done.await_start()
    doomed.await_start()
    done.end()
    worker.pool._waker.wait(PATIENCE_S)
    worker.pool.terminate_job(reports[1].pid, 15)
    assert reports[0].told == [("done", "value")]
    assert waiting.pid is None
    worker.until_told(waiting)


def test_once_a_signal_has_asked_for_a_stop_what_waits_is_not_accepted(start):
    """The consumer sees the signal only at its next turn; a slot that is freed until then starts nothing."""
    worker, body = start(1), Body()
    running, waiting = worker.apply(body), worker.apply(at_once)
    body.await_start()
    state.should_stop = 0
    body.end()
    worker.until_told(running)
    assert worker.semaphore.value == 0
    assert (waiting.pid, waiting.told) == (None, [])


def test_after_the_stop_nothing_is_accepted_and_a_second_stop_does_nothing(start):
    worker = start()
    worker.pool.stop()
    late = worker.apply(at_once)
    assert (late.pid, late.told) == (None, [])
    worker.pool.stop()
    worker.pool.terminate()


def test_a_dead_loop_fails_every_job_and_asks_the_worker_to_stop_with_a_failure(start, gate, caplog):
    worker = start()
    gate.hold()
    bodies = [Body(), Body()]
    reports = [worker.apply(body) for body in bodies]
    reports.append(worker.apply(lambda _name: gate.enter(), "plain"))
    for body in bodies:
        body.await_start()
    worker.pool._loop.call(worker.pool._loop.loop.stop)
    worker.until_told(*reports)
    assert [type(report.error) for report in reports] == [WorkerLostError] * 3
    assert state.should_stop == 1
    assert "the worker stops" in caplog.text
    late = worker.apply(at_once)
    assert late.pid is None
    worker.pool.stop()
    assert [len(report.told) for report in reports] == [1, 1, 1]


# -- a cold shutdown's signal between any two lines --------------------------------------------------------------------


WATCHED = {pool_module.__file__, execution_module.__file__, threads_module.__file__}


class Interruption:
    """Runs `handler` here, as a signal does, before the `number`-th line that `functions` of the pool execute."""

    def __init__(self, number, functions, handler):
        self._left = number
        self._functions = functions
        self._handler = handler
        self.before = lambda: None
        self.happened = False

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._enter_frame)
        return self

    def __exit__(self, *_):
        sys.settrace(self._before)

    def _enter_frame(self, frame, _event, _arg):
        code = frame.f_code
        ours = code.co_filename in WATCHED and code.co_name in self._functions
        return self._line if ours and not self.happened else None

    def _line(self, _frame, event, _arg):
        if event == "line" and not self.happened:
            self._left -= 1
            if self._left == 0:
                self.happened = True
                self.before()
                self._handler()
        return self._line


def shut_down_cold(worker, reports):
    """As Celery's handler: cancels what was accepted and stops the pool, before the interrupted line goes on."""
    for report in reports:
        if report.pid is not None:
            worker.pool.terminate_job(report.pid, 15)
    state.should_terminate = True
    worker.pool.stop()


def until_or_so(condition):
    """Gives threads the time for it, where it can come to pass."""
    deadline_s = time.monotonic() + 0.02
    while not condition() and time.monotonic() < deadline_s:
        pass


def shut_down_softly(worker, reports):
    """The same, after a wait that is long enough for whatever can end."""
    worker.pool.wait_until_idle(1000.0)
    shut_down_cold(worker, reports)


def interrupted_at_every_line(start, functions, scenario, handler=shut_down_cold):
    """Runs the scenario once for each line, and once without an interruption; how many lines there were."""
    number = 0
    happened = True
    while happened:
        number += 1
        state.should_terminate = None
        worker = start()
        reports = []
        interruption = Interruption(number, functions, lambda: handler(worker, reports))  # noqa: B023
        scenario(worker, reports, interruption)
        happened = interruption.happened
        if happened:
            assert all(len(report.told) <= 1 for report in reports)
            assert worker.pool._loop is None
    return number


@pytest.fixture
def no_way_out(monkeypatch):
    """The bounds that would end a wait for something that cannot come are out of reach: it must not need them."""
    monkeypatch.setattr(pool_module, "COLD_TIMEOUT_S", 1000.0)
    monkeypatch.setattr(execution_module, "GRACE_S", 1000.0)


@pytest.mark.usefixtures("no_way_out")
def test_a_signal_at_any_line_of_an_apply_neither_hangs_nor_reports_twice(start):
    def scenario(worker, reports, interruption):
        running = Report()
        reports.append(running)
        with interruption:
            worker.pool.apply_async(
                lambda _name: await_(Body()()),
                ("async",),
                accept_callback=running.accept,
                callback=running.callback("done"),
                error_callback=running.callback("error"),
                timeout_callback=running.callback("timeout"),
            )
        if not interruption.happened:
            shut_down_cold(worker, reports)
            assert isinstance(running.error, Terminated)

    assert interrupted_at_every_line(start, {"on_apply"}, scenario) > 15


@pytest.mark.usefixtures("no_way_out")
def test_a_signal_at_any_line_of_an_apply_to_a_free_thread_neither_hangs_nor_reports_twice(start, gate):
    def scenario(worker, reports, interruption):
        gate.release()
        worker.until_told(worker.apply(lambda _name: "value", "plain"))
        deadline_s = time.monotonic() + PATIENCE_S
        while ", 0 calls" not in repr(worker.pool._threads):
            assert time.monotonic() < deadline_s
        gate.hold()
        running = Report()
        reports.append(running)
        with interruption:
            worker.pool.apply_async(
                lambda _name: gate.enter(),
                ("plain",),
                accept_callback=running.accept,
                callback=running.callback("done"),
                error_callback=running.callback("error"),
                timeout_callback=running.callback("timeout"),
            )
        if not interruption.happened:
            shut_down_cold(worker, reports)
            assert isinstance(running.error, Terminated)

    assert interrupted_at_every_line(start, {"on_apply", "start_at_once", "offer"}, scenario) > 25


@pytest.mark.usefixtures("no_way_out")
def test_a_soft_shutdown_at_any_line_of_an_apply_to_a_free_thread_disowns_no_body_that_runs(start, gate):
    """What has run is reported, and so acknowledged; what has not, goes back."""

    def scenario(worker, reports, interruption):
        worker.until_told(worker.apply(lambda _name: "value", "plain"))
        deadline_s = time.monotonic() + PATIENCE_S
        while ", 0 calls" not in repr(worker.pool._threads):
            assert time.monotonic() < deadline_s
        # The body begins before the signal, where it can, and ends once the pool waits for it, and not before.
        gate.hold()
        interruption.before = lambda: until_or_so(lambda: ran)
        wait = worker.pool._waker.wait
        worker.pool._waker.wait = lambda timeout_s: (gate.release(), wait(timeout_s))
        ran, running = [], Report()
        reports.append(running)

        def body(_name):
            ran.append("body")
            gate.enter()

        with interruption:
            worker.pool.apply_async(
                body,
                ("plain",),
                accept_callback=running.accept,
                callback=running.callback("done"),
                error_callback=running.callback("error"),
                timeout_callback=running.callback("timeout"),
            )
        if not interruption.happened:
            shut_down_softly(worker, reports)
        gate.release()
        assert [told for told in running.told if told[0] == "done"] == [("done", None)] * len(ran)

    functions = {"on_apply", "start_at_once", "offer"}
    assert interrupted_at_every_line(start, functions, scenario, shut_down_softly) > 25


@pytest.mark.usefixtures("no_way_out")
def test_a_signal_at_any_line_of_a_report_neither_hangs_nor_reports_twice(start):
    """The interrupted report itself is made, by the handler or after it."""

    def scenario(worker, reports, interruption):
        still_running = Body()
        done = worker.apply(at_once)
        reports += [done, worker.apply(still_running)]
        still_running.await_start()
        deadline_s = time.monotonic() + PATIENCE_S
        with interruption:
            while not done.told and not interruption.happened:
                assert time.monotonic() < deadline_s
                worker.hub.run_once()
        assert done.told == [("done", "value")]
        if not interruption.happened:
            shut_down_cold(worker, reports)
        assert isinstance(reports[1].error, Terminated)

    assert interrupted_at_every_line(start, {"_on_wake", "_drain"}, scenario) > 8


@pytest.mark.usefixtures("no_way_out")
def test_a_signal_at_any_line_of_a_warm_stop_neither_hangs_nor_reports_twice(start):
    def scenario(worker, reports, interruption):
        body = Body()
        reports.append(worker.apply(body))
        body.await_start()
        body.end()
        with interruption:
            worker.pool.stop()
        assert len(reports[0].told) == 1

    assert interrupted_at_every_line(start, {"on_stop", "_await_jobs", "_close"}, scenario) > 15


# -- a bounded warm stop, a soft one, and a worker that has done enough ------------------------------------------------


def test_a_warm_stop_beyond_its_time_gives_back_what_runs(app, start, gate, caplog):
    """Nothing is reported, so that the messages go back; what was done in time is."""
    app.conf.legit_async_drain_timeout_s = 0.01
    worker, body = start(), Body()
    gate.hold()
    done = worker.apply(at_once)
    reports = [worker.apply(body), worker.apply(lambda _name: gate.enter(), "plain")]
    body.await_start()
    worker.pool.stop()
    assert done.told == [("done", "value")]
    assert [report.told for report in reports] == [[], []]
    assert body.seen == [asyncio.CancelledError]
    assert "2 tasks still run after 0.01 s" in caplog.text


def test_a_warm_stop_within_its_time_takes_no_longer_than_the_work(app, start):
    app.conf.legit_async_drain_timeout_s = 1000.0
    worker, body = start(), Body()
    report = worker.apply(body)
    body.await_start()
    body.end()
    worker.pool.stop()
    assert report.told == [("done", "value")]


def test_waiting_until_idle_ends_with_the_work_and_reports_it(start):
    worker, body = start(), Body()
    report = worker.apply(body)
    body.await_start()
    threading.Timer(0.01, body.end).start()
    worker.pool.wait_until_idle(1000.0)
    assert report.told == [("done", "value")]


def test_waiting_until_idle_ends_with_its_time_and_starts_nothing_that_waits(start):
    worker, body = start(2), Body()
    running, done = worker.apply(body), worker.apply(at_once)
    waiting = worker.apply(at_once)
    body.await_start()
    worker.pool.wait_until_idle(0.05)
    assert (running.told, done.told) == ([], [("done", "value")])
    assert (waiting.pid, waiting.told) == (None, [])


def test_after_as_many_tasks_as_a_child_may_do_the_worker_is_asked_to_stop(start, caplog):
    worker = start(maxtasksperchild=2)
    worker.until_told(worker.apply(at_once))
    assert state.should_stop is None
    worker.until_told(worker.apply(at_once))
    worker.until(lambda: state.should_stop is not None)
    assert state.should_stop == 0
    assert "worker_max_tasks_per_child is 2" in caplog.text
    assert worker.pool.info["max-tasks-per-child"] == 2


def test_its_plain_tasks_are_watched(start):
    before = set(threading.enumerate())
    start()
    assert "legit-task-watch" in {each.name for each in set(threading.enumerate()) - before}


def test_a_memory_limit_below_what_the_worker_takes_stops_the_start(app):
    before = set(threading.enumerate())
    pool = TaskPool(1, app=app, max_memory_per_child=1000)
    with pytest.raises(ImproperlyConfigured, match="worker_max_memory_per_child is 1000 KiB"):
        pool.start()
    assert set(threading.enumerate()) <= before  # of which those of earlier tests may be ending


def test_what_is_done_while_the_consumer_reports_is_reported_with_the_rest_and_wakes_nobody(start):
    worker = start()
    gates = [Gate() for _ in range(2)]
    for gate in gates:
        gate.hold()
    told = []

    def first_is_told(_):
        told.append("first")
        gates[1].release()
        deadline_s = time.monotonic() + PATIENCE_S
        while not worker.pool._done:  # the second one's thread has reported it
            assert time.monotonic() < deadline_s
            threading.Event().wait(0.001)

    for gate, callback in zip(gates, (first_is_told, lambda _: told.append("second")), strict=True):
        worker.pool.apply_async(lambda _, gate=gate: gate.enter(), ("plain",), callback=callback)
    for gate in gates:
        gate.await_arrivals(1)
    gates[0].release()
    worker.until(lambda: told)
    assert told == ["first", "second"]
    assert select.select([worker.pool._waker], [], [], 0)[0] == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_is_done_around_the_rearming_is_never_left_until_the_next_wake(start, monkeypatch, moment):
    worker = start()
    rearm = worker.pool._waker.rearm
    told = []

    def rearm_while_another_is_done():
        monkeypatch.setattr(worker.pool._waker, "rearm", rearm)
        if moment == "after":
            rearm()
        worker.pool._tell(told.append, ("between",))
        if moment == "before":
            rearm()

    monkeypatch.setattr(worker.pool._waker, "rearm", rearm_while_another_is_done)
    worker.pool._tell(told.append, ("first",))
    worker.until(lambda: told)
    worker.until(lambda: len(told) == 2)
    assert told == ["first", "between"]


def test_the_collector_looks_less_often_while_the_pool_runs(app, start):
    app.conf.legit_async_gc_threshold = 12_345
    before = gc.get_threshold()
    worker = start()
    assert gc.get_threshold()[0] == 12_345
    worker.pool.stop()
    assert gc.get_threshold() == before


@pytest.mark.parametrize("limit_s", [None, 3600.0])
@pytest.mark.parametrize("kind", ["async", "plain"])
def test_a_task_that_is_done_is_freed_without_the_collector(start, kind, limit_s):
    """With a limit, too, while that of another task still counts: its timer stays where it is among asyncio's."""

    class Payload:
        """Whose end can be seen."""

    worker = start()
    before = Gate()
    before.hold()
    if limit_s:
        earlier = worker.apply(lambda _: before.enter(), "plain", timeout=limit_s / 2)
        before.await_arrivals(1)
    gc.disable()
    try:
        payload = Payload()
        seen = weakref.ref(payload)

        async def hold(payload=payload):
            await asyncio.sleep(0)

        def keep(_name, payload=payload):
            pass

        body = hold if kind == "async" else keep
        del payload, hold, keep
        report = worker.apply(body, kind, timeout=limit_s)
        del body
        worker.until_told(report)
        del report
        worker.until(lambda: seen() is None)
    finally:
        gc.enable()
        before.release()
    if limit_s:
        worker.until_told(earlier)

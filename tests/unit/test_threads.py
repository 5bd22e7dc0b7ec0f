"""Threads that keep no process alive; and whatever happens on one, whoever waits hears of it."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import Future

import pytest

from legit_embedding.testing.clock import settle
from legit_embedding.testing.gate import Gate
from legit_embedding.threads import DaemonThreads, run_on
from tests.waiting import until_free

PATIENCE_S = 30


@pytest.fixture
def threads():
    own = DaemonThreads(2, "sample")
    yield own
    own.shutdown(cancel_futures=True)


@pytest.fixture
def gate():
    own = Gate()
    own.hold()
    yield own
    own.release()


def name_and(value):
    return threading.current_thread().name, value


def test_a_call_runs_on_a_named_thread_and_gives_its_result(threads):
    assert threads.submit(name_and, 7).result(PATIENCE_S) == ("sample-1", 7)


def test_an_idle_thread_is_used_again(threads):
    assert {threads.submit(name_and, number).result(PATIENCE_S)[0] for number in range(20)} <= {"sample-1", "sample-2"}


@pytest.mark.parametrize("error", [KeyError("why"), SystemExit(3)])
def test_what_a_call_raises_is_in_its_future_and_the_thread_goes_on(threads, error):
    def fail():
        raise error

    assert threads.submit(fail).exception(PATIENCE_S) is error
    assert threads.submit(name_and, 1).result(PATIENCE_S)[1] == 1


def test_each_thread_is_initialised_first():
    ready = threading.local()
    threads = DaemonThreads(1, "sample", lambda: setattr(ready, "value", "ready"))
    assert threads.submit(lambda: ready.value).result(PATIENCE_S) == "ready"
    threads.shutdown()


async def test_no_more_calls_run_at_once_than_there_are_threads(threads, gate):
    futures = [threads.submit(gate.enter) for _ in range(5)]
    await gate.wait_for_arrivals(2)
    assert [future.running() for future in futures] == [True, True, False, False, False]
    assert repr(threads) == "<DaemonThreads 2 of 2 threads, 5 calls, 0 left behind>"
    gate.release()
    for future in futures:
        future.result(PATIENCE_S)


async def test_a_call_that_waits_can_be_cancelled(threads, gate):
    futures = [threads.submit(gate.enter) for _ in range(3)]
    await gate.wait_for_arrivals(2)
    assert futures[2].cancel()
    gate.release()
    futures[0].result(PATIENCE_S)
    futures[1].result(PATIENCE_S)
    assert gate.arrived == 2


async def test_a_thread_that_is_left_behind_is_replaced_and_ends_with_its_call(threads, gate):
    def stay():
        gate.enter()
        return threading.current_thread()

    left, kept = threads.submit(stay), threads.submit(stay)
    waiting = threads.submit(name_and, "next")
    await gate.wait_for_arrivals(2)
    threads.leave_behind(left)
    threads.leave_behind(left)
    assert waiting.result(PATIENCE_S) == ("sample-3", "next")
    gate.release()
    thread = left.result(PATIENCE_S)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert kept.result(PATIENCE_S).is_alive()


def test_after_a_shutdown_nothing_is_taken(threads):
    threads.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        threads.submit(name_and, 1)


async def test_a_shutdown_cancels_what_waits_and_does_not_wait_itself(threads, gate):
    running = [threads.submit(gate.enter) for _ in range(2)]
    waiting = threads.submit(gate.enter)
    await gate.wait_for_arrivals(2)
    threads.shutdown(cancel_futures=True)
    assert waiting.cancelled()
    assert not running[0].done()


def test_a_stuck_thread_does_not_keep_the_interpreter():
    code = (
        "import threading\n"
        "from legit_embedding.threads import DaemonThreads\n"
        "started = threading.Event()\n"
        "DaemonThreads(1, 'stuck').submit(lambda: (started.set(), threading.Event().wait()))\n"
        "started.wait()\n"
        "print('end')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "end\n"


async def test_closing_lets_what_runs_end_and_cancels_what_waits(threads, gate):
    running = [threads.submit(gate.enter) for _ in range(2)]
    waiting = threads.submit(gate.enter)
    await gate.wait_for_arrivals(2)
    closing = asyncio.create_task(threads.close(PATIENCE_S))
    await settle()
    assert not closing.done()
    gate.release()
    assert await closing is True
    assert [future.done() for future in running] == [True, True]
    assert waiting.cancelled()


async def test_closing_does_not_wait_for_longer_than_it_may(threads, gate):
    running = threads.submit(gate.enter)
    await gate.wait_for_arrivals(1)
    assert await threads.close(0) is False
    assert running.running()


async def test_closing_takes_no_notice_of_what_a_call_raises(threads, gate):
    def fail():
        gate.enter()
        raise KeyError("why")

    failing = threads.submit(fail)
    await gate.wait_for_arrivals(1)
    closing = asyncio.create_task(threads.close(PATIENCE_S))
    await settle()
    gate.release()
    assert await closing is True
    assert isinstance(failing.exception(), KeyError)


async def test_closing_what_has_never_run_is_done_at_once(threads):
    assert await threads.close(0) is True


async def test_the_work_runs_on_the_threads_and_its_result_comes_back(threads):
    def work(first, *, second):
        return first, second, threading.current_thread().name

    assert await run_on(threads, work, 1, second=2) == (1, 2, "sample-1")


async def test_an_error_comes_back_as_it_is(threads):
    with pytest.raises(ZeroDivisionError):
        await run_on(threads, lambda: 1 / 0)


@pytest.mark.parametrize("error", [StopIteration("end"), asyncio.CancelledError()])
async def test_what_asyncio_would_lose_or_misread_comes_back_as_a_bug(threads, error):
    """A bare `next()` in a plugin raises StopIteration, which no future takes: whoever waits would wait for ever."""

    def work():
        raise error

    with pytest.raises(RuntimeError, match=f"{type(error).__name__} left ") as raised:
        await run_on(threads, work)
    assert raised.value.__cause__ is error
    assert not asyncio.current_task().cancelling()


# -- offered, without a lock -------------------------------------------------------------------------------------------


def test_an_offer_is_refused_where_a_thread_would_have_to_be_started(threads, gate):
    future = Future()
    assert not threads.offer(future, gate.enter)
    busy = threads.submit(gate.enter)
    assert not threads.offer(future, gate.enter)
    gate.release()
    busy.result(PATIENCE_S)
    assert not future.done()


def test_an_offer_goes_to_a_thread_that_is_free(threads):
    assert threads.submit(name_and, 1).result(PATIENCE_S) == ("sample-1", 1)
    until_free(threads)
    future = Future()
    assert threads.offer(future, lambda: name_and(2))
    assert future.result(PATIENCE_S) == ("sample-1", 2)


def test_an_offer_waits_where_all_threads_that_there_may_be_are_busy(threads, gate):
    busy = [threads.submit(gate.enter) for _ in range(2)]
    future = Future()
    assert threads.offer(future, lambda: name_and(3))
    gate.release()
    assert future.result(PATIENCE_S)[1] == 3
    assert [call.exception(PATIENCE_S) for call in busy] == [None, None]


def test_an_offer_that_is_cancelled_before_its_turn_is_not_called(threads, gate):
    busy = [threads.submit(gate.enter) for _ in range(2)]
    future, called = Future(), []
    assert threads.offer(future, lambda: called.append("called"))
    assert future.cancel()
    gate.release()
    for call in busy:
        call.result(PATIENCE_S)
    threads.submit(name_and, 1).result(PATIENCE_S)
    assert called == []


def test_an_offer_that_runs_cannot_be_cancelled_but_its_thread_left_behind(gate):
    threads = DaemonThreads(1, "sample")
    threads.submit(name_and, 1).result(PATIENCE_S)
    until_free(threads)
    future = Future()
    assert threads.offer(future, gate.enter)
    gate.await_arrivals(1)
    assert future.running()
    assert not future.cancel()
    threads.leave_behind(future)
    assert threads.submit(name_and, 2).result(PATIENCE_S) == ("sample-2", 2)
    gate.release()
    threads.shutdown()


def test_an_offer_that_raises_costs_its_thread_nothing(threads):
    threads.submit(name_and, 1).result(PATIENCE_S)
    until_free(threads)
    future = Future()
    assert threads.offer(future, lambda: 1 / 0)
    assert isinstance(future.exception(PATIENCE_S), ZeroDivisionError)
    until_free(threads)
    assert threads.submit(name_and, 2).result(PATIENCE_S) == ("sample-1", 2)


def test_what_is_offered_and_has_not_begun_is_cancelled_with_the_shutdown(gate):
    threads = DaemonThreads(1, "sample")
    busy = threads.submit(gate.enter)
    gate.await_arrivals(1)
    future = Future()
    assert threads.offer(future, lambda: name_and(2))
    threads.shutdown()
    assert future.cancelled()
    gate.release()
    busy.result(PATIENCE_S)


def test_an_offer_is_made_while_the_lock_is_held(threads):
    """By a thread whose own signal handler may wait for it."""
    threads.submit(name_and, 1).result(PATIENCE_S)
    until_free(threads)
    future = Future()
    with threads._lock:
        assert threads.offer(future, lambda: name_and(2))
    assert future.result(PATIENCE_S)[1] == 2


def test_after_the_shutdown_an_offer_is_refused(threads):
    threads.submit(name_and, 1).result(PATIENCE_S)
    threads.shutdown()
    assert not threads.offer(Future(), lambda: name_and(2))


def test_an_offer_is_not_lost_where_its_thread_is_left_behind_in_the_same_moment(gate):
    """Between the look for a free thread and the hand-over."""
    threads = DaemonThreads(1, "sample")
    stuck = threads.submit(gate.enter)
    gate.await_arrivals(1)

    class Unfinished(set):
        def add(self, future):
            super().add(future)
            threads.leave_behind(stuck)

    threads._unfinished = Unfinished(threads._unfinished)
    future = Future()
    if not threads.offer(future, lambda: name_and(1)):
        future = threads.submit(name_and, 1)
    assert future.result(PATIENCE_S)[1] == 1
    threads.shutdown()

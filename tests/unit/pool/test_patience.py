"""Few threads at work where few will do, and all of them where they are needed."""

import threading
import time
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legit_embedding.pool.patience import LONG, WINDOW, Pace, PatientThreads
from legit_embedding.testing.gate import Gate

PATIENCE_S = 30


# -- how many to wake --------------------------------------------------------------------------------------------------


def looks(pace, begun, waiting=100, at_work=1):
    return [pace.look(waiting=waiting, begun=each, at_work=at_work) for each in begun]


def test_while_nothing_is_begun_it_is_one_more_then_twice_as_many_each_time():
    assert looks(Pace(7), [7, 7, 7, 7]) == [1, 2, 4, 8]


def test_what_the_woken_ones_take_is_no_sign_that_the_others_go_on():
    assert looks(Pace(0), [0, 1, 3, 7]) == [1, 2, 4, 8]


def test_no_more_are_woken_than_there_are_calls_that_wait():
    assert looks(Pace(0), [0, 0, 0], waiting=3) == [1, 2, 3]


def test_where_those_at_work_go_on_none_is_woken():
    assert looks(Pace(0), range(50, 50 * 5 * WINDOW, 50)) == [0] * (5 * WINDOW - 1)


def test_once_they_go_on_again_it_begins_anew():
    assert looks(Pace(0), [0, 0, 50, 50]) == [1, 2, 0, 1]


def test_where_the_last_one_would_wait_for_long_at_the_pace_there_is_as_many_as_are_at_work_are_woken():
    begun = range(2, 4 * WINDOW + 2, 2)
    assert looks(Pace(0), begun, waiting=2 * LONG + 1, at_work=3) == ([0] * (WINDOW - 1) + [3]) * 2
    assert looks(Pace(0), begun, waiting=2 * LONG, at_work=3) == [0] * 2 * WINDOW


@given(
    st.lists(
        st.tuples(st.integers(1, 1000), st.integers(0, 100), st.integers(0, 100)),
        min_size=1,
    )
)
def test_blocked_threads_are_always_helped_and_never_by_more_than_wait_or_are_at_work(steps):
    pace, begun = Pace(0), 0
    for waiting, since, at_work in steps:
        begun += since
        count = pace.look(waiting=waiting, begun=begun, at_work=at_work)
        assert 0 <= count <= max(waiting, at_work)
        if since == 0:
            assert count > 0


# -- who runs what -----------------------------------------------------------------------------------------------------


@pytest.fixture
def gates():
    held = {name: Gate() for name in ("body", "pause")}
    for gate in held.values():
        gate.hold()
    yield held
    for gate in held.values():
        gate.release()


@pytest.fixture
def threads(gates):
    """Their watcher looks when the test lets it."""
    own = PatientThreads(4, "sample", pause=lambda _: gates["pause"].enter())
    yield own
    gates["pause"].release()
    own.shutdown()


def name():
    return threading.current_thread().name


def named(gate):
    gate.enter()
    return name()


def test_a_call_waits_for_the_thread_that_is_at_work(threads, gates):
    first = threads.submit(named, gates["body"])
    gates["body"].await_arrivals(1)
    second = Future()
    assert threads.offer(second, name)
    gates["pause"].await_arrivals(1)
    assert not second.done()
    gates["body"].release()
    assert (first.result(PATIENCE_S), second.result(PATIENCE_S)) == ("sample-1", "sample-1")


def test_after_its_patience_another_thread_is_started_for_it(threads, gates):
    threads.submit(named, gates["body"])
    gates["body"].await_arrivals(1)
    second = threads.submit(name)
    gates["pause"].release()
    assert second.result(PATIENCE_S) == "sample-2"


def test_a_thread_that_rests_is_woken_before_another_is_started(threads, gates):
    threads.submit(named, gates["body"])
    gates["body"].await_arrivals(1)
    for _ in range(3):
        call = threads.submit(name)
        threads._wake(1)
        assert call.result(PATIENCE_S) == "sample-2"
        until(lambda: threads._at_work == 1)


def test_blocked_bodies_get_all_the_threads_there_may_be_and_the_rest_waits(threads, gates):
    calls = [threads.submit(named, gates["body"]) for _ in range(6)]
    gates["pause"].release()
    gates["body"].await_arrivals(4)
    assert [call.running() for call in calls] == [True] * 4 + [False] * 2
    gates["body"].release()
    assert {call.result(PATIENCE_S) for call in calls} <= {f"sample-{number}" for number in range(1, 5)}


def test_what_waits_behind_a_thread_that_is_left_behind_runs_without_a_look(threads, gates):
    stuck = threads.submit(named, gates["body"])
    gates["body"].await_arrivals(1)
    waiting = Future()
    assert threads.offer(waiting, name)
    threads.leave_behind(stuck)
    assert waiting.result(PATIENCE_S) == "sample-2"


def test_where_no_thread_can_be_started_calls_wait_for_those_that_there_are(threads, gates, monkeypatch):
    first = threads.submit(named, gates["body"])
    gates["body"].await_arrivals(1)
    second = threads.submit(name)

    def refuse(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        gates["pause"].await_arrivals(1)
        gates["pause"].release(1)
        gates["pause"].await_arrivals(2)  # it has looked, and looks again
    assert not second.done()
    gates["body"].release()
    assert (first.result(PATIENCE_S), second.result(PATIENCE_S)) == ("sample-1", "sample-1")


def test_after_a_shutdown_every_thread_ends_the_watcher_too():
    threads, gate = PatientThreads(4, "ending"), Gate()
    gate.hold()
    calls = [threads.submit(named, gate) for _ in range(4)]
    gate.await_arrivals(4)
    gate.release()
    for call in calls:
        call.result(PATIENCE_S)
    started = [thread for thread in threading.enumerate() if thread.name.startswith("ending")]
    assert len(started) == 5
    threads.shutdown()
    for thread in started:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_thread_that_starts_during_the_shutdown_ends_as_well(gates):
    class Late(PatientThreads):
        def _start_thread(self):
            if self._started:
                self.shutdown()
            super()._start_thread()

    threads = Late(2, "late", pause=lambda _: gates["pause"].enter())
    busy = threads.submit(named, gates["body"])
    gates["body"].await_arrivals(1)
    waiting = threads.submit(name)
    gates["pause"].release()
    until(lambda: threads._started == 2)
    assert waiting.cancelled()
    gates["body"].release()
    assert busy.result(PATIENCE_S) == "late-1"
    for thread in threading.enumerate():
        if thread.name.startswith("late"):
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def test_of_calls_from_many_threads_each_is_made_once():
    threads = PatientThreads(4, "sample")
    threads.submit(name).result(PATIENCE_S)
    made, futures = [], []

    def offer(first):
        for number in range(first, first + 500):
            future = Future()
            assert threads.offer(future, lambda number=number: made.append(number))
            futures.append(future)
            if number % 7 == 0:  # all rest now and then
                future.result(PATIENCE_S)

    producers = [threading.Thread(target=offer, args=(first,)) for first in range(0, 2000, 500)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join(PATIENCE_S)
    for future in futures:
        future.result(PATIENCE_S)
    assert sorted(made) == list(range(2000))
    threads.shutdown()


def until(holds):
    """A call's result is there a moment before its thread rests."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.001)

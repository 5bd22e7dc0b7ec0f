"""A call waits for a thread at work while that is for the best, and never for one that does not come back."""

import random
import sys
import threading
import time
from collections import deque
from concurrent.futures import CancelledError, Future, wait

import pytest

from legit_embedding.pool.patience import LOOK_S, PAUSE_S
from legit_embedding.pool.patient_threads import CpuTime, PatientThreads
from legit_embedding.testing.gate import Gate
from tests.waiting import until, until_free

PATIENCE_S = 30


class Cpu:
    """In the place of the CPU time; the clock beside it goes on by 20 ms a look."""

    def __init__(self):
        self.busy = 1.0
        self._at_s = self._used_s = 0.0

    def join(self):
        pass

    def clock(self):
        self._at_s += 0.02
        self._used_s += 0.02 * self.busy
        return self._at_s

    def total_s(self):
        return self._used_s


@pytest.fixture
def cpu():
    return Cpu()


@pytest.fixture
def gate():
    own = Gate()
    yield own
    own.release()


@pytest.fixture
def threads(cpu, gate):
    """Two, both started and idle, and none that watches: the tests look themselves."""
    own = PatientThreads(2, "sample", cpu_time=cpu, clock=cpu.clock)
    gate.hold()
    started = [own.submit(gate.enter) for _ in range(2)]
    gate.await_arrivals(2)
    gate.release()
    wait(started, PATIENCE_S)
    until_free(own)
    gate.hold()
    own.begin()
    yield own
    own.shutdown(cancel_futures=True)


def become_patient(threads):
    """By a call that ran since the last look, all threads at rest."""
    offer(threads, name).result(PATIENCE_S)
    until_free(threads)
    assert threads.look() == LOOK_S


def offer(threads, function):
    future = Future()
    assert threads.offer(future, function)
    return future


def running(threads, gate):
    """One call that runs until the gate lets it go."""
    arrived = gate.arrived
    future = offer(threads, gate.enter)
    gate.await_arrivals(arrived + 1)
    return future


def name():
    return threading.current_thread().name


def test_without_patience_a_call_runs_beside_another(threads, gate):
    running(threads, gate)
    assert offer(threads, name).result(PATIENCE_S).startswith("sample-")


def test_with_patience_a_call_waits_for_the_one_that_runs_and_takes_its_thread(threads, gate):
    become_patient(threads)
    first = offer(threads, lambda: (gate.enter(), name())[1])
    gate.await_arrivals(3)
    others = [offer(threads, name) for _ in range(5)]
    assert threads._queue.empty()  # the idle thread has nothing to take
    assert not any(each.running() or each.done() for each in others)
    gate.release()
    assert {each.result(PATIENCE_S) for each in others} == {first.result(PATIENCE_S)}


def test_with_patience_a_call_runs_at_once_where_no_other_does(threads):
    become_patient(threads)
    for _ in range(100):
        assert offer(threads, name).result(PATIENCE_S).startswith("sample-")
        until_free(threads)


def test_calls_that_wait_run_in_their_order(threads, gate):
    become_patient(threads)
    running(threads, gate)
    order = []
    last = [offer(threads, lambda number=number: order.append(number)) for number in range(10)][-1]
    gate.release()
    last.result(PATIENCE_S)
    assert order == list(range(10))


def test_a_call_that_is_late_runs_on_another_thread(threads, gate):
    become_patient(threads)
    running(threads, gate)
    waiting = offer(threads, name)
    assert threads.look() == LOOK_S  # it came since the last look
    assert not waiting.done()
    threads.look()
    assert waiting.result(PATIENCE_S).startswith("sample-")
    assert offer(threads, name).result(PATIENCE_S).startswith("sample-")  # and none waits for a while


def test_a_call_is_late_although_others_have_come_since(threads, gate):
    become_patient(threads)
    running(threads, gate)
    waiting = offer(threads, name)
    assert threads.look() == LOOK_S
    offer(threads, name)
    assert threads.look() == PAUSE_S
    assert waiting.result(PATIENCE_S).startswith("sample-")


def test_what_came_since_the_last_look_is_not_late(threads, gate):
    become_patient(threads)
    running(threads, gate)
    for _ in range(3):
        waiting = [offer(threads, name) for _ in range(4)] + [offer(threads, gate.enter)]
        assert threads.look() == LOOK_S
        gate.release(1)
        wait(waiting[:4], PATIENCE_S)
        until(lambda: not threads._held)


def test_where_a_core_is_to_spare_what_waits_runs_on_another_thread(threads, gate, cpu):
    become_patient(threads)
    running(threads, gate)
    waiting = offer(threads, name)
    cpu.busy = 0.5
    assert threads.look() == PAUSE_S
    assert waiting.result(PATIENCE_S).startswith("sample-")


def test_it_rests_when_nothing_is_offered(threads, gate, cpu):
    cpu.busy = 0.5
    for _ in range(2):
        for _ in range(3):
            offer(threads, name).result(PATIENCE_S)
        assert threads._alarms.qsize() == 1  # the first offer raises an alarm, which a watcher would take
        threads._alarms.get()
        assert threads.look() == PAUSE_S
        assert threads.look() is None


def test_it_rests_when_nothing_is_offered_and_a_body_computes_for_long(threads, gate, cpu):
    become_patient(threads)
    running(threads, gate)
    assert threads.look() == LOOK_S
    assert threads.look() is None
    cpu.busy = 0.0
    assert threads.begin() == PAUSE_S


def test_an_offer_in_the_moment_in_which_it_would_rest_is_looked_after(threads, cpu):
    cpu.busy = 0.0
    late = []
    see = threads._see

    def seen_before_an_offer():
        found = see()
        late.append(offer(threads, name))
        return found

    threads._see = seen_before_an_offer
    assert threads.look() == PAUSE_S
    assert late[0].result(PATIENCE_S).startswith("sample-")


def test_a_call_left_behind_is_not_waited_for(threads, gate):
    become_patient(threads)
    hung = running(threads, gate)
    threads.leave_behind(hung)
    assert offer(threads, name).result(PATIENCE_S).startswith("sample-")


def test_what_waits_for_a_call_that_is_then_left_behind_is_late_soon(threads, gate):
    become_patient(threads)
    hung = running(threads, gate)
    waiting = offer(threads, name)
    threads.leave_behind(hung)
    threads.look()
    threads.look()
    assert waiting.result(PATIENCE_S).startswith("sample-")


def test_what_was_not_held_back_goes_first():
    own = PatientThreads(1, "sample")
    queued, held = (Future(), name), (Future(), name)
    own._queue.put(queued)
    own._held.append(held)
    assert [own._take(), own._take()] == [queued, held]


def test_a_shutdown_cancels_what_waits(threads, gate):
    become_patient(threads)
    hung = running(threads, gate)
    waiting = [offer(threads, name) for _ in range(3)]
    threads.shutdown()
    for each in waiting:
        with pytest.raises(CancelledError):
            each.result(PATIENCE_S)
    assert not threads.offer(Future(), name)
    gate.release()
    hung.result(PATIENCE_S)


class Interrupted(deque):
    """Something happens before or after each `append`, or after each `popleft`."""

    before_append = after_append = after_popleft = staticmethod(lambda: None)

    def append(self, value):
        self.before_append()
        super().append(value)
        self.after_append()

    def popleft(self):
        value = super().popleft()
        self.after_popleft()
        return value


def test_a_call_held_while_the_one_that_ran_ends_is_not_forgotten(threads, gate):
    become_patient(threads)
    running(threads, gate)
    threads._held = Interrupted()

    def end_it():
        gate.release()
        until(lambda: len(threads._unfinished) == 1)

    takers = []
    threads._held.before_append = end_it
    threads._held.after_popleft = lambda: takers.append(name())
    by = offer(threads, name).result(PATIENCE_S)
    assert takers == [by]  # not the thread that offered: its signal handlers may wait for the call


def test_a_call_held_while_patience_ends_is_not_forgotten(threads, gate):
    become_patient(threads)
    running(threads, gate)
    threads._held = Interrupted()

    def lose_patience():
        threads._patience.holds = False

    threads._held.after_append = lose_patience
    assert offer(threads, name).result(PATIENCE_S).startswith("sample-")


def test_what_is_let_go_of_during_a_shutdown_is_cancelled(threads, gate):
    become_patient(threads)
    running(threads, gate)
    running_too = offer(threads, gate.enter)
    threads._let_go()
    gate.await_arrivals(4)
    waiting = offer(threads, name)
    threads._held = Interrupted(threads._held)
    threads._held.after_popleft = threads.shutdown
    threads._let_go()
    assert waiting.cancelled()
    gate.release()
    running_too.result(PATIENCE_S)


def test_the_watcher_lets_go_of_what_waits_for_a_body_that_blocks(cpu, gate):
    gate.hold()
    own = PatientThreads(2, "sample", cpu_time=cpu)
    own.watch()
    for _ in range(2):
        own.submit(gate.enter)
    gate.await_arrivals(2)
    gate.release(1)
    own._patience.holds = True  # as it would be after the next look
    assert offer(own, name).result(PATIENCE_S).startswith("sample-")
    gate.release()
    own.shutdown()


def watcher_of(name):
    return [each for each in threading.enumerate() if each.name == f"{name}-watch"]


@pytest.mark.parametrize("asleep", [True, False])
def test_its_watcher_ends_with_the_shutdown(asleep):
    own = PatientThreads(1, f"watched-{asleep}")
    own._patience.next_look_s = 3600.0
    own.watch()
    (watcher,) = watcher_of(f"watched-{asleep}")
    own.submit(name).result(PATIENCE_S)
    if not asleep:
        offer(own, name).result(PATIENCE_S)
        until(lambda: own._seen.offered)
    own.shutdown()
    watcher.join(PATIENCE_S)
    assert not watcher.is_alive()


def test_without_the_interpreters_lock_nobody_watches(monkeypatch):
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    own = PatientThreads(1, "free")
    own.watch()
    assert not watcher_of("free")
    own.shutdown()


def test_no_call_is_lost_whenever_patience_comes_and_goes(cpu):
    own = PatientThreads(3, "sample", cpu_time=cpu, clock=cpu.clock)
    own.submit(name).result(PATIENCE_S)
    choose, done = random.Random(7), []
    own.begin()
    for _ in range(3000):
        cpu.busy = choose.choice((0.0, 1.0))
        own.look()
        for _ in range(choose.randrange(4)):
            future = Future()
            if own.offer(future, name):
                done.append(future)
            else:
                done.append(own.submit(name))
    cpu.busy = 0.0
    own.look()
    assert not wait(done, PATIENCE_S).not_done
    assert len(done) > 3000
    own.shutdown()


# -- CPU time ----------------------------------------------------------------------------------------------------------


def test_the_cpu_time_is_that_of_the_threads_that_joined():
    cpu_time = CpuTime()
    assert cpu_time.total_s() == 0.0
    cpu_time.join()
    before_s = time.thread_time()
    found_s = cpu_time.total_s()
    assert before_s <= found_s <= time.thread_time()


def test_the_cpu_time_of_a_thread_that_has_ended_no_longer_counts():
    cpu_time = CpuTime()
    thread = threading.Thread(target=cpu_time.join)
    thread.start()
    thread.join()
    until(lambda: cpu_time.total_s() == 0.0)  # the system's thread ends a moment after Python's
    assert not cpu_time._clocks


def test_where_the_system_does_not_tell_it_is_none(monkeypatch):
    monkeypatch.delattr(time, "pthread_getcpuclockid")
    cpu_time = CpuTime()
    cpu_time.join()
    assert cpu_time.total_s() == 0.0


def test_each_thread_is_initialised_first():
    ready = threading.local()
    own = PatientThreads(1, "sample", lambda: setattr(ready, "value", "ready"))
    assert own.submit(lambda: ready.value).result(PATIENCE_S) == "ready"
    own.shutdown()


def test_the_thread_that_offers_and_those_that_serve_count(gate):
    own = PatientThreads(2, "sample")
    own.submit(name).result(PATIENCE_S)
    assert len(own._cpu_time._clocks) == 2
    own.shutdown()

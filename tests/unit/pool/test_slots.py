"""Slots against kombu's own semaphore, as Celery's worker uses it."""

from hypothesis import given
from hypothesis import strategies as st
from kombu.asynchronous.semaphore import LaxBoundedSemaphore

from legit_embedding.pool.slots import Slots


class Worker:
    """What Celery does: a task acquires, and once it is let in the pool takes."""

    def __init__(self, limit):
        self.semaphore = LaxBoundedSemaphore(limit)
        self.slots = Slots(self.semaphore)
        self.running = 0

    def receive(self, count=1):
        for _ in range(count):
            self.semaphore.acquire(self._start)

    def _start(self):
        self.running += 1
        self.slots.take()

    def finish(self, count=1):
        for _ in range(count):
            self.running -= 1
            self.slots.give_back()


def test_as_many_run_as_there_are_slots():
    worker = Worker(2)
    worker.receive(5)
    assert worker.running == 2
    worker.finish()
    assert worker.running == 2


def test_grow_lets_in_exactly_so_many_of_those_that_wait():
    worker = Worker(1)
    worker.receive(5)
    worker.slots.grow(2)
    assert worker.running == 3


def test_shrink_takes_away_free_slots_at_once():
    worker = Worker(3)
    worker.slots.shrink(2)
    worker.receive(5)
    assert worker.running == 1


def test_shrink_takes_away_taken_slots_when_they_are_given_back_though_others_wait():
    worker = Worker(3)
    worker.receive(5)
    worker.slots.shrink(2)
    worker.finish(2)
    assert worker.running == 1
    worker.finish()
    assert worker.running == 1


def test_grow_forgives_what_is_owed():
    worker = Worker(3)
    worker.receive(5)
    worker.slots.shrink(2)
    worker.slots.grow(1)
    assert repr(worker.slots) == "<Slots 3 of 2 taken, 1 owed>"
    worker.finish(2)
    assert worker.running == 2


def test_after_celery_has_cleared_the_semaphore_running_tasks_keep_their_slots():
    worker = Worker(3)
    worker.receive(5)
    worker.semaphore.clear()
    worker.slots.recount()
    worker.receive()
    assert worker.running == 3
    worker.finish(3)
    assert repr(worker.slots) == "<Slots 1 of 3 taken, 0 owed>"


def test_a_cleared_semaphore_that_had_shrunk_still_owes():
    worker = Worker(3)
    worker.receive(3)
    worker.slots.shrink(2)
    worker.semaphore.clear()
    worker.slots.recount()
    worker.receive(2)
    worker.finish(2)
    assert worker.running == 1


def test_without_a_semaphore_nothing_is_limited():
    slots = Slots(None)
    slots.take()
    slots.grow(2)
    slots.shrink(1)
    slots.recount()
    slots.give_back()
    assert repr(slots) == "<Slots 0 of None taken, 0 owed>"


@given(st.lists(st.tuples(st.sampled_from(["receive", "finish", "grow", "shrink", "lose"]), st.integers(1, 4))))
def test_the_limit_holds_whatever_happens(steps):
    """No task starts beyond the limit, and none waits while a slot is free."""
    worker = Worker(2)
    for step, count in steps:
        before = worker.running
        if step == "receive":
            worker.receive(count)
        elif step == "finish":
            worker.finish(min(count, worker.running))
        elif step == "grow":
            worker.slots.grow(count)
        elif step == "shrink":
            worker.slots.shrink(count)
        elif step == "lose":
            worker.semaphore.clear()
            worker.slots.recount()
        limit = worker.semaphore.initial_value
        waiting = len(worker.semaphore._waiting)
        assert worker.running <= max(limit, before)
        assert waiting == 0 or worker.running >= limit

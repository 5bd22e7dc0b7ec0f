"""What is put in comes out once and in order, and the thread that waited last is woken for it."""

import sys
import threading
from collections import Counter, deque
from queue import Empty

import pytest

from legit_embedding.handover import Handover
from tests.waiting import until

PATIENCE_S = 30


@pytest.fixture
def handover():
    return Handover()


class Getter(threading.Thread):
    """Gets until it gets None; then it ends."""

    def __init__(self, handover):
        super().__init__(daemon=True)
        self.got = []
        self._handover = handover
        self.start()

    def run(self):
        while (item := self._handover.get()) is not None:
            self.got.append(item)


def waiting(handover, count):
    until(lambda: len(handover._waiting) == count, "the threads")


def end(handover, getters):
    for _ in getters:
        handover.put(None)
    for each in getters:
        each.join(PATIENCE_S)
        assert not each.is_alive()


def test_items_come_out_in_their_order(handover):
    for number in range(5):
        handover.put(number)
    assert [handover.get() for _ in range(4)] == [0, 1, 2, 3]
    assert handover.get_nowait() == 4


def test_where_there_is_none_it_is_empty(handover):
    assert handover.empty()
    with pytest.raises(Empty):
        handover.get_nowait()
    handover.put(1)
    assert not handover.empty()


def test_who_waited_last_is_woken_first(handover):
    getters = []
    for count in range(1, 4):
        getters.append(Getter(handover))
        waiting(handover, count)
    for number in range(20):
        handover.put(number)
        until(handover.empty, "the item")
        waiting(handover, 3)
    assert [each.got for each in getters] == [[], [], list(range(20))]
    end(handover, getters)


def test_as_many_are_woken_as_there_are_items(handover):
    getters = [Getter(handover) for _ in range(3)]
    waiting(handover, 3)
    end(handover, getters)
    assert handover.empty()


class Late(deque):
    """Something is put in after a thread has found it empty."""

    at_empty = at_look = at_take = staticmethod(lambda: None)

    def popleft(self):
        if len(self) == 0:
            self.at_empty()
            raise IndexError
        self.at_take()
        return super().popleft()

    def __bool__(self):
        if len(self) == 0:
            self.at_look()
        return len(self) > 0


def test_what_is_put_in_before_a_thread_waits_is_found(handover):
    handover._items = Late()
    handover._items.at_empty = lambda: handover.put("late")
    assert handover.get() == "late"
    assert not handover._waiting


def test_what_is_put_in_while_a_thread_begins_to_wait_wakes_it(handover):
    handover._items = Late()
    found = []

    def put_once():
        handover._items.at_look = lambda: None
        found.extend(handover._waiting)
        handover.put("late")

    handover._items.at_look = put_once
    assert handover.get() == "late"
    assert [lock.locked() for lock in found] == [False]
    assert not handover._waiting


def waiters(handover, count):
    """The locks of threads that sleep, the last of them first."""
    locks = [threading.Lock() for _ in range(count)]
    for lock in locks:
        lock.acquire()
    handover._waiting += locks
    return locks[::-1]


def asleep(locks):
    return [lock.locked() for lock in locks]


def test_a_thread_that_looks_again_no_longer_counts_as_one_that_waits(handover):
    """Else what is put in after its look would be announced to it."""
    handover._items = Late()
    waiting_at_take = []

    def put_once():
        handover._items.at_look = lambda: None
        handover.put("late")

    handover._items.at_look = put_once
    handover._items.at_take = lambda: waiting_at_take.append(len(handover._waiting))
    assert handover.get() == "late"
    assert waiting_at_take == [0]


def test_while_a_thread_is_on_its_way_no_other_is_woken(handover):
    locks = waiters(handover, 3)
    for number in range(5):
        handover.put(number)
    assert asleep(locks) == [False, True, True]


@pytest.mark.parametrize(("items", "others_asleep"), [(1, [True, True]), (2, [False, True]), (5, [False, False])])
def test_a_thread_that_has_come_wakes_as_many_as_it_leaves_items(handover, items, others_asleep):
    locks = waiters(handover, 2)
    got = []
    thread = threading.Thread(target=lambda: got.append(handover.get()), daemon=True)
    thread.start()
    waiting(handover, 3)
    handover._items.extend(range(items - 1))  # before it has come
    handover.put(items - 1)
    thread.join(PATIENCE_S)
    assert got == [0]
    assert asleep(locks) == others_asleep


def test_a_thread_at_work_that_takes_an_item_wakes_nobody(handover):
    locks = waiters(handover, 2)
    for number in range(3):
        handover.put(number)
    assert [handover.get(), handover.get()] == [0, 1]
    assert asleep(locks) == [False, True]


def test_that_another_wakes_the_same_thread_at_the_same_time_is_no_error(handover):
    class Raced:
        """Another releases it after it has been looked at."""

        def locked(self):
            return True

        def release(self):
            raise RuntimeError("release unlocked lock")

    handover._waiting.append(Raced())
    handover.put(1)
    assert handover.get() == 1


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="a trace function is told of each step up to Python 3.11")
def test_wherever_a_signal_interrupts_a_put_what_its_handler_puts_in_has_a_thread():
    steps = 0
    while interrupted_at(steps):
        steps += 1
    assert steps > 10


def interrupted_at(step):
    """Whether a put has as many steps; a handler has put something in there, and waits for a thread to take it."""
    handover = Handover()
    locks = waiters(handover, 2)
    codes = {Handover.put.__code__, Handover._wake.__code__}
    left = step
    on_their_way = []

    def trace(frame, event, _):
        nonlocal left
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_code in codes:
            left -= 1
            if left == -1:
                sys.settrace(None)
                handover.put("from the handler")
                on_their_way.append(asleep(locks))
        return trace

    sys.settrace(trace)
    try:
        handover.put("from whom it interrupts")
    finally:
        sys.settrace(None)
    assert asleep(locks) == [False, True]
    assert on_their_way in ([], [[False, True]])
    return bool(on_their_way)


def test_with_many_threads_at_both_ends_each_item_comes_out_once(handover):
    getters = [Getter(handover) for _ in range(4)]

    def put(first):
        for number in range(first, first + 3000):
            handover.put(number)

    putters = [threading.Thread(target=put, args=(first,)) for first in (0, 3000, 6000)]
    for each in putters:
        each.start()
    for each in putters:
        each.join(PATIENCE_S)
    until(handover.empty, "the items")
    end(handover, getters)
    assert Counter(item for each in getters for item in each.got) == Counter(range(9000))

"""What is put in comes out once and in order, and the thread that waited last gets it."""

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
    """Something is put in after a thread has found it empty, and before or after it says that it waits."""

    at_empty = staticmethod(lambda: None)

    def popleft(self):
        if not self:
            self.at_empty()
            raise IndexError
        return super().popleft()


def test_what_is_put_in_before_a_thread_waits_is_found(handover):
    handover._items = Late()
    handover._items.at_empty = lambda: handover.put("late")
    assert handover.get() == "late"
    assert not handover._waiting


def test_what_is_put_in_while_a_thread_begins_to_wait_wakes_it(handover):
    class Waiting(list):
        def append(self, lock):
            super().append(lock)
            handover.put("late")

    handover._waiting = Waiting()
    assert handover.get() == "late"
    assert not handover._waiting


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

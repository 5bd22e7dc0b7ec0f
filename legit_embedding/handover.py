"""A queue between threads whose last waiter is woken first.

`queue.SimpleQueue` lets its waiters take turns: of eight threads for short calls each comes to cold caches. Here one or
two of them do everything for as long as they suffice.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from operator import methodcaller
from queue import Empty
from typing import Generic, TypeVar

T = TypeVar("T")


class Handover(Generic[T]):
    """Any number of threads put and get; `get` is for threads that no signal's handler interrupts.

    `put` takes no lock that whom it interrupts could hold.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        # A lock for each thread that waits, taken already: whoever releases it wakes the thread.
        self._waiting: list[threading.Lock] = []
        # Takes the last one away and releases it, in one step of the interpreter's: a signal's handler between the two
        # would find its thread neither waiting nor awake.
        self._wake: Iterator[None] = map(methodcaller("release"), iter(self._waiting.pop, None))

    def put(self, item: T) -> None:
        """Adds it at the end, and wakes one of those that wait."""
        self._items.append(item)
        if self._waiting:  # else all are at work, and look before they wait
            with suppress(IndexError):  # another has woken it
                next(self._wake)

    def get(self) -> T:
        """The first one; waits for it."""
        while True:
            try:
                return self._items.popleft()
            except IndexError:
                self._wait()

    def get_nowait(self) -> T:
        """The first one.

        Raises:
            Empty: there is none.
        """
        try:
            return self._items.popleft()
        except IndexError:
            raise Empty from None

    def empty(self) -> bool:
        """Whether there is none now."""
        return not self._items

    def _wait(self) -> None:
        """Returns when something may be there."""
        lock = threading.Lock()
        lock.acquire()
        self._waiting.append(lock)
        if self._items:  # looked at again, now that whoever puts something in finds this thread
            with suppress(ValueError):  # it has been woken
                self._waiting.remove(lock)
        else:
            lock.acquire()

"""A queue between threads whose last waiter is woken first.

`queue.SimpleQueue` lets its waiters take turns: of eight threads for short calls each comes to cold caches. Here one or
two of them do everything for as long as they suffice.
"""

import threading
from collections import deque
from contextlib import suppress
from queue import Empty
from typing import Generic, TypeVar

T = TypeVar("T")


class Handover(Generic[T]):
    """Any number of threads put and get. `put` takes no lock that could be held by whom it interrupts."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._waiting: list[threading.Lock] = []  # held, each by nobody: who gives it back wakes its thread
        self._own = threading.local()

    def put(self, item: T) -> None:
        """Adds it at the end, and wakes one of those that wait."""
        self._items.append(item)
        if self._waiting:  # else all are at work, and look before they wait
            with suppress(IndexError):
                self._waiting.pop().release()

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
        lock: threading.Lock | None = getattr(self._own, "lock", None)
        if lock is None:
            lock = self._own.lock = threading.Lock()
            lock.acquire()
        self._waiting.append(lock)
        if self._items:  # looked at again, now that whoever puts something in finds this thread
            try:
                self._waiting.remove(lock)
            except ValueError:  # it is being woken: the lock is given back
                lock.acquire()
        else:
            lock.acquire()

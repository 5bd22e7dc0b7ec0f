"""A queue between threads whose last waiter is woken first.

`queue.SimpleQueue` lets its waiters take turns: of eight threads for short calls each comes to cold caches. Here one or
two of them do everything for as long as they suffice: while the last that waits is on its way no other is woken, and
when it has come, as many are as it leaves items (Tokio's scheduler, too, holds back while a worker wakes up to search).
"""

import threading
from collections import deque
from contextlib import suppress
from queue import Empty
from typing import Generic, TypeVar

T = TypeVar("T")


class Handover(Generic[T]):
    """Any number of threads put and get; `get` is for threads that no signal's handler interrupts.

    `put` takes no lock that whom it interrupts could hold.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        # A lock for each thread that waits, taken already: whoever releases it wakes the thread, which is on its way
        # until it takes its lock away.
        self._waiting: list[threading.Lock] = []

    def put(self, item: T) -> None:
        """Adds it at the end; one of those that wait, if there are any, comes for it."""
        self._items.append(item)
        if self._waiting:  # else all are at work, and look before they wait
            self._wake(1)

    def get(self) -> T:
        """The first one; waits for it."""
        waited = False
        while True:
            try:
                item = self._items.popleft()
            except IndexError:
                self._wait()
                waited = True
                continue
            left = len(self._items)
            if waited and left:  # put in while this thread was on its way
                self._wake(left)
            return item

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

    def _wake(self, count: int) -> None:
        """The last so many of those that wait are on their way afterwards."""
        for lock in self._waiting[-count:]:
            # Taken once more where its thread is just coming: then this does nothing.
            if lock.locked():
                with suppress(RuntimeError):  # meanwhile another has released it
                    lock.release()

    def _wait(self) -> None:
        """Returns when something may be there."""
        lock = threading.Lock()
        lock.acquire()
        self._waiting.append(lock)
        if not self._items:  # looked at again, now that whoever puts something in finds this thread
            lock.acquire()
        self._waiting.remove(lock)  # before it looks once more: what is put in from now on wakes another

"""The worker's slots, when their number changes while they are taken, and when a connection is lost."""

from typing import Any


class Slots:
    """Kombu's semaphore, which Celery takes slots from and the pool gives them back to; None where there is none.

    Its own `grow` lets in n tasks too many where some wait, its own `shrink` takes away free slots alone, and Celery's
    `clear`, after a lost connection, frees the slots of tasks that still run. All on the consumer's thread.
    """

    def __init__(self, semaphore: Any) -> None:
        self._semaphore = semaphore
        self._held = 0
        self._owed = 0

    def take(self) -> None:
        """A task starts, for which Celery has acquired a slot."""
        self._held += 1

    def give_back(self) -> None:
        """It is done: the slot goes to the next one that waits, or away if it is owed."""
        self._held -= 1
        if self._owed:
            self._owed -= 1
        elif self._semaphore is not None:
            self._semaphore.release()

    def grow(self, n: int) -> None:
        """`n` more."""
        if self._semaphore is None:
            return
        self._semaphore.initial_value += n
        forgiven = min(n, self._owed)
        self._owed -= forgiven
        for _ in range(n - forgiven):
            self._semaphore.release()

    def shrink(self, n: int) -> None:
        """`n` fewer: free ones now, taken ones when they are given back."""
        if self._semaphore is None:
            return
        n = min(n, self._semaphore.initial_value)
        self._semaphore.initial_value -= n
        free = min(n, self._semaphore.value)
        self._semaphore.value -= free
        self._owed += n - free

    def recount(self) -> None:
        """Celery has cleared the semaphore: the tasks that still run keep their slots."""
        if self._semaphore is None:
            return
        total = self._semaphore.initial_value
        self._semaphore.value = max(0, total - self._held)
        self._owed = max(0, self._held - total)

    def __repr__(self) -> str:
        total = None if self._semaphore is None else self._semaphore.initial_value
        return f"<Slots {self._held} of {total} taken, {self._owed} owed>"

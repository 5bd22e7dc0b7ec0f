"""Holds threads where a test wants them, and lets them go one by one: order by events, never by time."""

import asyncio
import threading

PATIENCE_S = 30.0
"""After this long, whoever waits fails: a test that forgot to release must not hang the process."""


class Gate:
    """A place that threads pass. Open at first; every method may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrived = 0
        self._passed = 0
        self._tickets: int | None = None

    @property
    def arrived(self) -> int:
        """How many threads have come so far, those that still wait included."""
        with self._changed:
            return self._arrived

    def hold(self) -> None:
        """From now on nobody passes."""
        with self._changed:
            self._tickets = 0

    def release(self, count: int | None = None) -> None:
        """Lets `count` more pass, and goes on holding; without a number everybody, and holds no more."""
        with self._changed:
            self._tickets = None if count is None else (self._tickets or 0) + count
            self._changed.notify_all()

    def enter(self) -> None:
        """Returns once the test lets this thread pass.

        Raises:
            TimeoutError: it did not within 30 s.
        """
        with self._changed:
            self._arrived += 1
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._tickets is None or self._tickets > 0, PATIENCE_S):
                raise TimeoutError(f"held for {PATIENCE_S:g} s: the test did not release")
            if self._tickets is not None:
                self._tickets -= 1
            self._passed += 1

    async def wait_for_arrivals(self, count: int) -> None:
        """Returns once `count` threads have come so far; the loop goes on meanwhile.

        Raises:
            TimeoutError: they did not within 30 s.
        """
        await asyncio.to_thread(self.await_arrivals, count)

    def await_arrivals(self, count: int) -> None:
        """As `wait_for_arrivals`, for a test without a loop.

        Raises:
            TimeoutError: they did not within 30 s.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._arrived >= count, PATIENCE_S):
                raise TimeoutError(f"{self._arrived} of {count} came within {PATIENCE_S:g} s")

    def __repr__(self) -> str:
        with self._changed:
            state = "open" if self._tickets is None else "closed"
            return f"<Gate {state}, {self._arrived - self._passed} waiting, {self._passed} passed>"

"""Time that a test moves by hand."""

import asyncio
import heapq
import itertools
from collections.abc import Callable

PATIENCE_S = 30.0


class FakeClock:
    """A `Clock` that stands still until `advance`; sleepers wake in the order of their times."""

    def __init__(self, *, monotonic_s: float = 1000.0, time_s: float = 1_800_000_000.0) -> None:
        self._monotonic_s = monotonic_s
        self._offset_s = time_s - monotonic_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def monotonic(self) -> float:
        """Seconds, moved by `advance` alone."""
        return self._monotonic_s

    def time(self) -> float:
        """Seconds since the epoch, moved by `advance` alone."""
        return self._monotonic_s + self._offset_s

    async def sleep(self, seconds: float) -> None:
        """Returns once the clock has been advanced that far; a sleep of nothing only yields."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic_s + seconds, next(self._numbers), wake))
        await wake

    async def advance(self, seconds: float) -> None:
        """Moves the clock, waking each sleeper at its own time, and lets the loop run in between."""
        await settle()
        end_s = self._monotonic_s + seconds
        while self._sleepers and self._sleepers[0][0] <= end_s:
            self._monotonic_s, _, wake = heapq.heappop(self._sleepers)
            if not wake.done():
                wake.set_result(None)
            await settle()
        self._monotonic_s = end_s
        await settle()

    @property
    def sleeping(self) -> int:
        """How many sleepers there are."""
        return sum(not wake.done() for _, _, wake in self._sleepers)

    def __repr__(self) -> str:
        return f"<FakeClock {self._monotonic_s:g} s, {self.sleeping} sleeping>"


async def settle(turns: int = 20) -> None:
    """Lets everything run that can run now."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Lets everything run until `condition` holds: for what also needs a thread, which takes its own time.

    Raises:
        TimeoutError: it did not within 30 s.
    """
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  a thread sets no event for us
            await asyncio.sleep(0)

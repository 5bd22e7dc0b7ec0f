"""One budget of bytes from fetch to publish: when it is used up, intake stops.

A reservation is made before the work begins, for the most that the work may hold, and only ever shrinks. So nothing
that holds bytes waits for more of them, and there is no deadlock.
"""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BudgetStatistics:
    """Bytes in use, bytes in all, and how many reservations wait."""

    used_bytes: int
    total_bytes: int
    waiting: int


class Reservation:
    """Bytes that are held until `release`."""

    __slots__ = ("_budget", "_nbytes")

    def __init__(self, budget: "ByteBudget", nbytes: int) -> None:
        self._budget = budget
        self._nbytes = nbytes

    @property
    def nbytes(self) -> int:
        """Bytes still held."""
        return self._nbytes

    def shrink(self, nbytes: int) -> None:
        """Holds `nbytes` from now on, where that is less than before; the rest is free for others."""
        freed = self._nbytes - max(0, nbytes)
        if freed > 0:
            self._nbytes -= freed
            self._budget.give_back(freed)

    def release(self) -> None:
        """Holds nothing from now on; a second call does nothing."""
        self.shrink(0)


class ByteBudget:
    """Reservations in the order in which they are asked for, on one event loop.

    One that asks for more than there is at all is let in when it is alone: a single large item must still pass.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def reserve(self, nbytes: int) -> Reservation:
        """Waits until `nbytes` are free and holds them."""
        if self._waiting or not self._fits(nbytes):
            await self._wait(nbytes)
        else:
            self._used += nbytes
        return Reservation(self, nbytes)

    def give_back(self, nbytes: int) -> None:
        """Frees bytes that a reservation held; for `Reservation` alone."""
        self._used -= nbytes
        self._admit()

    def statistics(self) -> BudgetStatistics:
        """What is in use now."""
        return BudgetStatistics(self._used, self._total, len(self._waiting))

    def __repr__(self) -> str:
        return f"<ByteBudget {self._used} of {self._total} bytes, {len(self._waiting)} waiting>"

    def _fits(self, nbytes: int) -> bool:
        return self._used == 0 or self._used + nbytes <= self._total

    async def _wait(self, nbytes: int) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((nbytes, place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # let in and cancelled in the same turn of the loop
                self.give_back(nbytes)
            else:
                with suppress(ValueError):  # `_admit` came by first
                    self._waiting.remove((nbytes, place))
                self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting:
            nbytes, place = self._waiting[0]
            if not place.done():  # done: cancelled in this turn of the loop, and not yet told
                if not self._fits(nbytes):
                    return
                self._used += nbytes
                place.set_result(None)
            self._waiting.popleft()

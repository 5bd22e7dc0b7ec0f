"""Places for work that cannot be shared as batches are, handed out as fairly: one of each task in turn."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """So many places. Where all are taken, tasks wait in a ring, and each one's backlog behind everybody's first."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._free = places
        self._ring: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def take(self, task: str) -> AsyncIterator[None]:
        """Waits for a place and holds it until the context is left."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(task)
        try:
            yield
        finally:
            self._pass_on()

    def __repr__(self) -> str:
        waiting = sum(map(len, self._ring.values()))
        return f"<Turns {self._places - self._free} of {self._places} places taken, {waiting} waiting>"

    async def _wait(self, task: str) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ring.setdefault(task, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # given a place and cancelled in the same turn of the loop
                self._pass_on()
            else:
                self._leave(task, place)
            raise

    def _pass_on(self) -> None:
        """The place to the first of the ring, whose task goes to the ring's end."""
        while self._ring:
            task = next(iter(self._ring))
            waiting = self._ring.pop(task)
            place = waiting.popleft()
            if waiting:
                self._ring[task] = waiting
            if not place.done():  # done: cancelled in this turn of the loop, and not yet told
                place.set_result(None)
                return
        self._free += 1

    def _leave(self, task: str, place: "asyncio.Future[None]") -> None:
        waiting = self._ring.get(task)
        if waiting is None or place not in waiting:  # `_pass_on` came by first
            return
        waiting.remove(place)
        if not waiting:
            del self._ring[task]

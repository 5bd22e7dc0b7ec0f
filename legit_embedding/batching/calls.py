"""What a submitter waits on: its tickets' outcomes, in parts."""

import asyncio
from collections import deque
from typing import Self

from legit_embedding.batching.policy import Ticket
from legit_embedding.values import Outcome

Part = list[tuple[Ticket, Outcome]]


class Call:
    """An async iterator over the parts of one `submit`: as many outcomes as there were tickets, then the end.

    It knows no ticket that has not been computed, and so keeps none of their memory.
    """

    __slots__ = ("_error", "_left", "_parts", "_waiter", "withdrawn")

    def __init__(self, count: int) -> None:
        self.withdrawn = False
        self._left = count
        self._parts: deque[Part] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None

    def deliver(self, part: Part) -> None:
        """Outcomes of some of the tickets."""
        self._parts.append(part)
        self._wake()

    def fail(self, error: BaseException) -> None:
        """The rest will get no outcome; whoever iterates gets `error`."""
        self._error = error
        self._wake()

    def withdraw(self) -> None:
        """Nobody waits any more: what has not begun is not begun."""
        self.withdrawn = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Part:
        while not self._parts:
            if not self._left:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.withdraw()
                raise
            finally:
                self._waiter = None
        part = self._parts.popleft()
        self._left -= len(part)
        return part

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

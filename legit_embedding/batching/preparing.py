"""Preparing on threads, shared among all tasks: as fairly as batches are, and small pieces in one call."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from legit_embedding.clock import Clock
from legit_embedding.errors import EmbeddingError
from legit_embedding.values import Options, Payload, Prepared

AHEAD = 2
"""Calls given to the executor at once, for each of its threads: one more than it works on, so that it never idles."""

Results: TypeAlias = list[Prepared | EmbeddingError]


class Preparable(Protocol):
    """As much of a model as preparing needs; see `EmbeddingModel`."""

    @property
    def prepare_chunk(self) -> int:
        """How many payloads one call should get."""
        ...

    def prepare(self, payloads: Sequence[Payload], options: Options) -> Results:
        """One result a payload, in order."""
        ...


@dataclass(slots=True, eq=False)
class _Piece:
    """What one call of `Preparer.prepare` asks for."""

    model: Preparable
    options: Options
    payloads: Sequence[Payload]
    future: "asyncio.Future[Results]"

    def goes_with(self, other: "_Piece") -> bool:
        """Whether one call of the model can do both."""
        return self.model is other.model and self.options == other.options


class Preparer:
    """Calls on `executor`, which has so many `threads`; `observe` is told how many seconds each took.

    Tasks wait in a ring, and each one's further pieces behind everybody's first. A call takes the next piece, and those
    of other tasks that go with it, up to the model's `prepare_chunk`: to tokenise one text takes less time than its way
    to a thread and back.
    """

    def __init__(
        self, executor: Executor, *, threads: int, clock: Clock, observe: Callable[[float], None] = lambda _: None
    ) -> None:
        self._executor = executor
        self._places = self._free = AHEAD * threads
        self._clock = clock
        self._observe = observe
        self._ring: dict[str, deque[_Piece]] = {}
        self._soon = False

    async def prepare(self, model: Preparable, payloads: Sequence[Payload], options: Options, *, task: str) -> Results:
        """One result a payload, in order.

        Raises:
            Exception: whatever the model raised; a call that was shared is repeated for each piece alone first.
            CancelledError: the executor has been shut down.
        """
        loop = asyncio.get_running_loop()
        piece = _Piece(model, options, payloads, loop.create_future())
        self._ring.setdefault(task, deque()).append(piece)
        if self._free and not self._soon:
            self._soon = True
            loop.call_soon(self._start)  # whoever comes in this turn of the loop goes along
        try:
            return await piece.future
        except asyncio.CancelledError:
            self._leave(task, piece)
            raise

    def __repr__(self) -> str:
        waiting = sum(map(len, self._ring.values()))
        return f"<Preparer {self._places - self._free} of {self._places} places taken, {waiting} waiting>"

    def _start(self) -> None:
        self._soon = False
        while self._free and self._ring:
            pieces = self._next()
            if not pieces:  # all of them were cancelled
                continue
            started_s = self._clock.monotonic()
            try:
                call = asyncio.get_running_loop().run_in_executor(self._executor, _prepare, pieces)
            except Exception as error:  # noqa: BLE001  the executor is shut down: whoever waits must hear of it
                _tell(pieces, [error] * len(pieces))
                continue
            self._free -= 1
            call.add_done_callback(partial(self._done, pieces, started_s))

    def _next(self) -> list[_Piece]:
        """The first task's next piece, and one of each other that goes with it; all these go to the ring's end."""
        pieces: list[_Piece] = []
        left = 0
        for task in list(self._ring):
            piece = self._ring[task][0]
            if pieces and (len(piece.payloads) > left or not piece.goes_with(pieces[0])):
                continue
            waiting = self._ring.pop(task)
            waiting.popleft()
            if waiting:
                self._ring[task] = waiting
            if piece.future.done():  # cancelled in this turn of the loop, and not yet told
                continue
            left = left - len(piece.payloads) if pieces else piece.model.prepare_chunk - len(piece.payloads)
            pieces.append(piece)
            if left <= 0:
                break
        return pieces

    def _done(
        self, pieces: Sequence[_Piece], started_s: float, call: "asyncio.Future[list[Results | Exception]]"
    ) -> None:
        self._free += 1
        if call.cancelled():
            for piece in pieces:
                piece.future.cancel()
        else:
            error = call.exception()
            _tell(pieces, call.result() if error is None else [error] * len(pieces))
            self._observe(self._clock.monotonic() - started_s)
        self._start()

    def _leave(self, task: str, piece: _Piece) -> None:
        waiting = self._ring.get(task)
        if waiting is None or piece not in waiting:  # it has been started
            return
        waiting.remove(piece)
        if not waiting:
            del self._ring[task]


def _tell(pieces: Sequence[_Piece], outcomes: Sequence[Results | BaseException]) -> None:
    for piece, outcome in zip(pieces, outcomes, strict=True):
        if piece.future.done():  # nobody waits any more
            continue
        if isinstance(outcome, BaseException):
            piece.future.set_exception(outcome)
        else:
            piece.future.set_result(outcome)


def _prepare(pieces: Sequence[_Piece]) -> list[Results | Exception]:
    """On a thread: an outcome for each piece."""
    together = _attempt(pieces[0], [payload for piece in pieces for payload in piece.payloads])
    if len(pieces) == 1:
        return [together]
    if isinstance(together, Exception):  # one task's bug must not cost its neighbours theirs
        return [_attempt(piece, piece.payloads) for piece in pieces]
    outcomes: list[Results | Exception] = []
    first = 0
    for piece in pieces:
        outcomes.append(together[first : first + len(piece.payloads)])
        first += len(piece.payloads)
    return outcomes


def _attempt(piece: _Piece, payloads: Sequence[Payload]) -> Results | Exception:
    try:
        results = piece.model.prepare(payloads, piece.options)
        if len(results) != len(payloads):
            raise RuntimeError(f"the model gave {len(results)} results for {len(payloads)} payloads")  # noqa: TRY301
    except StopIteration as error:  # which no future takes
        return RuntimeError(f"{type(error).__name__} left the model's prepare: {error}")
    except Exception as error:  # noqa: BLE001  whoever waits gets it
        return error
    except BaseException as error:  # noqa: BLE001  a CancelledError or SystemExit of a plugin's is no affair of the loop's
        return RuntimeError(f"{type(error).__name__} left the model's prepare: {error}")
    return results

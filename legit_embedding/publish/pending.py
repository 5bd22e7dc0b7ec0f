"""The publisher's books: entries that wait for their confirmation, and who waits for them."""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from legit_embedding.publish.outcomes import Refused, Trouble, classify
from legit_embedding.values import Receipt


@dataclass(slots=True, eq=False)
class Submission:
    """The entries of one `submit`, and the future that their confirmations resolve."""

    future: "asyncio.Future[list[Receipt]]"
    receipts: list[Receipt | None]
    missing: int
    started_s: float

    def confirm(self, index: int, receipt: Receipt) -> bool:
        """Keeps a receipt; whether it was the last one."""
        self.receipts[index] = receipt
        self.missing -= 1
        if self.missing:
            return False
        if not self.future.done():  # the waiter may have been cancelled; its entries are written all the same
            self.future.set_result([each for each in self.receipts if each is not None])
        return True

    def fail(self, error: Exception) -> None:
        """The other outcome."""
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # seen: a waiter that has gone away is no "never retrieved" in the log


@dataclass(slots=True, eq=False)
class Entry:
    """One entry on its way. `fields` are names and values in turn, encoded; `nbytes` is what it holds in memory."""

    stream: str
    fields: tuple[bytes, ...]
    nbytes: int
    submission: Submission = field(repr=False)
    index: int

    @property
    def is_confirmed(self) -> bool:
        """Whether its receipt is there."""
        return self.submission.receipts[self.index] is not None

    def redirect(self, stream: str, *, rejected_field: str, rejected: str) -> None:
        """Sends the entry to `stream` instead, and notes there which name was refused."""
        self.stream = stream
        self.fields += encode_fields({rejected_field: rejected})


UTF_8 = "utf-8", "backslashreplace"

PART_OVERHEAD_BYTES = 41
"""What CPython holds of a name or a value beside its bytes: the header of its object, and its place in a tuple."""

ENTRY_OVERHEAD_BYTES = 256
"""About what an entry takes beside its fields: itself, its places in the queues, its share of a submission."""


def held_nbytes(fields: Sequence[bytes]) -> int:
    """About what an entry of these fields holds in memory; the bytes alone would be a sixth of it for a short one."""
    return ENTRY_OVERHEAD_BYTES + PART_OVERHEAD_BYTES * len(fields) + sum(map(len, fields))


def encode_fields(fields: Mapping[str, str]) -> tuple[bytes, ...]:
    """Names and values in turn, UTF-8; what has no UTF-8 (a lone surrogate of JSON) is written as its escape."""
    return tuple([part.encode(*UTF_8) for pair in fields.items() for part in pair])


class Backlog:
    """Entries that are not confirmed: those ready to be written, in order, and a count of all, with their bytes."""

    def __init__(self) -> None:
        self._ready: deque[Entry] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.entries = 0
        self.nbytes = 0

    def count_in(self, entries: Iterable[Entry]) -> None:
        """Entries have come; they are not ready yet."""
        for entry in entries:
            self.entries += 1
            self.nbytes += entry.nbytes

    def count_out(self, entry: Entry) -> None:
        """An entry is confirmed."""
        self.entries -= 1
        self.nbytes -= entry.nbytes

    def add(self, entries: Iterable[Entry]) -> None:
        """Makes entries ready, after all others, and wakes a writer."""
        self._ready.extend(entries)
        self._wake()

    def put_back(self, entries: Sequence[Entry]) -> None:
        """Makes entries ready again, before all others, in their order."""
        self._ready.extendleft(reversed(entries))
        self._wake()

    async def wait(self) -> None:
        """Returns when an entry is ready; wakes whoever waited first."""
        while not self._ready:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def take(self, *, max_entries: int, max_bytes: int) -> list[Entry]:
        """Ready entries from the front, at least one where there is any; what is left wakes the next writer."""
        taken: list[Entry] = []
        nbytes = 0
        while self._ready and len(taken) < max_entries and (not taken or nbytes + self._ready[0].nbytes <= max_bytes):
            entry = self._ready.popleft()
            taken.append(entry)
            nbytes += entry.nbytes
        self._wake()
        return taken

    def _wake(self) -> None:
        while self._ready and self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


@dataclass(frozen=True, slots=True)
class Sorted:
    """The entries of one pipeline by what became of them."""

    confirmed: list[tuple[Entry, Receipt]]
    refused: list[tuple[Entry, Refused, Exception]]
    troubled: list[tuple[Entry, Trouble, Exception]]


def sort_replies(batch: Sequence[Entry], replies: Sequence[Any], *, global_stream: str) -> Sorted:
    """What became of each entry. Pure: the books are as they were."""
    result = Sorted([], [], [])
    for entry, reply in zip(batch, replies, strict=True):
        if isinstance(reply, Exception):
            verdict = classify(reply, on_global_stream=entry.stream == global_stream)
            if isinstance(verdict, Refused):
                result.refused.append((entry, verdict, reply))
            else:
                result.troubled.append((entry, verdict, reply))
        else:
            entry_id = reply.decode() if isinstance(reply, bytes) else str(reply)
            result.confirmed.append((entry, Receipt(entry.stream, entry_id)))
    return result

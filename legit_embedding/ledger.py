"""A task's books: which of its items still have no outcome, and which entries still have no confirmation."""

import asyncio
from collections.abc import Iterable, Sequence

from legit_embedding.clock import Clock
from legit_embedding.contract import EntryTemplate
from legit_embedding.errors import EmbeddingError
from legit_embedding.publish.streams import Publisher
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.values import Envelope, Item, ModelInfo, Outcome, Receipt, RejectedItem, Summary

NO_MODEL = "none"
"""Counts items of tasks whose model is not declared. Never the name that such a task asked for: it may be anything, and
each new label is a new time series for ever."""

SLICE_ENTRIES = 256
"""So many entries are written before there must be room again: a task's errors may be ten thousand."""

Settled = tuple[Item | RejectedItem, Outcome]


class Ledger:
    """Gives each item exactly one outcome, hands it to the publisher at once, and keeps the confirmations.

    `declared` is the key of the model that is to compute them, which counts their outcomes while it is not loaded.
    """

    __slots__ = (
        "_clock",
        "_confirmations",
        "_envelope",
        "_metrics",
        "_model",
        "_ok",
        "_open",
        "_publisher",
        "_template",
    )

    def __init__(
        self,
        envelope: Envelope,
        *,
        template: EntryTemplate,
        publisher: Publisher,
        clock: Clock,
        metrics: Metrics,
        declared: str | None = None,
    ) -> None:
        self._envelope = envelope
        self._template = template
        self._publisher = publisher
        self._clock = clock
        self._metrics = metrics
        self._open: dict[int, Item | RejectedItem] = {item.index: item for item in envelope.items}
        self._confirmations: list[asyncio.Future[list[Receipt]]] = []
        self._ok = 0
        self._model = declared or NO_MODEL

    def use_model(self, info: ModelInfo, fingerprint: str) -> None:
        """From now on entries name this model."""
        self._model = info.name
        self._template = self._template.with_model(info, fingerprint)

    def settle(self, pairs: Iterable[Settled]) -> asyncio.Future[list[Receipt]] | None:
        """Writes an entry for each pair; an item that already has its outcome is passed over.

        The future resolves when these entries are confirmed; None where there was nothing to write. Whoever waits for
        it must not cancel it: `close` waits for it too.
        """
        fresh = [(item, outcome) for item, outcome in pairs if item.index in self._open]
        if not fresh:
            return None
        at_ms = int(self._clock.time() * 1000)
        # Nothing is booked before all of it is submitted: where that fails, none of these items has its outcome yet.
        entries = [self._template.entry(item, outcome, at_ms=at_ms) for item, outcome in fresh]
        confirmation = self._publisher.submit(self._envelope.reply_to, entries)
        self._confirmations.append(confirmation)
        for item, outcome in fresh:
            del self._open[item.index]
            if isinstance(outcome, EmbeddingError):
                self._metrics.item(self._model, outcome.code)
            else:
                self._ok += 1
                self._metrics.item(self._model, "ok")
        return confirmation

    async def settle_all(self, pairs: Sequence[Settled]) -> None:
        """Settles any number of pairs, a slice at a time, each once the publisher has room for it.

        Raises:
            ShuttingDownError: the publisher stopped first.
        """
        for start in range(0, len(pairs), SLICE_ENTRIES):
            await self._publisher.wait_for_room()
            self.settle(pairs[start : start + SLICE_ENTRIES])

    async def settle_rest(self, error: EmbeddingError) -> None:
        """Gives `error` to every item that has no outcome yet; see `settle_all`."""
        await self.settle_all([(item, error) for item in self._open.values()])

    async def close(self, batch_id: str) -> Summary:
        """Returns when every entry is confirmed.

        Raises:
            ShuttingDownError: the publisher stopped first.
        """
        if not all(confirmation.done() for confirmation in self._confirmations):
            await asyncio.gather(*self._confirmations)
        receipts = [receipt for confirmation in self._confirmations for receipt in confirmation.result()]
        receipts.sort(key=_place)
        return summarise(batch_id, receipts, ok=self._ok, errors=len(self._envelope.items) - self._ok)

    def __repr__(self) -> str:
        return f"<Ledger {len(self._open)} of {len(self._envelope.items)} items open>"


def summarise(batch_id: str, receipts: Sequence[Receipt], *, ok: int, errors: int) -> Summary:
    """What a task returns; `stream` is where its first entry went."""
    first, last = (receipts[0], receipts[-1]) if receipts else (None, None)
    return Summary(
        batch_id=batch_id,
        stream=first.stream if first else "",
        count=ok + errors,
        ok=ok,
        errors=errors,
        first_entry=first.entry_id if first else None,
        last_entry=last.entry_id if last else None,
    )


def _place(receipt: Receipt) -> tuple[int, int]:
    milliseconds, _, sequence = receipt.entry_id.partition("-")
    return int(milliseconds), int(sequence)

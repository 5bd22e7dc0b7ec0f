"""The way of a task's items: fetch, prepare, batch and compute, publish. In chunks, a window of them at once."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from legit_embedding.batching import Batcher, Preparer, Ticket
from legit_embedding.budget import ByteBudget, Reservation
from legit_embedding.errors import EmbeddingError, InternalError, ShuttingDownError
from legit_embedding.ledger import Ledger
from legit_embedding.models.base import EmbeddingModel
from legit_embedding.publish.streams import Publisher
from legit_embedding.sources import Sources
from legit_embedding.values import Item, ModelInfo, Options, Payload

ENTRY_OVERHEAD_BYTES = 1024
"""About what an entry holds beside its vector."""


@dataclass(frozen=True, slots=True)
class Run:
    """What the items of one task share."""

    model: EmbeddingModel
    options: Options
    ledger: Ledger
    task_id: str
    deadline_s: float | None


class Chunks:
    """Gives each item its outcome, by way of its task's ledger. One for the process; it owns none of its parts.

    `internal` makes the outcome of a bug, or raises ShuttingDownError where the worker stops.
    """

    def __init__(
        self,
        *,
        task_window: int,
        sources: Sources,
        batcher: Batcher,
        publisher: Publisher,
        budget: ByteBudget,
        preparer: Preparer,
        internal: Callable[[Exception], InternalError],
    ) -> None:
        self._task_window = task_window
        self._sources = sources
        self._batcher = batcher
        self._publisher = publisher
        self._budget = budget
        self._preparer = preparer
        self._internal = internal

    async def embed(self, items: Sequence[Item], run: Run) -> None:
        """The items in chunks, a window of them under way at once; memory is reserved before a chunk starts."""
        size = max(1, run.model.prepare_chunk)
        if len(items) <= size:
            await self._embed_alone(items, run)
            return
        window = asyncio.Semaphore(max(1, self._task_window // size))
        try:
            async with asyncio.TaskGroup() as group:
                for chunk in chunks(items, size):
                    await window.acquire()
                    await self._publisher.wait_for_room()
                    reservation = await self._reserve(chunk, run.model)
                    task = group.create_task(self._embed_chunk(chunk, reservation, run), name="legit-chunk")
                    # By callback, because a task cancelled before its first step runs none of its own lines.
                    task.add_done_callback(partial(_give_back, reservation, window))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None  # the first to fail: it stopped the others

    async def _embed_alone(self, chunk: Sequence[Item], run: Run) -> None:
        """As a window of one chunk: the common case, without a task of asyncio's for it."""
        if not chunk:
            return
        await self._publisher.wait_for_room()
        reservation = await self._reserve(chunk, run.model)
        try:
            await self._embed_chunk(chunk, reservation, run)
        finally:
            reservation.release()

    async def _reserve(self, chunk: Sequence[Item], model: EmbeddingModel) -> Reservation:
        per_item = model.prepared_nbytes + entry_nbytes(model.info)
        fetched_bytes = await self._sources.reserve_bytes([item.source for item in chunk])
        return await self._budget.reserve(fetched_bytes + len(chunk) * per_item)

    async def _embed_chunk(self, chunk: Sequence[Item], reservation: Reservation, run: Run) -> None:
        """Fetch, prepare, batch and compute, publish; each name ends with its use: no more is held than is reserved."""
        try:
            payloads = await self._fetch(chunk, run)
            tickets = await self._prepare(payloads, run)
            held = sum([ticket.prepared.nbytes for ticket in tickets]) + len(tickets) * entry_nbytes(run.model.info)
            call = self._batcher.submit(run.model, tickets)
            del payloads, tickets
            reservation.shrink(held)
            confirmations = []
            try:
                async for part in call:
                    confirmation = run.ledger.settle([(ticket.tag, outcome) for ticket, outcome in part])
                    if confirmation is not None:
                        confirmations.append(confirmation)
                    held -= sum([ticket.prepared.nbytes for ticket, _ in part])
                    del part
                    reservation.shrink(held)
            finally:
                call.withdraw()
            for confirmation in confirmations:
                await until_done(confirmation)
        except ShuttingDownError:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled this chunk, so what it waited for was stopped: unsaid, its items would have no outcome.
            raise shutting_down() from None
        except Exception as error:  # noqa: BLE001  a bug of ours must not cost the producer its answer
            internal = self._internal(error)
            run.ledger.settle([(item, internal) for item in chunk])

    async def _fetch(self, chunk: Sequence[Item], run: Run) -> list[tuple[Item, Payload]]:
        """What could be read; the rest has its error entries."""
        if len([item for item in chunk if not self._sources.at_hand(item.source)]) > 1:
            payloads = await asyncio.gather(*(self._read(item) for item in chunk))
        else:  # nothing to wait for at the same time
            payloads = [await self._read(item) for item in chunk]
        pairs = list(zip(chunk, payloads, strict=True))
        run.ledger.settle([(item, found) for item, found in pairs if isinstance(found, EmbeddingError)])
        return [(item, found) for item, found in pairs if not isinstance(found, EmbeddingError)]

    async def _read(self, item: Item) -> Payload | EmbeddingError:
        try:
            return await self._sources.read(item.source)
        except EmbeddingError as error:
            return error
        except Exception as error:  # noqa: BLE001  a bug of ours must not cost the item's neighbours their vectors
            return self._internal(error)

    async def _prepare(self, pairs: Sequence[tuple[Item, Payload]], run: Run) -> list[Ticket]:
        """Tickets for what could be prepared; the rest has its error entries."""
        if not pairs:
            return []
        payloads = [payload for _, payload in pairs]
        results = await self._preparer.prepare(run.model, payloads, run.options, task=run.task_id)
        tickets = []
        for (item, _), result in zip(pairs, results, strict=True):
            if isinstance(result, EmbeddingError):
                run.ledger.settle([(item, result)])
            else:
                tickets.append(
                    Ticket(prepared=result, options=run.options, task=run.task_id, tag=item, deadline_s=run.deadline_s)
                )
        return tickets


def shutting_down() -> ShuttingDownError:
    """What sends a task back to its queue."""
    return ShuttingDownError("the worker is stopping; the task goes back to its queue")


def _give_back(reservation: Reservation, window: asyncio.Semaphore, _: "asyncio.Task[None]") -> None:
    reservation.release()
    window.release()


async def until_done(future: "asyncio.Future[Any]") -> None:
    """As `asyncio.wait` for one, in a third of the time: a waiter that is cancelled leaves the future to others."""
    if future.done():
        return
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.add_done_callback(partial(_wake, waiter))
    await waiter


def _wake(waiter: "asyncio.Future[None]", _: "asyncio.Future[Any]") -> None:
    if not waiter.done():
        waiter.set_result(None)


def entry_nbytes(info: ModelInfo) -> int:
    """About what one entry of this model takes until it is confirmed: base64 of float32 is 5.33 bytes a dimension."""
    return info.dim * 16 // 3 + ENTRY_OVERHEAD_BYTES


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Runs of `size` items, the last one perhaps shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]

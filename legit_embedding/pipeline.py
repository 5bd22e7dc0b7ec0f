"""The whole flow of a task: parse, fetch, prepare, batch and compute, publish. The imports, in order, are the flow."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

# isort: off
from legit_embedding.contract import EntryTemplate, Names, dead_letter, parse_envelope, salvage_reply_to
from legit_embedding.sources import Sources
from legit_embedding.models.base import EmbeddingModel
from legit_embedding.models.cache import ModelCache
from legit_embedding.models.slots import Lease
from legit_embedding.batching import Batcher, Preparer, Ticket
from legit_embedding.ledger import NO_MODEL, Ledger, summarise
from legit_embedding.publish.streams import Publisher

# isort: on
from legit_embedding.backoff import Backoff
from legit_embedding.budget import ByteBudget, Reservation
from legit_embedding.clock import Clock
from legit_embedding.config import Settings
from legit_embedding.errors import (
    EmbeddingError,
    ExpiredError,
    GivenUpError,
    InternalError,
    InvalidEnvelopeError,
    InvalidItemError,
    ModelUnavailableError,
    ShuttingDownError,
)
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.telemetry.reports import Reporter
from legit_embedding.values import (
    Delivery,
    Envelope,
    InputKind,
    Item,
    ModelInfo,
    Options,
    Payload,
    RejectedItem,
    ShmSource,
    Summary,
    TaskKind,
    TextSource,
)

ENTRY_OVERHEAD_BYTES = 1024
"""About what an entry holds beside its vector."""


class Pipeline:
    """Turns tasks into confirmed entries. One for the process, on the pool's loop; it owns none of its parts."""

    def __init__(
        self,
        *,
        settings: Settings,
        names: Names,
        identity: str,
        sources: Sources,
        models: ModelCache,
        batcher: Batcher,
        publisher: Publisher,
        budget: ByteBudget,
        preparer: Preparer,
        clock: Clock,
        metrics: Metrics,
        reporter: Reporter,
    ) -> None:
        self._settings = settings
        self._names = names
        self._identity = identity
        self._sources = sources
        self._models = models
        self._batcher = batcher
        self._publisher = publisher
        self._budget = budget
        self._preparer = preparer
        self._clock = clock
        self._metrics = metrics
        self._reporter = reporter
        self._in_flight = 0
        metrics.watch_tasks(lambda: self._in_flight)
        self._closing = False
        self._backoff = Backoff(settings.retry_base_s, settings.retry_max_s, settings.retries)

    async def run(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, kind: TaskKind, delivery: Delivery
    ) -> Summary:
        """Returns once every entry of the task is confirmed: from then on it may be acknowledged.

        Whatever is wrong with the task or with one of its items becomes an error entry, never an exception.

        Raises:
            ShuttingDownError: the worker stops before every entry is confirmed; the task must go back to its queue.
        """
        if self._closing:
            raise _shutting_down()
        self._in_flight += 1
        try:
            envelope = parse_envelope(args, kwargs, kind=kind, names=self._names, max_items=self._settings.max_items)
        except InvalidEnvelopeError as error:
            return await self._refuse(error, salvage_reply_to(args, kwargs, self._names), kind, delivery)
        else:
            if self._is_given_up(delivery):
                await self._bury(args, kwargs, kind, delivery)
            return await self._embed(envelope, delivery)
        finally:
            self._in_flight -= 1

    async def _embed(self, envelope: Envelope, delivery: Delivery) -> Summary:
        """One outcome for each item, whatever happens, and then the wait for their confirmations."""
        declared = self._models.declared(envelope.model, modality_of(envelope.kind))
        ledger = Ledger(
            envelope,
            template=self._template(envelope.kind, delivery).with_envelope(envelope, declared=declared),
            publisher=self._publisher,
            clock=self._clock,
            metrics=self._metrics,
            declared=declared,
        )
        try:
            await ledger.settle_all([(item, item.error) for item in envelope.items if isinstance(item, RejectedItem)])
            await self._embed_items(envelope, delivery, ledger)
        except EmbeddingError as error:
            await ledger.settle_rest(error)
        except ShuttingDownError:
            raise
        except Exception as error:  # noqa: BLE001  a bug of ours must not cost the producer its answer
            await ledger.settle_rest(self._internal(error))
        return await ledger.close(envelope.batch_id or delivery.task_id)

    async def _embed_items(self, envelope: Envelope, delivery: Delivery, ledger: Ledger) -> None:
        items = [item for item in envelope.items if isinstance(item, Item)]
        if not items:
            return
        if self._is_given_up(delivery):
            raise GivenUpError(
                f"the task was delivered {delivery.attempt} times and never finished: most likely it kills its workers"
            )
        left_s = None if delivery.expires_at_s is None else delivery.expires_at_s - self._clock.time()
        if left_s is not None and left_s <= 0:
            raise ExpiredError("the task's `expires` passed before its turn")
        deadline_s = None if left_s is None else self._clock.monotonic() + left_s
        with await self._lease_model(envelope) as model:
            ledger.use_model(model.info, model.fingerprint(envelope.options))
            fitting = [item for item in items if input_kind_of(item) in model.accepts]
            if len(fitting) < len(items):
                misfits = [item for item in items if input_kind_of(item) not in model.accepts]
                await ledger.settle_all([(item, misfit_error(item, model.info)) for item in misfits])
            run = _Run(
                model=model,
                options=envelope.options,
                ledger=ledger,
                task_id=delivery.task_id,
                deadline_s=deadline_s,
            )
            await self._spread(fitting, run)

    async def _lease_model(self, envelope: Envelope) -> Lease:
        """The model. It is waited for as long as a failed load is remembered, and no longer: a task holds a place."""
        left_s = max(self._settings.model_failure_s, self._settings.retry_max_s)
        pauses_s = self._backoff.pauses_s()
        while True:
            try:
                return await self._models.lease(envelope.model, modality_of(envelope.kind))
            except ModelUnavailableError as error:
                pause_s = next(pauses_s, None)
                if pause_s is None or error.permanent:
                    raise
                wait_s = max(pause_s, error.retry_after_s)
                left_s -= wait_s
                if left_s < 0:
                    raise
                self._metrics.retry("model")
                await self._clock.sleep(wait_s)

    async def _spread(self, items: Sequence[Item], run: "_Run") -> None:
        """The items in chunks, a window of them under way at once; memory is reserved before a chunk starts."""
        size = max(1, run.model.prepare_chunk)
        if len(items) <= size:
            await self._embed_alone(items, run)
            return
        window = asyncio.Semaphore(max(1, self._settings.task_window // size))
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

    async def _embed_alone(self, chunk: Sequence[Item], run: "_Run") -> None:
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

    async def _embed_chunk(self, chunk: Sequence[Item], reservation: Reservation, run: "_Run") -> None:
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
            raise _shutting_down() from None
        except Exception as error:  # noqa: BLE001  a bug of ours must not cost the producer its answer
            internal = self._internal(error)
            run.ledger.settle([(item, internal) for item in chunk])

    async def _fetch(self, chunk: Sequence[Item], run: "_Run") -> list[tuple[Item, Payload]]:
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

    async def _prepare(self, pairs: Sequence[tuple[Item, Payload]], run: "_Run") -> list[Ticket]:
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

    def close(self) -> None:
        """Takes no more tasks.

        From now on a failure may come of parts that are being stopped: it sends its task back, and is no entry.
        """
        self._closing = True

    async def _refuse(
        self, error: InvalidEnvelopeError, reply_to: str | None, kind: TaskKind, delivery: Delivery
    ) -> Summary:
        entry = self._template(kind, delivery).refusal(error, at_ms=self._at_ms())
        self._metrics.item(NO_MODEL, error.code)
        receipts = await self._publisher.submit(reply_to, [entry])
        return summarise(delivery.task_id, receipts, ok=0, errors=1)

    def _is_given_up(self, delivery: Delivery) -> bool:
        most = self._settings.max_deliveries
        return most is not None and 0 < most < delivery.attempt

    async def _bury(self, args: Sequence[Any], kwargs: Mapping[str, Any], kind: TaskKind, delivery: Delivery) -> None:
        """What the task was asked for is kept on the stream of dead letters."""
        await self._publisher.bury(
            dead_letter(args, kwargs, kind=kind, delivery=delivery, worker=self._identity, at_ms=self._at_ms())
        )

    def _at_ms(self) -> int:
        return int(self._clock.time() * 1000)

    def _template(self, kind: TaskKind, delivery: Delivery) -> EntryTemplate:
        return EntryTemplate.create(self._names, delivery, worker=self._identity, modality=modality_of(kind))

    def _internal(self, error: Exception) -> InternalError:
        """What becomes of a bug of ours, reported.

        Raises:
            ShuttingDownError: the worker is stopping; see `close`.
        """
        if self._closing:
            raise _shutting_down() from error
        self._reporter.report(error, cause=f"internal:{type(error).__name__}")
        return InternalError(f"an internal error of the worker, reported to its operator: {type(error).__name__}")


@dataclass(frozen=True, slots=True)
class _Run:
    """What the chunks of one task share."""

    model: EmbeddingModel
    options: Options
    ledger: Ledger
    task_id: str
    deadline_s: float | None


def _shutting_down() -> ShuttingDownError:
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


def modality_of(kind: TaskKind) -> str:
    """The modality whose default model a task of this kind uses."""
    return "text" if kind == "texts" else "image"


def input_kind_of(item: Item) -> InputKind:
    """What an adapter must accept for this item."""
    if isinstance(item.source, TextSource):
        return "text"
    return "tensor" if isinstance(item.source, ShmSource) else "bytes"


def misfit_error(item: Item, info: ModelInfo) -> InvalidItemError:
    """Why this model cannot take this item."""
    return InvalidItemError(
        f"items[{item.index}]: the model {info.name!r} ({info.modality}) takes no {input_kind_of(item)} input; "
        "name another one in `model`"
    )


def entry_nbytes(info: ModelInfo) -> int:
    """About what one entry of this model takes until it is confirmed: base64 of float32 is 5.33 bytes a dimension."""
    return info.dim * 16 // 3 + ENTRY_OVERHEAD_BYTES


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Runs of `size` items, the last one perhaps shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]

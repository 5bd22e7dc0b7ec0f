"""The whole flow of a task: parse it, lease its model, see its items through, wait until all of it is written."""

from collections.abc import Mapping, Sequence
from typing import Any

from legit_embedding.backoff import Backoff
from legit_embedding.batching import Batcher, Preparer
from legit_embedding.budget import ByteBudget
from legit_embedding.chunks import Chunks, Run, shutting_down
from legit_embedding.clock import Clock
from legit_embedding.config import Settings
from legit_embedding.contract import EntryTemplate, Names, dead_letter, parse_envelope, salvage_reply_to
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
from legit_embedding.ledger import NO_MODEL, Ledger, summarise
from legit_embedding.models.cache import ModelCache
from legit_embedding.models.slots import Lease
from legit_embedding.publish.streams import Publisher
from legit_embedding.sources import Sources
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.telemetry.reports import Reporter
from legit_embedding.values import (
    Delivery,
    Envelope,
    InputKind,
    Item,
    ModelInfo,
    RejectedItem,
    ShmSource,
    Summary,
    TaskKind,
    TextSource,
)


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
        self._models = models
        self._publisher = publisher
        self._chunks = Chunks(
            task_window=settings.task_window,
            sources=sources,
            batcher=batcher,
            publisher=publisher,
            budget=budget,
            preparer=preparer,
            internal=self._internal,
        )
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
            raise shutting_down()
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
            run = Run(
                model=model,
                options=envelope.options,
                ledger=ledger,
                task_id=delivery.task_id,
                deadline_s=deadline_s,
            )
            await self._chunks.embed(fitting, run)

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
            raise shutting_down() from error
        self._reporter.report(error, cause=f"internal:{type(error).__name__}")
        return InternalError(f"an internal error of the worker, reported to its operator: {type(error).__name__}")


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

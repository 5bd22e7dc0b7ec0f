"""One device: its queue, its inference thread, and the task that feeds it."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from legit_embedding.batching.calls import Call, Part
from legit_embedding.batching.policy import FairQueue, Formed, Ticket, Waiting
from legit_embedding.clock import Clock
from legit_embedding.errors import (
    DeviceOutOfMemoryError,
    EmbeddingError,
    ExpiredError,
    InternalError,
    ShuttingDownError,
)
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.telemetry.reports import Reporter
from legit_embedding.threads import DaemonThreads, run_on
from legit_embedding.values import Outcome

if TYPE_CHECKING:
    from legit_embedding.batching.batcher import BatchTarget, Hold


class Device:
    """Forms a batch whenever the device can take one, and never before: batches fill while it is busy."""

    def __init__(
        self,
        name: str,
        *,
        depth: int,
        clock: Clock,
        gate: Callable[[], Awaitable[None]],
        metrics: Metrics,
        reporter: Reporter,
        hold: "Hold",
    ) -> None:
        self.name = name
        self.batches = 0
        self.items = 0
        self._clock = clock
        self._gate = gate
        self._metrics = metrics
        self._reporter = reporter
        self._hold = hold
        self._queue = FairQueue()
        self._slots = asyncio.Semaphore(depth)
        self._arrived = asyncio.Event()
        self._running: dict[asyncio.Task[None], tuple[Sequence[Waiting], ExitStack]] = {}
        self._forwards = DaemonThreads(1, f"legit-device-{name}")
        self._finishes = DaemonThreads(1, f"legit-finish-{name}")
        self._dispatcher = asyncio.get_running_loop().create_task(self._dispatch(), name=f"legit-batches-{name}")

    @property
    def queued(self) -> int:
        """Tickets that wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Batches under way, finishing included."""
        return len(self._running)

    def put(self, model: "BatchTarget", tickets: Sequence[Ticket], call: Call) -> None:
        """Queues `tickets`; `call` gets their outcomes."""
        now_s = self._clock.monotonic()
        info = model.info
        self._queue.put(info.name, info.limits, [Waiting(ticket, model, call, now_s) for ticket in tickets])
        self._arrived.set()

    async def close(self, timeout_s: float) -> None:
        """Forms no further batch and tells everybody else that the worker stops.

        Batches that are under way have `timeout_s` seconds; the threads of those that need longer are left behind.
        """
        self._dispatcher.cancel()
        await asyncio.gather(self._dispatcher, return_exceptions=True)
        _fail(self._queue.drain(), _stopping())
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._forwards.shutdown()
        self._finishes.shutdown()

    async def _dispatch(self) -> None:
        while True:
            await self._arrived.wait()
            await self._slots.acquire()
            started = False
            try:
                await self._gate()
                started = self._start(self._queue.form(self._clock.monotonic()))
            except Exception as error:  # noqa: BLE001  whoever waits must hear of it, and the next must be served
                self._give_up(error)
            finally:
                if not started:
                    self._slots.release()

    def _start(self, formed: Formed | None) -> bool:
        """Runs what was formed; whether that is a batch, which gives the slot back when it is done with it."""
        if formed is not None and formed.expired:
            late = ExpiredError("the task's `expires` passed while it waited for its batch")
            _deliver(formed.expired, [late] * len(formed.expired))
        if self._queue.is_empty:
            self._arrived.clear()
        if formed is None or not formed.batch:
            return False
        model, hold = formed.batch[0].model, ExitStack()
        hold.enter_context(self._hold(model))  # now: its tasks may be cancelled, and their leases end, at any time
        task = asyncio.get_running_loop().create_task(self._run(model, formed.batch), name=f"legit-batch-{self.name}")
        self._running[task] = formed.batch, hold
        task.add_done_callback(self._done)
        return True

    def _done(self, task: asyncio.Task[None]) -> None:
        """The last word on a batch: whatever ended it, nobody waits on."""
        batch, hold = self._running.pop(task)
        hold.close()
        if task.cancelled():
            _fail(batch, _stopping())
            return
        error = task.exception()
        if error is not None:
            self._reporter.report(error, cause=f"batch:{type(error).__name__}")
            _deliver(batch, [_internal(error)] * len(batch))

    async def _run(self, model: "BatchTarget", batch: Sequence[Waiting]) -> None:
        """Computes and delivers; the device is free again as soon as `forward` is done."""
        held = True
        try:
            self._metrics.stage("queue", self._clock.monotonic() - batch[0].queued_s)
            try:
                raw = await self._forward(model, batch)
                self._queue.raise_cap(model.info.name, len(batch))
                self._slots.release()
                held = False
                outcomes = await self._finish(model, batch, raw)
            except Exception as error:  # noqa: BLE001  one poisoned item must not cost its neighbours their vectors
                if not held:
                    await self._slots.acquire()
                    held = True
                await self._divide(model, batch, error)
            else:
                _deliver(batch, outcomes)
        finally:
            if held:
                self._slots.release()

    async def _divide(self, model: "BatchTarget", batch: Sequence[Waiting], error: Exception) -> None:
        """After a failure: each half by itself, down to the item that is to blame."""
        if isinstance(error, DeviceOutOfMemoryError):
            self._queue.lower_cap(model.info.name, len(batch))
            self._reporter.report(error, cause=f"out-of-memory:{model.info.name}", device=self.name)
        if len(batch) == 1:
            _deliver(batch, [self._verdict(model, error)])
            return
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            try:
                outcomes = await self._finish(model, half, await self._forward(model, half))
            except Exception as again:  # noqa: BLE001  see `_run`
                await self._divide(model, half, again)
            else:
                _deliver(half, outcomes)

    def _verdict(self, model: "BatchTarget", error: Exception) -> EmbeddingError:
        if isinstance(error, EmbeddingError):
            return error
        self._reporter.report(error, cause=f"model:{model.info.name}:{type(error).__name__}")
        return _internal(error)

    async def _forward(self, model: "BatchTarget", batch: Sequence[Waiting]) -> Any:
        prepared = [one.ticket.prepared for one in batch]

        def timed() -> tuple[Any, float]:
            started_s = self._clock.monotonic()
            return model.forward(prepared), self._clock.monotonic() - started_s

        raw, seconds = await run_on(self._forwards, timed)
        self.batches += 1
        self.items += len(batch)
        self._metrics.stage("forward", seconds)
        self._metrics.batch(
            model=model.info.name,
            device=self.name,
            items=len(batch),
            capacity=model.info.limits.max_items,
            seconds=seconds,
        )
        return raw

    async def _finish(self, model: "BatchTarget", batch: Sequence[Waiting], raw: Any) -> list[Outcome]:
        options = [one.ticket.options for one in batch]
        started_s = self._clock.monotonic()
        outcomes = await run_on(self._finishes, model.finish, raw, options)
        self._metrics.stage("finish", self._clock.monotonic() - started_s)
        if len(outcomes) != len(batch):
            raise RuntimeError(f"the model {model.info.name!r} gave {len(outcomes)} outcomes for {len(batch)} items")
        return outcomes

    def _give_up(self, error: Exception) -> None:
        """The feeder itself failed: everybody who waits hears of it, and the next ticket finds it at work again."""
        self._arrived.clear()
        if isinstance(error, ShuttingDownError):
            _fail(self._queue.drain(), error)
            return
        self._reporter.report(error, cause=f"batcher:{type(error).__name__}")
        waiting = self._queue.drain()
        _deliver(waiting, [_internal(error)] * len(waiting))


def _stopping() -> ShuttingDownError:
    return ShuttingDownError("the worker is stopping; the task goes back to its queue")


def _internal(error: BaseException) -> InternalError:
    return InternalError(f"an internal error of the worker, reported to its operator: {type(error).__name__}")


def _deliver(batch: Sequence[Waiting], outcomes: Sequence[Outcome]) -> None:
    """Each caller its own tickets' outcomes, as one part; a ticket that has its outcome keeps it."""
    parts: dict[Call, Part] = defaultdict(list)
    for one, outcome in zip(batch, outcomes, strict=True):
        if not one.settled:
            one.settled = True
            parts[one.owner].append((one.ticket, outcome))
    for call, part in parts.items():
        call.deliver(part)


def _fail(batch: Sequence[Waiting], error: BaseException) -> None:
    """The error to each caller that still waits for a ticket of this batch."""
    for call in {one.owner for one in batch if not one.settled}:
        call.fail(error)

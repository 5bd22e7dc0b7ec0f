"""Awaits tickets, wakes when a device is free, and brings each ticket exactly one outcome."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from legit_embedding.batching.calls import Call
from legit_embedding.batching.device import Device
from legit_embedding.batching.policy import Ticket
from legit_embedding.clock import Clock
from legit_embedding.errors import ShuttingDownError
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.telemetry.reports import Reporter
from legit_embedding.values import ModelInfo, Options, Outcome, Prepared

CLOSE_TIMEOUT_S = 20.0


class BatchTarget(Protocol):
    """As much of a model as batching needs."""

    @property
    def info(self) -> ModelInfo:
        """What the model is, its limits and its device."""
        ...

    def forward(self, batch: Sequence[Prepared]) -> Any:
        """Computes one batch, on the device's thread."""
        ...

    def finish(self, raw: Any, options: Sequence[Options]) -> list[Outcome]:
        """An outcome for each item of the batch, in order."""
        ...


Hold = Callable[[BatchTarget], AbstractContextManager[None]]
"""Keeps a model from being closed while the context is entered."""


@dataclass(frozen=True, slots=True)
class BatcherStatistics:
    """Tickets queued, batches running, and what has been computed since the start."""

    queued: int
    running: int
    batches: int
    items: int

    @property
    def mean_batch_size(self) -> float:
        """Items a batch, 0 where there was none."""
        return self.items / self.batches if self.batches else 0.0


def default_depth(device: str) -> int:
    """Batches given to a device's thread at once: on an accelerator one waits there, so that it never idles."""
    return 1 if device == "cpu" else 2


class Batcher:
    """Shares batches among all tasks, one inference thread a device; an async context manager.

    `gate` is awaited before each batch: it holds inference back while results cannot be written. `hold` is entered with
    a batch's model before the batch starts and left when it is done, whatever has become of its tasks meanwhile. On
    leaving, batches that are under way have `close_timeout_s` seconds.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        gate: Callable[[], Awaitable[None]],
        metrics: Metrics,
        reporter: Reporter,
        hold: Hold = lambda _: nullcontext(),
        depth: Callable[[str], int] = default_depth,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        self._clock = clock
        self._gate = gate
        self._metrics = metrics
        self._reporter = reporter
        self._hold = hold
        self._depth = depth
        self._close_timeout_s = close_timeout_s
        self._devices: dict[str, Device] = {}
        self._closed = False

    def submit(self, model: BatchTarget, tickets: Sequence[Ticket]) -> Call:
        """Queues `tickets` at once; iterating yields (ticket, outcome) pairs, a list whenever a batch is done.

        The iteration ends when every ticket has its outcome. A caller that is cancelled while it waits withdraws what
        has not begun; one that leaves the iteration for another reason calls `withdraw`.

        Raises:
            ShuttingDownError: from the iteration; the batcher closed first.
        """
        call = Call(len(tickets))
        if self._closed:
            call.fail(ShuttingDownError("no batch is formed any more: the worker is stopping"))
        elif tickets:
            self._device(model.info.device).put(model, tickets, call)
        return call

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        await asyncio.gather(*(device.close(self._close_timeout_s) for device in self._devices.values()))

    def statistics(self) -> BatcherStatistics:
        """The figures of all devices together."""
        devices = self._devices.values()
        return BatcherStatistics(
            queued=sum(device.queued for device in devices),
            running=sum(device.running for device in devices),
            batches=sum(device.batches for device in devices),
            items=sum(device.items for device in devices),
        )

    def __repr__(self) -> str:
        figures = self.statistics()
        return f"<Batcher {figures.queued} queued, {figures.running} running, {figures.batches} batches done>"

    def _device(self, name: str) -> Device:
        device = self._devices.get(name)
        if device is None:
            device = self._devices[name] = Device(
                name,
                depth=self._depth(name),
                clock=self._clock,
                gate=self._gate,
                metrics=self._metrics,
                reporter=self._reporter,
                hold=self._hold,
            )
        return device

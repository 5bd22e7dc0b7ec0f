"""The publisher: every finished entry of every task, onto its stream, confirmed.

Group commit: a writer takes everything that is finished and sends it in one pipeline, without waiting for more. Several
writers, each with a connection of its own, keep several pipelines under way, so that a distant server costs no rate.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from legit_embedding.clock import Clock
from legit_embedding.config import Settings, StreamConfig
from legit_embedding.errors import ShuttingDownError
from legit_embedding.publish.dispatch import Dispatcher
from legit_embedding.publish.hold import Hold
from legit_embedding.publish.outcomes import Scope, Trouble, classify
from legit_embedding.publish.pending import Backlog, Entry, Submission, encode_fields, held_nbytes
from legit_embedding.publish.routing import RoutingRules
from legit_embedding.publish.switch import FixedRouting, RoutingState
from legit_embedding.publish.wire import RedisWire, Wire
from legit_embedding.publish.writing import StreamWriter
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.telemetry.reports import Reporter
from legit_embedding.values import Receipt

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
RESTART_PAUSE_S = 1.0
REJECTED_FIELD = "rejected_reply_to"


@dataclass(frozen=True, slots=True)
class PublisherStatistics:
    """Entries and bytes not yet confirmed, pipelines under way, and the sums since the start.

    `trouble` names what the publisher is waiting out, None where all is well. `retried` entries may be on their stream
    twice. `rejected` entries went to the global stream because their `reply_to` may not be used.
    """

    pending_entries: int
    pending_bytes: int
    pipelines: int
    confirmed: int
    retried: int
    rejected: int
    trouble: str | None


class Publisher:
    """Writes entries to streams; nothing is dropped while it runs. An async context manager, for one event loop.

    Entries of one stream are written in the order of their `submit` where they share a pipeline; across pipelines and
    retries no order is promised. `connect` makes one connection; the default is to the server at `url`.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        url: str,
        rules: RoutingRules,
        clock: Clock,
        metrics: Metrics,
        reporter: Reporter,
        routing: RoutingState | None = None,
        rejected_field: str = REJECTED_FIELD,
        connect: Callable[[], Wire] | None = None,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        self._room_bytes = int(settings.pending_results_bytes)
        self._rules = rules
        self._routing = routing or FixedRouting(enabled=settings.reply_to_routing == "on")
        self._clock = clock
        self._metrics = metrics
        self._reporter = reporter
        self._close_timeout_s = close_timeout_s

        connect = connect or (lambda: RedisWire(url=url, timeout_s=settings.publish_timeout_s))
        self._wires = [connect() for _ in range(settings.publish_connections)]
        self._guard_wire = connect()
        self._backlog = backlog = Backlog()
        metrics.watch_backlog(entries=lambda: backlog.entries, nbytes=lambda: backlog.nbytes)
        self._hold = Hold(clock=clock, metrics=metrics, reporter=reporter, changed=self._tell)
        self._dispatcher = Dispatcher(
            rules=rules,
            routing=self._routing,
            rejected_field=rejected_field,
            wire=self._guard_wire,
            hold=self._hold,
            ready=self._backlog.add,
            clock=clock,
            metrics=metrics,
            reporter=reporter,
        )
        self._writer = StreamWriter(
            stream=StreamConfig(rules.global_stream, settings.results_maxlen),
            max_entries=settings.publish_max_entries,
            wires=(*self._wires, self._guard_wire),
            backlog=self._backlog,
            hold=self._hold,
            confirmed=self._confirm,
            refused=self._dispatcher.refuse,
            changed=self._tell,
        )
        self._open: set[Submission] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._room = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._closing = False
        self._closed = False
        self._confirmed = 0

    # -- for the pipeline ----------------------------------------------------------------------------------------------

    def submit(self, reply_to: str | None, entries: Sequence[Mapping[str, str]]) -> asyncio.Future[list[Receipt]]:
        """Takes `entries` and returns at once; the future gives their receipts, in order, when all are confirmed.

        It never blocks: who produces entries waits for `wait_for_room` first. A cancelled future changes nothing for
        its entries.

        Raises:
            ShuttingDownError: from the future; the publisher stopped before all of them were confirmed.
        """
        return self._take(entries, self._rules.global_stream, partial(self._dispatcher.dispatch, reply_to))

    def bury(self, entry: Mapping[str, str]) -> asyncio.Future[list[Receipt]]:
        """As `submit`, for a task that is given up: `entry` goes to the stream of dead letters."""
        return self._take([entry], self._rules.dead_letter_stream, self._backlog.add)

    async def wait_for_room(self) -> None:
        """Returns when there is room for more results and their server takes them.

        Raises:
            ShuttingDownError: the publisher is stopping.
        """
        # Again after each waking: who was woken before may have filled the room.
        while not self._room.is_set():
            await self._room.wait()
        if self._closing:
            raise _shutting_down()

    def statistics(self) -> PublisherStatistics:
        """What is under way, and what has been."""
        trouble = self._hold.trouble
        return PublisherStatistics(
            pending_entries=self._backlog.entries,
            pending_bytes=self._backlog.nbytes,
            pipelines=self._writer.pipelines,
            confirmed=self._confirmed,
            retried=self._writer.retried,
            rejected=self._dispatcher.rejected,
            trouble=trouble.kind if trouble else None,
        )

    def __repr__(self) -> str:
        now = self.statistics()
        state = "closed" if self._closed else "closing" if self._closing else now.trouble or "well"
        return (
            f"<Publisher {state}: {now.pending_entries} entries ({now.pending_bytes} bytes) pending, "
            f"{now.pipelines} pipelines under way, {now.confirmed} confirmed>"
        )

    # -- life cycle ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        work: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("legit-publish-start", self._start),
            ("legit-publish-guard", self._dispatcher.guard.run),
        ]
        work += [
            (f"legit-publish-{number}", partial(self._writer.run, wire)) for number, wire in enumerate(self._wires)
        ]
        self._tasks = [asyncio.create_task(self._supervise(run), name=name) for name, run in work]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Writes what is there, for a bounded time; whoever still waits then gets ShuttingDownError."""
        if self._closing:
            return
        self._closing = True
        self._tell()
        try:
            await self._drain()
        finally:
            for task in self._tasks:
                task.cancel()
            for submission in self._open:
                submission.fail(_shutting_down())
            self._open.clear()
            self._drained.set()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for wire in (*self._wires, self._guard_wire):
                await wire.close()
            self._closed = True

    async def _drain(self) -> None:
        waits = [
            asyncio.create_task(self._drained.wait(), name="legit-publish-drain"),
            asyncio.create_task(self._clock.sleep(self._close_timeout_s), name="legit-publish-drain-limit"),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if self._open:
            logger.warning("stopped with %d entries not confirmed: their tasks run again", self._backlog.entries)

    async def _supervise(self, work: Callable[[], Awaitable[None]]) -> None:
        """Nothing but a bug ends `work` early; its entries are still in the books, so that it goes on after a pause."""
        while True:
            try:
                return await work()
            except Exception as error:  # noqa: BLE001  told, and not the end of publishing
                self._metrics.alarm("publish_internal")
                self._reporter.report(error, cause="publish:internal")
                await self._clock.sleep(RESTART_PAUSE_S)

    async def _start(self) -> None:
        """Everything waits for the server and for the routing switch that is kept on it."""
        while True:
            async with self._hold.turn():
                (reply,) = await self._guard_wire.execute([("PING",)])
            verdict = classify(reply, on_global_stream=False) if isinstance(reply, Exception) else None
            if not isinstance(verdict, Trouble):
                break
            self._hold.fail(verdict, reply)
        # All of it: nothing was written so far that could prove more, and PING itself meets MISCONF and BUSY.
        self._hold.prove(Scope.GLOBAL_STREAM)
        await self._routing.ready()
        self._dispatcher.open()
        self._tell()

    # -- the books -----------------------------------------------------------------------------------------------------

    def _take(
        self, parts: Sequence[Mapping[str, str]], stream: str, send: Callable[[list[Entry]], object]
    ) -> asyncio.Future[list[Receipt]]:
        future: asyncio.Future[list[Receipt]] = asyncio.get_running_loop().create_future()
        submission = Submission(future, [None] * len(parts), len(parts), self._clock.monotonic())
        if self._closing:
            submission.fail(_shutting_down())
        elif not parts:
            future.set_result([])
        else:
            encoded = [encode_fields(part) for part in parts]
            entries = [
                Entry(stream, fields, held_nbytes(fields), submission, index) for index, fields in enumerate(encoded)
            ]
            self._open.add(submission)
            self._drained.clear()
            self._backlog.count_in(entries)
            send(entries)
            self._tell()
        return future

    def _confirm(self, entry: Entry, receipt: Receipt) -> None:
        if entry.is_confirmed:  # written twice, after a failure in between
            return
        self._confirmed += 1
        self._backlog.count_out(entry)
        if entry.submission.confirm(entry.index, receipt):
            self._open.discard(entry.submission)
            self._metrics.stage("publish", self._clock.monotonic() - entry.submission.started_s)
            if not self._open:
                self._drained.set()

    def _tell(self) -> None:
        """Opens or closes the intake."""
        waits = not self._dispatcher.is_open or self._hold.trouble is not None
        if self._closing or (not waits and self._backlog.nbytes < self._room_bytes):
            self._room.set()
        else:
            self._room.clear()


def _shutting_down() -> ShuttingDownError:
    return ShuttingDownError("the worker is stopping before its results were confirmed; the task goes back")

"""The worker's figures in a Redis hash with a TTL, every few seconds: for operators and tools without Prometheus.

The hash is also where two workers of one identity meet: each writes its instance's token, and finds the other's there.
"""

import asyncio
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from legit_embedding.clock import Clock
from legit_embedding.errors import LegitError
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.telemetry.reports import Reporter

logger = logging.getLogger(__name__)

KEY_PREFIX = "legit:worker:"
INTERVALS_TO_LIVE = 3
SHORTEST_TTL_S = 5

Figures = Mapping[str, str | int | float]


class Commands(Protocol):
    """A connection to the result server, as `publish.wire.Wire` is one."""

    async def execute(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> list[Any]:
        """One reply or exception for each command; raises nothing."""
        ...

    async def close(self) -> None:
        """Closes the connection."""
        ...


class DuplicateIdentityError(LegitError):
    """Two workers run under one identity: give each its own LEGIT_WORKER_ID."""


class StatsPublisher:
    """Writes `legit:worker:<identity>` every `interval_s` seconds; an async context manager.

    The hash holds `Metrics.snapshot()`, `busy_share:<device>` since the last write, what `extra` returns, and who wrote
    it. It is gone a few intervals after the worker, and at once where the worker stops in good order.
    """

    def __init__(
        self,
        *,
        identity: str,
        commands: Commands,
        metrics: Metrics,
        extra: Callable[[], Figures],
        clock: Clock,
        reporter: Reporter,
        interval_s: float,
        instance: str | None = None,
    ) -> None:
        self.key = f"{KEY_PREFIX}{identity}"
        self._identity = identity
        self._commands = commands
        self._metrics = metrics
        self._extra = extra
        self._clock = clock
        self._reporter = reporter
        self._interval_s = interval_s
        self._instance = instance or uuid.uuid4().hex
        self._started_s = clock.time()
        self._written = False
        self._unreachable = False
        self._busy_s: Mapping[str, float] = {}
        self._busy_at_s = clock.monotonic()
        self._task: asyncio.Task[None] | None = None

    async def write(self) -> None:
        """Writes the figures once; a server that cannot be reached is told once, and tried again the next time."""
        figures = self._figures()
        ttl_s = max(SHORTEST_TTL_S, round(INTERVALS_TO_LIVE * self._interval_s))
        pairs = [part for name, value in figures.items() for part in (name, str(value))]
        found, *replies = await self._commands.execute(
            [("HGET", self.key, "instance"), ("HSET", self.key, *pairs), ("EXPIRE", self.key, ttl_s)]
        )
        failure = next((reply for reply in (found, *replies) if isinstance(reply, Exception)), None)
        if failure is not None:
            if not self._unreachable:
                logger.warning("the worker's figures could not be written to %s: %s", self.key, failure)
            self._unreachable = True
            return
        self._unreachable = False
        self._look_for_a_double(found)
        self._written = True

    async def close(self) -> None:
        """Stops writing and removes the hash, if it is still ours."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        (found,) = await self._commands.execute([("HGET", self.key, "instance")])
        if found == self._instance.encode():
            await self._commands.execute([("DEL", self.key)])
        await self._commands.close()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="legit-stats")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<StatsPublisher {self.key}>"

    async def _run(self) -> None:
        while True:
            try:
                await self.write()
            except Exception as error:  # noqa: BLE001  figures that cannot be made must not end the worker
                self._reporter.report(error, cause=f"stats:{type(error).__name__}")
            await self._clock.sleep(self._interval_s)

    def _look_for_a_double(self, found: Any) -> None:
        """What a former run left here is found at the first write; what is found later, another worker has written."""
        if not self._written or found is None or found == self._instance.encode():
            return
        self._metrics.alarm("duplicate_identity")
        self._reporter.report(
            DuplicateIdentityError(
                f"another worker runs as {self._identity!r}: their results, logs and figures cannot be told apart; "
                "give each its own LEGIT_WORKER_ID"
            ),
            cause=f"duplicate-identity:{self._identity}",
        )

    def _figures(self) -> dict[str, str | int | float]:
        return {
            "identity": self._identity,
            "instance": self._instance,
            "pid": os.getpid(),
            "started_at_ms": int(self._started_s * 1000),
            "at_ms": int(self._clock.time() * 1000),
            **self._metrics.snapshot(),
            **self._busy_shares(),
            **self._extra(),
        }

    def _busy_shares(self) -> dict[str, float]:
        busy_s, now_s = dict(self._metrics.busy_seconds()), self._clock.monotonic()
        passed_s = now_s - self._busy_at_s
        shares = {
            f"busy_share:{device}": round(min(1.0, (seconds - self._busy_s.get(device, 0.0)) / passed_s), 3)
            for device, seconds in busy_s.items()
            if passed_s > 0
        }
        self._busy_s, self._busy_at_s = busy_s, now_s
        return shares

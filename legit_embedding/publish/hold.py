"""Trouble with the result server, waited out: nothing is dropped, and one writer at a time tries again."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from legit_embedding.backoff import Backoff
from legit_embedding.clock import Clock
from legit_embedding.publish.outcomes import Scope, Trouble
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.telemetry.reports import Reporter

logger = logging.getLogger(__name__)

BACKOFF = Backoff(base_s=0.1, max_s=5.0)

PASSING = frozenset({"unreachable", "timeout", "loading"})
"""A line that breaks and is back at the next attempt is no news; one that stays down is."""


class Hold:
    """Active from a failure until a success proves the trouble gone; calls `changed` when it begins and ends."""

    def __init__(
        self,
        *,
        clock: Clock,
        metrics: Metrics,
        reporter: Reporter,
        changed: Callable[[], None],
        backoff: Backoff = BACKOFF,
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._reporter = reporter
        self._changed = changed
        self._backoff = backoff
        self._trouble: Trouble | None = None
        self._attempt = 0
        self._alarmed: set[str] = set()
        self._probing = asyncio.Lock()

    @property
    def trouble(self) -> Trouble | None:
        """What is wrong now."""
        return self._trouble

    def fail(self, trouble: Trouble, error: BaseException, *, proven: Scope | None = None) -> None:
        """Something met `trouble`; a part of it that came through has `proven` that much, and the pauses start over."""
        known = self._trouble
        # A smaller trouble on top of a larger one does not hide it: the larger one is what has to be proven gone. Where
        # it just was, nothing may be left that could prove it again, and the intake would stay closed for good.
        if known is None or known.scope <= max(trouble.scope, proven or trouble.scope):
            self._trouble = trouble
        if known is None or proven is not None:
            self._attempt = 0
        self._metrics.retry("publish")
        self._tell(trouble, error)
        if known is None:
            self._changed()

    def prove(self, scope: Scope) -> None:
        """Something that needs as much as `scope` to work has worked."""
        if self._trouble is None or scope < self._trouble.scope:
            return
        if self._alarmed:
            logger.warning("the result server takes results again after: %s", ", ".join(sorted(self._alarmed)))
        self._trouble = None
        self._attempt = 0
        self._alarmed.clear()
        self._changed()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Enters at once while all is well; else one at a time, each after a pause longer than the last."""
        while self._trouble is not None:
            async with self._probing:
                if self._trouble is not None:
                    await self._clock.sleep(self._backoff.pause_s(self._attempt))
                    # Attempts are counted, not failures: when a line breaks, every pipeline on its way fails at once.
                    self._attempt += 1
                    yield
                    return
        yield

    def __repr__(self) -> str:
        return f"<Hold {self._trouble.kind if self._trouble else 'none'}>"

    def _tell(self, trouble: Trouble, error: BaseException) -> None:
        passing = trouble.kind in PASSING and self._attempt == 0
        if passing or trouble.kind in self._alarmed:
            return
        self._alarmed.add(trouble.kind)
        self._metrics.alarm(f"publish_{trouble.kind}")
        self._reporter.report(error, cause=f"publish:{trouble.kind}")

"""Errors that an operator should see: once a cause, not once an item."""

import logging
import threading
from typing import Protocol

import sentry_sdk

from legit_embedding.clock import Clock

logger = logging.getLogger(__name__)

QUIET_S = 3600.0
"""How long a cause that was reported stays quiet."""


class Reporter(Protocol):
    """Tells an operator of an error."""

    def report(self, error: BaseException, *, cause: str, **context: str) -> None:
        """Reports `error`, unless the same `cause` was reported a short while ago. Any thread; never raises."""
        ...


class SentryReporter:
    """One log line and one Sentry event a cause and hour; Sentry only where it was set up."""

    def __init__(self, *, clock: Clock, quiet_s: float = QUIET_S) -> None:
        self._clock = clock
        self._quiet_s = quiet_s
        self._told_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def report(self, error: BaseException, *, cause: str, **context: str) -> None:
        """See `Reporter`; the cause is the event's fingerprint, so that Sentry too counts causes."""
        now_s = self._clock.monotonic()
        with self._lock:
            if now_s - self._told_s.get(cause, float("-inf")) < self._quiet_s:
                return
            self._told_s[cause] = now_s
        logger.error("%s: %s", cause, error, exc_info=error)
        with sentry_sdk.new_scope() as scope:
            scope.fingerprint = [cause]
            scope.set_tag("cause", cause)
            for name, value in context.items():
                scope.set_tag(name, value)
            scope.capture_exception(error)

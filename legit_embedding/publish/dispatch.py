"""From `reply_to` to the stream that an entry is written to, and what happens where that stream may not be used."""

import logging
from collections.abc import Callable, Sequence

from legit_embedding.clock import Clock
from legit_embedding.publish.hold import Hold
from legit_embedding.publish.keyguard import KeyGuard, Verdicts
from legit_embedding.publish.outcomes import Refused
from legit_embedding.publish.pending import Entry
from legit_embedding.publish.routing import RoutingRules, route
from legit_embedding.publish.switch import RoutingState
from legit_embedding.publish.wire import Wire
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.telemetry.reports import Reporter

logger = logging.getLogger(__name__)


class Dispatcher:
    """Gives each entry its stream and hands it to `ready`, some after a look at the server.

    Until `open`, entries wait: which streams they go to is not known before the server was asked.
    """

    def __init__(
        self,
        *,
        rules: RoutingRules,
        routing: RoutingState,
        rejected_field: str,
        wire: Wire,
        hold: Hold,
        ready: Callable[[Sequence[Entry]], None],
        clock: Clock,
        metrics: Metrics,
        reporter: Reporter,
    ) -> None:
        self._rules = rules
        self._routing = routing
        self._rejected_field = rejected_field
        self._ready = ready
        self._metrics = metrics
        self._reporter = reporter
        self._verdicts = Verdicts(clock=clock)
        self.guard = KeyGuard(
            wire=wire, hold=hold, verdicts=self._verdicts, key_prefix=rules.key_prefix, release=self._checked
        )
        self._waiting: list[tuple[str | None, Sequence[Entry]]] = []
        self.is_open = False
        self.rejected = 0

    def open(self) -> None:
        """Routing is known from now on."""
        self.is_open = True
        waiting, self._waiting = self._waiting, []
        for reply_to, entries in waiting:
            self.dispatch(reply_to, entries)

    def dispatch(self, reply_to: str | None, entries: Sequence[Entry]) -> None:
        """Sends `entries` on their way."""
        if not self.is_open:
            self._waiting.append((reply_to, entries))
            return
        chosen = route(reply_to, rules=self._rules, enabled=self._routing.enabled)
        if chosen.rejected is not None:
            self._reject(chosen.rejected, entries)
            return
        for entry in entries:
            entry.stream = chosen.stream
        known = True if chosen.stream == self._rules.global_stream else self._verdicts.get(chosen.stream)
        if known is None:
            self.guard.park(chosen.stream, entries)
        else:
            self._checked(chosen.stream, entries, known)

    def refuse(self, entry: Entry, why: Refused, error: Exception) -> None:
        """The server will not take `entry` on its stream."""
        if self._verdicts.get(entry.stream) is not False:
            logger.warning("results for %r go to the global stream, it refuses them: %s", entry.stream, error)
            if why.kind == "no_permission":
                self._metrics.alarm("publish_no_permission")
                self._reporter.report(error, cause="publish:no_permission", stream=entry.stream)
        self._verdicts.put(entry.stream, usable=False)
        self._reject(entry.stream, [entry])

    def _checked(self, stream: str, entries: Sequence[Entry], usable: bool) -> None:
        if usable:
            self._ready(entries)
        else:
            self._reject(stream, entries)

    def _reject(self, name: str, entries: Sequence[Entry]) -> None:
        """To the global stream, with the name that was asked for."""
        self.rejected += len(entries)
        for entry in entries:
            entry.redirect(self._rules.global_stream, rejected_field=self._rejected_field, rejected=name)
        self._ready(entries)

"""A publisher whose server, clock and operator are a test's own."""

from dataclasses import dataclass, field

import pytest

from legit_embedding.config import load_settings
from legit_embedding.publish.hold import Hold
from legit_embedding.publish.routing import RoutingRules
from legit_embedding.publish.streams import Publisher
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.clock import FakeClock
from legit_embedding.testing.publisher import ScriptedServer
from legit_embedding.testing.reports import NullReporter

RULES = RoutingRules(global_stream="results", queues=frozenset({"work"}))


@dataclass
class World:
    """What surrounds a publisher. `settled_s` is longer than any pause between two attempts."""

    server: ScriptedServer = field(default_factory=ScriptedServer)
    clock: FakeClock = field(default_factory=FakeClock)
    metrics: Metrics = field(default_factory=Metrics)
    reporter: NullReporter = field(default_factory=NullReporter)
    changes: list[str] = field(default_factory=list)
    settled_s: float = 6.0

    def publisher(self, *, rules=RULES, routing=None, close_timeout_s=10.0, connect=None, **settings):
        given = {
            "publish_connections": 3,
            "publish_max_entries": 256,
            "pending_results_bytes": 64 * 1024 * 1024,
            "results_maxlen": None,
            "reply_to_routing": "on",
        } | settings
        return Publisher(
            settings=load_settings(**given),
            url="redis://unused",
            rules=rules,
            clock=self.clock,
            metrics=self.metrics,
            reporter=self.reporter,
            routing=routing,
            connect=connect or self.server.connect,
            close_timeout_s=close_timeout_s,
        )

    def hold(self):
        hold = Hold(
            clock=self.clock,
            metrics=self.metrics,
            reporter=self.reporter,
            changed=lambda: self.changes.append(hold.trouble.kind if hold.trouble else "well"),
        )
        return hold

    @property
    def alarms(self):
        return self.metrics.snapshot()["alarms"]

    @property
    def written(self):
        """The first field's value of each entry sent so far, one list a pipeline of XADDs."""
        return [
            [command[command.index("*") + 2].decode() for command in commands]
            for commands in self.server.sent
            if commands[0][0] == "XADD"
        ]


@pytest.fixture
def world():
    return World()

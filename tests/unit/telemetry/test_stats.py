"""The worker's figures on the result server."""

from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.telemetry.stats import StatsPublisher
from legit_embedding.testing.clock import FakeClock, settle
from legit_embedding.testing.reports import NullReporter


class Hashes:
    """A server of hashes; `down` makes every command fail."""

    def __init__(self):
        self.hashes = {}
        self.ttl_s = {}
        self.down = None
        self.closed = False

    async def execute(self, commands):
        if self.down is not None:
            return [self.down] * len(commands)
        return [self._run(*command) for command in commands]

    def _run(self, name, key, *rest):
        if name == "HGET":
            found = self.hashes.get(key, {}).get(rest[0])
            return None if found is None else found.encode()
        if name == "HSET":
            self.hashes.setdefault(key, {}).update(zip(rest[::2], rest[1::2], strict=True))
        if name == "EXPIRE":
            self.ttl_s[key] = rest[0]
        if name == "DEL":
            self.hashes.pop(key, None)
        return 1

    async def close(self):
        self.closed = True


class Rig:
    """A publisher on a clock and a server of its own, or on those of another."""

    def __init__(self, *, server=None, clock=None, instance="one", interval_s=5.0):
        self.server = server or Hashes()
        self.clock = clock or FakeClock()
        self.metrics = Metrics(identity="w")
        self.reporter = NullReporter()
        self.publisher = StatsPublisher(
            identity="embed@rack-7",
            commands=self.server,
            metrics=self.metrics,
            extra=lambda: {"results_confirmed": 3},
            clock=self.clock,
            reporter=self.reporter,
            interval_s=interval_s,
            instance=instance,
        )

    @property
    def figures(self):
        return self.server.hashes["legit:worker:embed@rack-7"]


async def test_the_figures_are_written_at_once_and_then_at_each_interval():
    rig = Rig()
    async with rig.publisher:
        await settle()
        assert rig.figures["items_ok"] == "0"
        assert rig.figures["results_confirmed"] == "3"
        assert rig.figures["identity"] == "embed@rack-7"
        rig.metrics.item("clip", "ok", 9)
        await rig.clock.advance(4.9)
        assert rig.figures["items_ok"] == "0"
        await rig.clock.advance(0.1)
        assert rig.figures["items_ok"] == "9"


async def test_the_hash_outlives_a_few_missed_intervals_and_no_more():
    rig = Rig(interval_s=10.0)
    await rig.publisher.write()
    assert rig.server.ttl_s == {"legit:worker:embed@rack-7": 30}


async def test_the_busy_share_is_that_of_the_time_since_the_last_write():
    rig = Rig()
    await rig.publisher.write()
    rig.metrics.batch(model="clip", device="cpu", items=1, capacity=1, seconds=2.0)
    await rig.clock.advance(4.0)
    await rig.publisher.write()
    assert rig.figures["busy_share:cpu"] == "0.5"
    await rig.clock.advance(4.0)
    await rig.publisher.write()
    assert rig.figures["busy_share:cpu"] == "0.0"


async def test_two_living_workers_of_one_identity_are_told_to_both():
    first = Rig()
    second = Rig(server=first.server, clock=first.clock, instance="two")
    for _ in range(2):
        await first.publisher.write()
        await second.publisher.write()
    cause = "duplicate-identity:embed@rack-7"
    assert first.reporter.causes == second.reporter.causes == [cause]
    assert "LEGIT_WORKER_ID" in str(first.reporter.errors[0])
    assert first.metrics.snapshot()["alarms"] == 1


async def test_what_a_former_run_left_behind_is_no_double():
    former = Rig()
    await former.publisher.write()
    now = Rig(server=former.server, clock=former.clock, instance="two")
    for _ in range(3):
        await now.publisher.write()
    assert now.reporter.causes == []


async def test_a_worker_that_stops_takes_its_hash_along_but_not_anothers():
    first = Rig()
    await first.publisher.write()
    await first.publisher.close()
    assert first.server.hashes == {}
    assert first.server.closed
    second = Rig(server=first.server, instance="two")
    await second.publisher.write()
    await first.publisher.close()
    assert second.figures["instance"] == "two"


async def test_a_server_that_is_away_is_told_once_and_written_to_again_when_it_is_back(caplog):
    rig = Rig()
    rig.server.down = ConnectionError("gone")
    async with rig.publisher:
        await rig.clock.advance(12.0)
        assert len(caplog.records) == 1
        rig.server.down = None
        await rig.clock.advance(5.0)
        assert rig.figures["items_ok"] == "0"


async def test_figures_that_cannot_be_made_are_reported_and_do_not_end_the_writing():
    rig = Rig()
    figures = iter([ZeroDivisionError("bug"), None])

    def extra():
        error = next(figures)
        if error is not None:
            raise error
        return {}

    rig.publisher._extra = extra
    async with rig.publisher:
        await settle()
        assert rig.reporter.causes == ["stats:ZeroDivisionError"]
        await rig.clock.advance(5.0)
        assert rig.figures["identity"] == "embed@rack-7"

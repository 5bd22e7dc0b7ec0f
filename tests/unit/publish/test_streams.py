"""The publisher against a scripted server: group commit, pipelining, retry, back-pressure, close."""

import asyncio
import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from legit_embedding.config import load_settings
from legit_embedding.errors import ShuttingDownError
from legit_embedding.publish.pending import held_nbytes
from legit_embedding.publish.routing import RoutingRules
from legit_embedding.publish.streams import Publisher
from legit_embedding.publish.writing import PROBE_ENTRIES
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.clock import FakeClock, settle
from legit_embedding.testing.publisher import ScriptedServer
from legit_embedding.testing.reports import NullReporter

WAITED_OUT = [
    (OutOfMemoryError("command not allowed"), "out_of_memory"),
    (ResponseError("MISCONF Errors writing to the AOF file"), "misconf"),
    (ResponseError("NOREPLICAS Not enough good replicas to write."), "noreplicas"),
    (ResponseError("BUSY Redis is busy running a script."), "busy"),
    (ReadOnlyError("You can't write against a read only replica."), "read_only"),
    (ClusterDownError("Hash slot not served"), "cluster_down"),
    (BusyLoadingError("Redis is loading the dataset in memory"), "loading"),
    (AuthenticationError("Authentication required."), "authentication"),
    (AuthenticationError("invalid username-password pair"), "authentication"),
    (RedisTimeoutError("Timeout reading"), "timeout"),
    (TimeoutError(), "timeout"),
    (ConnectionRefusedError(111, "Connection refused"), "unreachable"),
    (RedisConnectionError("Connection closed by server."), "unreachable"),
    (ValueError("a bug of ours"), "internal"),
]
REFUSED = [
    ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    ResponseError("The stream has exhausted the last possible ID, unable to add more items"),
    NoPermissionError("no permissions to access the 'answers' key"),
]


def named(*names):
    return [{"n": name} for name in names]


def on(server, stream):
    """The names that `stream` holds, in order."""
    return [entry["n"] for entry in server.streams[stream]]


class BentWire:
    """A scripted connection whose replies to what begins with `command` go through `bend`, as a test may set it."""

    def __init__(self, server, command="XADD"):
        self.server = server
        self.command = command
        self.bend = None

    def connect(self):
        return _Bent(self, self.server.connect())


class _Bent:
    def __init__(self, how, inner):
        self.how, self.inner = how, inner
        self.expire, self.close = inner.expire, inner.close

    async def execute(self, commands):
        replies = await self.inner.execute(commands)
        bent = self.how.bend is not None and commands[0][0] == self.how.command
        return self.how.bend(replies) if bent else replies


def at_xadd(error, stream=None):
    """Refuses each XADD (to `stream`)."""
    return lambda command: error if command[0] == "XADD" and stream in {None, command[1]} else None


# -- group commit and pipelining ---------------------------------------------------------------------------------------


async def test_entries_of_many_tasks_share_one_pipeline(world):
    async with world.publisher() as publisher:
        await settle()
        waiting = [publisher.submit(None, named(f"{task}.0", f"{task}.1")) for task in range(5)]
        await asyncio.gather(*waiting)
        assert world.written == [[f"{task}.{item}" for task in range(5) for item in (0, 1)]]


async def test_several_pipelines_are_under_way_at_once(world):
    """The second and the third leave before the first is answered: distance costs no rate."""
    async with world.publisher() as publisher:
        await settle()
        asked = len(world.server.log)
        world.server.hold()
        waiting = []
        for name in "abc":
            waiting.append(publisher.submit(None, named(name)))
            await settle()
        assert [what for what, _ in world.server.log[asked:]] == ["sent"] * 3
        assert publisher.statistics().pipelines == 3
        assert world.written == [["a"], ["b"], ["c"]]
        world.server.release()
        await asyncio.gather(*waiting)
        assert publisher.statistics().pipelines == 0


async def test_what_comes_while_all_writers_are_busy_joins_the_next_pipeline(world):
    async with world.publisher(publish_connections=2) as publisher:
        await settle()
        world.server.hold()
        waiting = []
        for name in "abcde":
            waiting.append(publisher.submit(None, named(name)))
            await settle()
        assert world.written == [["a"], ["b"]]
        world.server.release()
        await asyncio.gather(*waiting)
        assert world.written == [["a"], ["b"], ["c", "d", "e"]]


async def test_a_pipeline_carries_so_many_entries_at_most_and_the_rest_goes_with_the_next_connection(world):
    async with world.publisher(publish_max_entries=2) as publisher:
        await settle()
        world.server.hold()
        waiting = publisher.submit(None, named(*"abcde"))
        await settle()
        assert world.written == [["a", "b"], ["c", "d"], ["e"]]
        world.server.release()
        assert [receipt.stream for receipt in await waiting] == ["results"] * 5


async def test_a_pipeline_carries_so_many_bytes_at_most_and_one_entry_at_least(world):
    async with world.publisher() as publisher:
        await settle()
        world.server.hold()
        large = "x" * (3 * 1024 * 1024)
        publisher.submit(None, [{"n": "a", "v": large}, {"n": "b", "v": large * 2}, {"n": "c"}])
        await settle()
        assert world.written == [["a"], ["b"], ["c"]]
        world.server.release()


async def test_trimming_is_asked_for_only_where_it_is_set(world):
    async with world.publisher() as publisher:
        await publisher.submit(None, named("a"))
    assert world.server.sent[-1] == [("XADD", "results", "*", b"n", b"a")]
    async with world.publisher(results_maxlen=9) as publisher:
        await publisher.submit(None, named("b"))
    assert world.server.sent[-1] == [("XADD", "results", "MAXLEN", "~", 9, "*", b"n", b"b")]


async def test_nothing_is_written_before_the_server_and_the_switch_have_answered(world):
    """Until then it is not known which stream an entry belongs to."""

    class Routing:
        enabled = True

        def __init__(self):
            self.known = asyncio.Event()

        async def ready(self):
            await self.known.wait()

    routing = Routing()
    async with world.publisher(routing=routing) as publisher:
        waiting = publisher.submit("answers", named("a"))
        room = asyncio.ensure_future(publisher.wait_for_room())
        await settle()
        assert world.written == []
        assert not room.done()
        routing.enabled = False
        routing.known.set()
        await waiting
        await room
        assert on(world.server, "results") == ["a"]


async def test_the_switch_decides_at_the_time_of_the_submission(world):
    class Routing:
        enabled = True

        async def ready(self):
            pass

    routing = Routing()
    async with world.publisher(routing=routing) as publisher:
        await publisher.submit("answers", named("a"))
        routing.enabled = False
        await publisher.submit("answers", named("b"))
    assert (on(world.server, "answers"), on(world.server, "results")) == (["a"], ["b"])


# -- what the server says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "kind"), WAITED_OUT, ids=[f"{kind}-{error!r}" for error, kind in WAITED_OUT])
async def test_a_trouble_closes_the_intake_keeps_the_entries_and_is_over_by_itself(world, error, kind):
    async with world.publisher() as publisher:
        await publisher.wait_for_room()
        world.server.fail = at_xadd(error)
        waiting = publisher.submit(None, named("a", "b"))
        await world.clock.advance(world.settled_s)
        assert publisher.statistics().trouble == kind
        assert publisher.statistics().pending_entries == 2
        assert publisher.statistics().retried >= 2
        assert not waiting.done()
        room = asyncio.ensure_future(publisher.wait_for_room())
        await settle()
        assert not room.done()
        world.server.fail = lambda _: None
        await world.clock.advance(world.settled_s)
        receipts = await waiting
        await room
        assert on(world.server, "results") == ["a", "b"]
        assert [receipt.entry_id for receipt in receipts] == ["1-0", "2-0"]
        assert (publisher.statistics().trouble, publisher.statistics().pending_entries) == (None, 0)
    assert world.reporter.causes == [f"publish:{kind}"]


@pytest.mark.parametrize("error", REFUSED, ids=str)
async def test_an_entry_that_its_stream_will_never_take_goes_to_the_global_stream_at_once(world, error):
    async with world.publisher() as publisher:
        world.server.fail = at_xadd(error, "answers")
        receipts = await publisher.submit("answers", named("a", "b"))
        assert [receipt.stream for receipt in receipts] == ["results", "results"]
        assert world.server.streams["results"] == [
            {"n": "a", "rejected_reply_to": "answers"},
            {"n": "b", "rejected_reply_to": "answers"},
        ]
        statistics = publisher.statistics()
        assert (statistics.rejected, statistics.retried, statistics.trouble) == (2, 0, None)


@pytest.mark.parametrize("error", REFUSED, ids=str)
async def test_a_stream_that_refused_once_is_not_tried_again_for_a_while(world, error):
    async with world.publisher() as publisher:
        world.server.fail = at_xadd(error, "answers")
        await publisher.submit("answers", named("a"))
        world.server.fail = lambda _: None
        await publisher.submit("answers", named("b"))
        assert on(world.server, "results") == ["a", "b"]
        await world.clock.advance(300.0)
        await publisher.submit("answers", named("c"))
        assert on(world.server, "answers") == ["c"]


async def test_a_missing_permission_is_told_to_the_operator_once(world):
    async with world.publisher() as publisher:
        world.server.fail = at_xadd(NoPermissionError("no"), "answers")
        await publisher.submit("answers", named("a", "b"))
        await publisher.submit("answers", named("c"))
    assert world.reporter.causes == ["publish:no_permission"]
    assert world.alarms == 1


@pytest.mark.parametrize("error", REFUSED, ids=str)
async def test_the_global_stream_has_no_way_out_and_is_waited_for(world, error):
    async with world.publisher() as publisher:
        world.server.fail = at_xadd(error, "results")
        waiting = publisher.submit(None, named("a"))
        others = publisher.submit("answers", named("b"))
        await world.clock.advance(10 * world.settled_s)
        assert [receipt.stream for receipt in await others] == ["answers"]  # the others' streams still work
        assert not waiting.done()
        world.server.fail = lambda _: None
        await world.clock.advance(world.settled_s)
        await waiting
        assert publisher.statistics().trouble is None


async def test_each_entry_of_a_pipeline_meets_its_own_fate(world):
    """Confirmed ones are done, whatever their neighbours meet."""
    errors = {"b": OutOfMemoryError("full"), "c": ResponseError("WRONGTYPE"), "d": RedisTimeoutError()}
    async with world.publisher() as publisher:
        await publisher.submit("answers", named("first"))
        world.server.fail = lambda command: errors.get(command[-1].decode()) if command[0] == "XADD" else None
        waiting = [publisher.submit("answers", named(name)) for name in "abcd"]
        await settle()
        assert [each.done() for each in waiting] == [True, False, False, False]
        errors.clear()
        await world.clock.advance(world.settled_s)
        receipts = [(await each)[0].stream for each in waiting]
        assert receipts == ["answers", "answers", "results", "answers"]
        assert Counter(on(world.server, "answers")) == Counter(["first", "a", "b", "d"])
        assert on(world.server, "results") == ["c"]


async def test_what_the_server_refuses_does_not_stand_before_what_it_would_take(world):
    async with world.publisher(publish_connections=1, publish_max_entries=1) as publisher:
        await publisher.submit("answers", named("first"))
        world.server.fail = at_xadd(ResponseError("WRONGTYPE"), "results")
        stuck = publisher.submit(None, named("a"))
        free = publisher.submit("answers", named("b"))
        await world.clock.advance(2 * world.settled_s)
        assert (stuck.done(), free.done()) == (False, True)
        world.server.fail = lambda _: None
        await world.clock.advance(world.settled_s)
        await stuck


async def test_in_trouble_one_small_pipeline_at_a_time_tries_again(world):
    """An unknown outcome may leave each of its entries twice: the fewer the better."""
    async with world.publisher() as publisher:
        await publisher.wait_for_room()
        world.server.break_line = RedisTimeoutError("Timeout reading")
        waiting = publisher.submit(None, named(*map(str, range(200))))
        await settle()
        assert [len(pipeline) for pipeline in world.written] == [200]
        await world.clock.advance(3 * world.settled_s)
        probes = world.written[1:]
        assert len(probes) >= 3
        assert all(probe == [str(number) for number in range(PROBE_ENTRIES)] for probe in probes)
        world.server.break_line = None
        await world.clock.advance(world.settled_s)
        await waiting
        assert on(world.server, "results") == [str(number) for number in range(200)]


async def test_replies_that_get_lost_leave_entries_twice_and_confirm_them_once(world):
    """The server ran the commands, and its replies broke on the way."""
    line = BentWire(world.server)
    line.bend = lambda replies: replies[:1] + [RedisConnectionError("gone")] * (len(replies) - 1)
    async with world.publisher(connect=line.connect) as publisher:
        await publisher.wait_for_room()
        waiting = publisher.submit(None, named("a", "b", "c"))
        await settle()
        line.bend = None
        await world.clock.advance(world.settled_s)
        assert len(await waiting) == 3
        assert publisher.statistics().confirmed == 3
        assert publisher.statistics().retried == 2
    assert Counter(on(world.server, "results")) == {"a": 1, "b": 2, "c": 2}


async def test_a_cut_in_the_pipeline_that_ends_a_larger_trouble_does_not_close_the_intake_for_good(world):
    """The global stream works again, its last entry is confirmed, and the same pipeline breaks behind it."""
    async with world.publisher(publish_connections=1) as publisher:
        await publisher.submit("answers", named("first"))
        world.server.fail = at_xadd(ResponseError("WRONGTYPE"), "results")
        stuck = publisher.submit(None, named("a"))
        await world.clock.advance(world.settled_s)
        other = publisher.submit("answers", named("b"))
        world.server.fail = at_xadd(RedisConnectionError("gone"), "answers")
        await world.clock.advance(world.settled_s)
        await stuck
        assert not other.done()
        world.server.fail = lambda _: None
        await world.clock.advance(world.settled_s)
        await other
        assert publisher.statistics().trouble is None
        await publisher.wait_for_room()


async def test_where_another_server_may_answer_now_every_connection_is_made_anew(world):
    async with world.publisher(publish_connections=3) as publisher:
        await settle()
        world.server.hold()
        waiting = []
        for name in "abc":
            waiting.append(publisher.submit(None, named(name)))
            await settle()
        assert world.server.opened == 4  # three that write and the one that looks at streams
        world.server.fail = at_xadd(ReadOnlyError("replica"))
        world.server.release()
        await settle()
        world.server.fail = lambda _: None
        await world.clock.advance(world.settled_s)
        await asyncio.gather(*waiting)
        await publisher.submit("answers", named("d"))
        assert world.server.opened >= 6


async def test_a_break_of_all_connections_at_once_that_is_over_at_the_next_attempt_is_no_news(world):
    async with world.publisher(publish_connections=3) as publisher:
        await publisher.wait_for_room()
        world.server.hold()
        waiting = []
        for name in "abc":
            waiting.append(publisher.submit(None, named(name)))
            await settle()
        world.server.break_line = RedisConnectionError("gone")
        world.server.release()
        await settle()
        assert publisher.statistics().trouble == "unreachable"
        world.server.break_line = None
        await world.clock.advance(world.settled_s)
        await asyncio.gather(*waiting)
    assert world.reporter.causes == []
    assert world.alarms == 0


async def test_a_server_that_is_not_there_at_the_start_is_waited_for(world):
    world.server.break_line = ConnectionRefusedError(111, "Connection refused")
    async with world.publisher() as publisher:
        waiting = publisher.submit(None, named("a"))
        await world.clock.advance(world.settled_s)
        held = f"1 entries ({held_nbytes([b'n', b'a'])} bytes) pending"
        assert repr(publisher) == f"<Publisher unreachable: {held}, 0 pipelines under way, 0 confirmed>"
        world.server.break_line = None
        await world.clock.advance(world.settled_s)
        await waiting
        assert repr(publisher) == "<Publisher well: 0 entries (0 bytes) pending, 0 pipelines under way, 1 confirmed>"


@pytest.mark.parametrize(
    "error", [ResponseError("MISCONF Errors writing to the AOF file"), ResponseError("BUSY Redis is busy"), OSError()]
)
async def test_the_intake_opens_when_the_first_answer_comes_though_nothing_was_written(world, error):
    """PING meets the server's own conditions too, and no entry is there that could prove them gone."""
    world.server.fail = lambda _: error
    async with world.publisher() as publisher:
        room = asyncio.ensure_future(publisher.wait_for_room())
        await world.clock.advance(world.settled_s)
        assert not room.done()
        world.server.fail = lambda _: None
        await world.clock.advance(world.settled_s)
        await room
        assert publisher.statistics().trouble is None


# -- bugs of ours ------------------------------------------------------------------------------------------------------


async def test_a_reply_too_few_costs_no_entry(world):
    line = BentWire(world.server)
    line.bend = lambda replies: replies[:-1]
    async with world.publisher(connect=line.connect) as publisher:
        waiting = publisher.submit(None, named("a"))
        await settle()
        assert publisher.statistics().trouble == "internal"
        line.bend = None
        await world.clock.advance(world.settled_s)
        await waiting
        assert publisher.statistics().pending_entries == 0
    assert world.reporter.causes == ["publish:internal"]


async def test_a_crash_of_the_guard_is_told_and_its_streams_are_looked_at_again(world):
    def crash(_):
        raise ValueError("a bug")

    line = BentWire(world.server, "TYPE")
    async with world.publisher(connect=line.connect) as publisher:
        await publisher.wait_for_room()
        line.bend = crash
        waiting = publisher.submit("answers", named("a"))
        await settle()
        assert world.reporter.causes == ["publish:internal"]
        line.bend = None
        await world.clock.advance(world.settled_s)
        await waiting
        assert on(world.server, "answers") == ["a"]


async def test_an_entry_that_a_crash_left_in_the_queue_twice_is_confirmed_once(world):
    """The first entry has been sent on its way to the global stream when its neighbour's report crashes."""
    report = world.reporter.report

    def crash_once(error, *, cause, **context):
        world.reporter.report = report
        raise ValueError("a bug of the reporter")

    async with world.publisher() as publisher:
        await publisher.submit("answers", named("first"))
        await publisher.submit("others", named("second"))
        refusals = {"answers": ResponseError("WRONGTYPE"), "others": NoPermissionError("no")}
        world.server.fail = lambda command: refusals.get(command[1]) if command[0] == "XADD" else None
        world.reporter.report = crash_once
        waiting = [publisher.submit("answers", named("a")), publisher.submit("others", named("b"))]
        await world.clock.advance(world.settled_s)
        await asyncio.gather(*waiting)
        await world.clock.advance(world.settled_s)
        statistics = publisher.statistics()
        assert (statistics.confirmed, statistics.pending_entries, statistics.pending_bytes) == (4, 0, 0)
        assert Counter(on(world.server, "results")) == {"a": 2, "b": 1}


# -- back-pressure and close -------------------------------------------------------------------------------------------


async def test_entries_that_wait_for_a_look_at_their_stream_count_as_pending(world):
    one = held_nbytes([b"n", b"a"])
    async with world.publisher(pending_results_bytes=2 * one) as publisher:
        await publisher.wait_for_room()
        world.server.hold()
        waiting = publisher.submit("answers", named("a", "b"))
        room = asyncio.ensure_future(publisher.wait_for_room())
        await settle()
        assert publisher.statistics().pending_bytes == 2 * one
        assert not room.done()
        world.server.release()
        await waiting
        await room


async def test_the_gauges_show_what_is_pending(world):
    async with world.publisher() as publisher:
        await publisher.wait_for_room()
        world.server.hold()
        waiting = publisher.submit(None, named("a"))
        figures = world.metrics.snapshot()
        assert (figures["publish_backlog_entries"], figures["publish_backlog_bytes"]) == (1, held_nbytes([b"n", b"a"]))
        world.server.release()
        await waiting
        await settle()
        figures = world.metrics.snapshot()
        assert (figures["publish_backlog_entries"], figures["publish_backlog_bytes"]) == (0, 0)


async def test_close_waits_for_what_is_under_way(world):
    publisher = await world.publisher().__aenter__()
    await settle()
    world.server.hold()
    waiting = publisher.submit("answers", named("a"))
    closing = asyncio.ensure_future(publisher.close())
    await settle()
    assert not closing.done()
    world.server.release()
    await closing
    assert waiting.done()
    assert on(world.server, "answers") == ["a"]
    assert repr(publisher).startswith("<Publisher closed: 0 entries")


async def test_close_waits_no_longer_than_its_limit(world, caplog):
    publisher = await world.publisher(close_timeout_s=10.0).__aenter__()
    await publisher.wait_for_room()
    world.server.hold()
    waiting = publisher.submit(None, named("a", "b"))
    closing = asyncio.ensure_future(publisher.close())
    await world.clock.advance(9.9)
    assert not closing.done()
    await world.clock.advance(0.1)
    await closing
    with pytest.raises(ShuttingDownError):
        await waiting
    assert "2 entries not confirmed" in caplog.text


async def test_a_cancelled_close_still_ends_everything(world):
    wires = []
    connect = world.server.connect

    def remember():
        wires.append(connect())
        return wires[-1]

    publisher = await world.publisher(connect=remember).__aenter__()
    await publisher.wait_for_room()
    world.server.hold()
    waiting = publisher.submit(None, named("a"))
    closing = asyncio.ensure_future(publisher.close())
    await settle()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(ShuttingDownError):
        await waiting
    assert all(wire.closed for wire in wires)
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not any(name.startswith("legit-publish") for name in names)


async def test_close_in_the_midst_of_trouble_tries_until_its_limit(world):
    publisher = await world.publisher().__aenter__()
    await publisher.wait_for_room()
    world.server.fail = at_xadd(OutOfMemoryError("full"))
    waiting = publisher.submit(None, named("a"))
    await settle()
    closing = asyncio.ensure_future(publisher.close())
    await world.clock.advance(1.0)
    world.server.fail = lambda _: None
    await world.clock.advance(world.settled_s)
    await closing
    assert (await waiting)[0].stream == "results"


async def test_tasks_have_names(world):
    async with world.publisher(publish_connections=2):
        names = {task.get_name() for task in asyncio.all_tasks()}
    assert {"legit-publish-start", "legit-publish-guard", "legit-publish-0", "legit-publish-1"} <= names


# -- everything together -----------------------------------------------------------------------------------------------

BREAK = RedisConnectionError("gone")

steps = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from([None, "answers", "others", "unacked"]), st.integers(0, 4)),
        st.tuples(st.just("fail"), st.sampled_from([*(error for error, _ in WAITED_OUT), *REFUSED]), st.integers(1, 4)),
        st.tuples(st.just("lose"), st.just(BREAK), st.integers(0, 3)),
        st.tuples(st.sampled_from(["cut", "mend", "hold", "release"]), st.none(), st.just(0)),
        st.tuples(st.just("wait"), st.none(), st.integers(0, 8)),
    ),
    max_size=25,
)


class History:
    """A server to which anything may happen, and what was submitted meanwhile."""

    def __init__(self):
        self.server = ScriptedServer()
        self.line = BentWire(self.server)
        self.submitted = []
        self.count = 0

    def submit(self, publisher, reply_to, count):
        names = [str(self.count + place) for place in range(count)]
        self.count += count
        self.submitted.append((publisher.submit(reply_to, named(*names)), count))

    def fail(self, _, error, every):
        """Each so many commands one meets the error."""
        commands = itertools.count()
        self.server.fail = lambda _: error if next(commands) % every == 0 else None

    def lose(self, _, error, kept):
        """The server runs a pipeline, and only its first replies come back."""
        self.line.bend = lambda replies: replies[:kept] + [error] * (len(replies) - kept)

    def cut(self, *_):
        self.server.break_line = BREAK

    def mend(self, *_):
        self.server.fail, self.server.break_line, self.line.bend = (lambda _: None), None, None

    def hold(self, *_):
        self.server.hold()

    def release(self, *_):
        self.server.release()

    def wait(self, *_):
        """Only time passes."""


async def live_through(history, steps_taken, clock, publisher):
    for what, how, count in steps_taken:
        getattr(history, what)(publisher, how, count)
        await clock.advance(count if what == "wait" else 0)
    history.mend()
    history.release()
    await clock.advance(60.0)


@settings(max_examples=120, deadline=None)
@given(steps, st.integers(1, 3), st.integers(1, 3))
def test_whatever_happens_each_submission_is_confirmed_once_and_nothing_is_lost(steps_taken, connections, max_entries):
    """A server that refuses, breaks, loses replies, holds back and recovers in any order.

    Twice on its stream is only what was counted as retried.
    """

    async def scenario():
        history, clock = History(), FakeClock()
        async with Publisher(
            settings=load_settings(publish_connections=connections, publish_max_entries=max_entries),
            url="redis://unused",
            rules=RoutingRules(global_stream="results"),
            clock=clock,
            metrics=Metrics(),
            reporter=NullReporter(),
            connect=history.line.connect,
        ) as publisher:
            await live_through(history, steps_taken, clock, publisher)
            assert [len(future.result()) for future, _ in history.submitted] == [n for _, n in history.submitted]
            now = publisher.statistics()
            assert (now.pending_entries, now.pending_bytes, now.confirmed) == (0, 0, history.count)
            assert now.trouble is None
            await publisher.wait_for_room()
        found = Counter(entry["n"] for entries in history.server.streams.values() for entry in entries)
        assert set(found) == set(map(str, range(history.count)))
        assert found.total() - history.count <= now.retried
        assert set(history.server.streams) <= {"results", "answers", "others"}

    asyncio.run(scenario())

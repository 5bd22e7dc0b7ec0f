"""`Dispatcher` alone: from `reply_to` to a stream, and what happens where that may not be used."""

import asyncio
import tracemalloc

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from legit_embedding.publish.dispatch import Dispatcher
from legit_embedding.publish.outcomes import Refused
from legit_embedding.publish.pending import Entry, Submission
from legit_embedding.publish.routing import RoutingRules
from legit_embedding.publish.switch import FixedRouting
from legit_embedding.testing.clock import settle


class Dispatching:
    """A dispatcher, its guard at work; `ready` holds what it handed on: stream, name, rejected name or None."""

    def __init__(self, world, *, enabled=True):
        self.ready = []
        self.routing = FixedRouting(enabled=enabled)
        self.dispatcher = Dispatcher(
            rules=RoutingRules(global_stream="results"),
            routing=self.routing,
            rejected_field="refused",
            wire=world.server.connect(),
            hold=world.hold(),
            ready=self._ready,
            clock=world.clock,
            metrics=world.metrics,
            reporter=world.reporter,
        )

    def _ready(self, entries):
        for entry in entries:
            fields = [part.decode() for part in entry.fields]
            named = dict(zip(fields[::2], fields[1::2], strict=True))
            self.ready.append((entry.stream, named["n"], named.get("refused")))

    async def __aenter__(self):
        self._task = asyncio.ensure_future(self.dispatcher.guard.run())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def entry(name, stream="results"):
    books = Submission(asyncio.get_running_loop().create_future(), [None], 1, 0.0)
    return Entry(stream, (b"n", name.encode()), 2, books, 0)


async def test_until_it_is_open_entries_wait_and_then_go_in_their_order(world):
    async with Dispatching(world) as dispatching:
        dispatching.dispatcher.dispatch(None, [entry("a")])
        dispatching.dispatcher.dispatch("unacked", [entry("b")])
        assert dispatching.ready == []
        dispatching.dispatcher.open()
        assert dispatching.ready == [("results", "a", None), ("results", "b", "unacked")]


async def test_the_global_stream_needs_no_look_at_the_server(world):
    async with Dispatching(world) as dispatching:
        dispatching.dispatcher.open()
        dispatching.dispatcher.dispatch(None, [entry("a")])
        dispatching.dispatcher.dispatch("results", [entry("b")])
        assert dispatching.ready == [("results", "a", None), ("results", "b", None)]
        await settle()
        assert world.server.sent == []


async def test_names_that_are_too_long_are_not_kept(world):
    """They are a producer's, of any length, and outside of the byte budget."""
    async with Dispatching(world) as dispatching:
        dispatching.dispatcher.open()
        tracemalloc.start()
        try:
            for number in range(20):
                dispatching.dispatcher.dispatch(f"{number}" + "x" * 1_000_000, [entry("a")])
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(dispatching.ready) == 20
        assert held < 2_000_000


async def test_a_stream_is_looked_at_once(world):
    async with Dispatching(world) as dispatching:
        dispatching.dispatcher.open()
        dispatching.dispatcher.dispatch("answers", [entry("a")])
        assert dispatching.ready == []
        await settle()
        dispatching.dispatcher.dispatch("answers", [entry("b")])
        assert dispatching.ready == [("answers", "a", None), ("answers", "b", None)]
        assert len(world.server.sent) == 1


async def test_a_queue_that_the_look_finds_is_refused_from_then_on(world):
    world.server.types["queue"] = b"list"
    async with Dispatching(world) as dispatching:
        dispatching.dispatcher.open()
        dispatching.dispatcher.dispatch("queue", [entry("a")])
        await settle()
        dispatching.dispatcher.dispatch("queue", [entry("b")])
        assert dispatching.ready == [("results", "a", "queue"), ("results", "b", "queue")]
        assert dispatching.dispatcher.rejected == 2


async def test_with_routing_off_nobody_is_asked_and_nothing_is_refused(world):
    async with Dispatching(world, enabled=False) as dispatching:
        dispatching.dispatcher.open()
        dispatching.dispatcher.dispatch("unacked", [entry("a")])
        assert dispatching.ready == [("results", "a", None)]
        assert dispatching.dispatcher.rejected == 0


@pytest.mark.parametrize(
    ("why", "error", "causes"),
    [
        (Refused("wrong_type"), ResponseError("WRONGTYPE"), []),
        (Refused("no_permission"), NoPermissionError("no"), ["publish:no_permission"]),
    ],
)
async def test_what_its_stream_refuses_goes_to_the_global_stream_and_is_told_once(world, caplog, why, error, causes):
    async with Dispatching(world) as dispatching:
        for name in "ab":
            dispatching.dispatcher.refuse(entry(name, "answers"), why, error)
        assert dispatching.ready == [("results", "a", "answers"), ("results", "b", "answers")]
    assert world.reporter.causes == causes
    assert len(caplog.records) == 1

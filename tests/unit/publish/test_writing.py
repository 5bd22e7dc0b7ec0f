"""`StreamWriter` alone: what it sends, and in which order entries come back to it."""

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

from legit_embedding.config import StreamConfig
from legit_embedding.publish.pending import Backlog, Entry, Submission
from legit_embedding.publish.writing import StreamWriter
from legit_embedding.testing.clock import settle


class Writing:
    """One writer at work on a backlog of its own; `confirmed` tells the names that were, in order."""

    def __init__(self, world, *, stream=None, max_entries=100):
        self.world = world
        self.backlog = Backlog()
        self.hold = world.hold()
        self.confirmed = []
        self.refused = []
        self.changes = 0
        self.wire = world.server.connect()
        self.writer = StreamWriter(
            stream=stream or StreamConfig("results"),
            max_entries=max_entries,
            wires=[self.wire],
            backlog=self.backlog,
            hold=self.hold,
            confirmed=self._confirm,
            refused=lambda entry, why, _: self.refused.append((name_of(entry), why.kind)),
            changed=self._change,
        )

    def add(self, *names, stream="results"):
        books = Submission(asyncio.get_running_loop().create_future(), [None] * len(names), len(names), 0.0)
        self.backlog.add(
            [Entry(stream, (b"n", name.encode()), len(name) + 1, books, index) for index, name in enumerate(names)]
        )

    def _confirm(self, entry, receipt):
        self.confirmed.append(name_of(entry))
        entry.submission.confirm(entry.index, receipt)

    def _change(self):
        self.changes += 1

    async def __aenter__(self):
        self._task = asyncio.ensure_future(self.writer.run(self.wire))
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def name_of(entry):
    return entry.fields[1].decode()


@pytest.mark.parametrize(
    ("stream", "options"),
    [
        (StreamConfig("results"), ()),
        (StreamConfig("results", 5), ("MAXLEN", "~", 5)),
        (StreamConfig("results", 5, approximate=False), ("MAXLEN", "=", 5)),
    ],
)
async def test_an_entry_is_one_xadd_trimmed_as_the_stream_asks(world, stream, options):
    async with Writing(world, stream=stream) as writing:
        writing.add("a")
        await settle()
        assert world.server.sent == [[("XADD", "results", *options, "*", b"n", b"a")]]
        assert writing.confirmed == ["a"]


async def test_the_figures_are_told_after_each_pipeline(world):
    async with Writing(world, max_entries=2) as writing:
        writing.add(*"abc")
        await settle()
        assert (writing.changes, world.written) == (2, [["a", "b"], ["c"]])


async def test_after_a_break_entries_keep_their_order_and_their_place(world):
    async with Writing(world) as writing:
        world.server.break_line = RedisConnectionError("gone")
        writing.add(*"abc")
        await settle()
        writing.add("d")
        world.server.break_line = None
        await world.clock.advance(world.settled_s)
        assert writing.confirmed == ["a", "b", "c", "d"]
        assert writing.writer.retried == 3


async def test_what_the_server_refuses_for_now_goes_behind_the_others(world):
    async with Writing(world, max_entries=2) as writing:
        world.server.fail = lambda command: OutOfMemoryError("full") if command[-1] == b"a" else None
        writing.add(*"abcd")
        await settle()
        world.server.fail = lambda _: None
        await world.clock.advance(world.settled_s)
        assert writing.confirmed == ["b", "c", "d", "a"]


async def test_a_crash_while_replies_are_sorted_out_keeps_every_entry(world):
    """The books confirm an entry once, so that one written twice does no harm."""
    async with Writing(world) as writing:
        confirm, crash = writing.writer._confirmed, [True]

        def crash_once(entry, receipt):
            if name_of(entry) == "b" and crash:
                crash.clear()
                raise ValueError("a bug")
            confirm(entry, receipt)

        writing.writer._confirmed = crash_once
        writing.add(*"abc")
        await settle()
        assert writing.confirmed == ["a"]
        assert repr(writing.hold) == "<Hold internal>"
        await world.clock.advance(world.settled_s)
        assert writing.confirmed == ["a", "b", "c"]
        assert writing.writer.pipelines == 0


async def test_a_pipeline_counts_as_under_way_until_its_replies_are_there_or_its_writer_is_cancelled(world):
    async with Writing(world) as writing:
        world.server.hold()
        writing.add("a")
        await settle()
        assert writing.writer.pipelines == 1
    assert writing.writer.pipelines == 0

"""The look at a stream before its first use."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import BusyLoadingError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError

from legit_embedding.publish.keyguard import CHECKS_AT_ONCE, KeyGuard, Verdicts, check_commands, usable
from legit_embedding.testing.clock import FakeClock, settle


class Guarded:
    """A guard at work; `released` tells its decisions in order."""

    def __init__(self, world, key_prefix=""):
        self.world = world
        self.released = []
        self.hold = world.hold()
        self.verdicts = Verdicts(clock=world.clock)
        self.guard = KeyGuard(
            wire=world.server.connect(),
            hold=self.hold,
            verdicts=self.verdicts,
            key_prefix=key_prefix,
            release=lambda stream, entries, allowed: self.released.append((stream, entries, allowed)),
        )

    async def __aenter__(self):
        self._task = asyncio.ensure_future(self.guard.run())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_a_stream_without_a_key_may_be_used(world):
    async with Guarded(world) as guarded:
        guarded.guard.park("answers", ["a", "b"])
        await settle()
        assert guarded.released == [("answers", ["a", "b"], True)]
        assert guarded.verdicts.get("answers") is True


@pytest.mark.parametrize("kind", [b"list", b"set", b"zset", b"hash", b"string"])
async def test_a_key_of_another_type_may_not_be_used(world, kind):
    world.server.types["answers"] = kind
    async with Guarded(world) as guarded:
        guarded.guard.park("answers", ["a"])
        await settle()
        assert guarded.released == [("answers", ["a"], False)]
        assert guarded.verdicts.get("answers") is False


async def test_an_empty_queue_is_known_by_its_bindings(world):
    world.server.bindings.add("_kombu.binding.quiet")
    async with Guarded(world) as guarded:
        guarded.guard.park("quiet", ["a"])
        await settle()
        assert guarded.released == [("quiet", ["a"], False)]


@pytest.mark.parametrize("binding", ["site:_kombu.binding.quiet", "_kombu.binding.site:quiet"])
async def test_the_brokers_key_prefix_may_stand_before_or_within(world, binding):
    world.server.bindings.add(binding)
    async with Guarded(world, key_prefix="site:") as guarded:
        guarded.guard.park("site:quiet", ["a"])
        await settle()
        assert guarded.released == [("site:quiet", ["a"], False)]


async def test_many_new_streams_share_a_round_trip_up_to_a_limit(world):
    async with Guarded(world) as guarded:
        names = [f"answers:{number}" for number in range(CHECKS_AT_ONCE + 1)]
        for name in names:
            guarded.guard.park(name, [name])
        await settle()
        assert [len(commands) for commands in world.server.sent] == [2 * CHECKS_AT_ONCE, 2]
        assert guarded.released == [(name, [name], True) for name in names]


async def test_what_comes_during_the_round_trip_goes_with_its_stream(world):
    world.server.hold()
    async with Guarded(world) as guarded:
        guarded.guard.park("answers", ["a"])
        await settle()
        guarded.guard.park("answers", ["b"])
        guarded.guard.park("others", ["c"])
        world.server.release()
        await settle()
        assert guarded.released == [("answers", ["a", "b"], True), ("others", ["c"], True)]


async def test_a_line_that_breaks_is_tried_again_and_nothing_is_released_meanwhile(world):
    world.server.break_line = RedisConnectionError("gone")
    async with Guarded(world) as guarded:
        guarded.guard.park("answers", ["a"])
        await settle()
        assert guarded.released == []
        assert repr(guarded.hold) == "<Hold unreachable>"
        world.server.break_line = None
        await world.clock.advance(world.settled_s)
        assert guarded.released == [("answers", ["a"], True)]
        assert repr(guarded.hold) == "<Hold none>"
        assert repr(guarded.guard) == "<KeyGuard 0 streams unchecked, 1 known>"


async def test_trouble_with_one_stream_does_not_keep_another_back(world):
    world.server.fail = lambda command: BusyLoadingError("loading") if command[1] == b"slow" else None
    async with Guarded(world) as guarded:
        guarded.guard.park("slow", ["a"])
        guarded.guard.park("quick", ["b"])
        await settle()
        assert guarded.released == [("quick", ["b"], True)]
        world.server.fail = lambda _: None
        await world.clock.advance(world.settled_s)
        assert guarded.released[1:] == [("slow", ["a"], True)]


async def test_a_server_that_will_not_tell_is_no_reason_against_a_stream_and_is_told_once(world, caplog):
    world.server.fail = lambda command: NoPermissionError("no") if command[0] == "EXISTS" else None
    world.server.types["queue"] = b"list"
    async with Guarded(world) as guarded:
        for name in ("answers", "queue", "others"):
            guarded.guard.park(name, [name])
        await settle()
        assert [(stream, allowed) for stream, _, allowed in guarded.released] == [
            ("answers", True), ("queue", False), ("others", True),
        ]  # fmt: skip
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert guarded.hold.trouble is None


def test_one_name_takes_one_question_about_itself_and_one_about_its_bindings():
    assert check_commands("é", key_prefix="") == [
        ("TYPE", "é".encode()),
        ("EXISTS", "_kombu.binding.é".encode()),
    ]


@given(
    st.one_of(st.sampled_from([b"none", b"stream", b"list"]), st.just(NoPermissionError("no"))),
    st.one_of(st.integers(0, 2), st.just(NoPermissionError("no"))),
)
def test_only_an_answer_stands_against_a_stream(key_type, bindings):
    against = key_type == b"list" or (isinstance(bindings, int) and bindings > 0)
    assert usable(key_type, bindings) is not against


async def test_a_verdict_is_forgotten_after_a_while(world):
    verdicts = Verdicts(clock=world.clock, ttl_s=10.0)
    verdicts.put("answers", usable=True)
    await world.clock.advance(9.9)
    assert verdicts.get("answers") is True
    await world.clock.advance(0.1)
    assert verdicts.get("answers") is None
    assert len(verdicts) == 0


def test_where_there_are_too_many_the_verdict_unused_for_longest_goes():
    verdicts = Verdicts(clock=FakeClock(), size=2)
    verdicts.put("a", usable=True)
    verdicts.put("b", usable=False)
    verdicts.get("a")
    verdicts.put("c", usable=True)
    assert [verdicts.get(name) for name in "abc"] == [True, None, True]

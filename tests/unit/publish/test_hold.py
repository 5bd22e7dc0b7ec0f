"""Trouble is waited out: one attempt at a time, after growing pauses, until a success proves it gone."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legit_embedding.backoff import Backoff
from legit_embedding.publish.hold import Hold
from legit_embedding.publish.outcomes import Scope, Trouble
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.clock import FakeClock, settle
from legit_embedding.testing.reports import NullReporter

UNREACHABLE = Trouble("unreachable", Scope.LINE)
OUT_OF_MEMORY = Trouble("out_of_memory", Scope.WRITES)
NO_PERMISSION = Trouble("no_permission", Scope.GLOBAL_STREAM)
ERROR = OSError("gone")


async def test_while_all_is_well_everybody_enters_at_once(world):
    hold = world.hold()
    async with hold.turn(), hold.turn():
        assert repr(hold) == "<Hold none>"


async def test_in_trouble_one_enters_at_a_time(world):
    hold = world.hold()
    hold.fail(UNREACHABLE, ERROR)
    inside = []
    leave = asyncio.Event()

    async def attempt(name):
        async with hold.turn():
            inside.append(name)
            await leave.wait()

    attempts = [asyncio.ensure_future(attempt(name)) for name in "ab"]
    await world.clock.advance(world.settled_s)
    assert inside == ["a"]
    leave.set()
    await world.clock.advance(world.settled_s)
    assert inside == ["a", "b"]
    await asyncio.gather(*attempts)


async def test_who_waits_for_a_turn_enters_at_once_when_the_trouble_is_over(world):
    hold = world.hold()
    hold.fail(UNREACHABLE, ERROR)
    leave = asyncio.Event()
    entered = []

    async def attempt(name):
        async with hold.turn():
            entered.append(name)
            await leave.wait()

    attempts = [asyncio.ensure_future(attempt(name)) for name in "abc"]
    await world.clock.advance(world.settled_s)
    hold.prove(Scope.WRITES)
    leave.set()
    await settle()
    assert entered == ["a", "b", "c"]
    await asyncio.gather(*attempts)


async def pauses(hold, clock, attempts, *, proven=None):
    """How long each of so many failing attempts waited for its turn."""
    found = []

    async def attempt():
        started_s = clock.monotonic()
        async with hold.turn():
            found.append(round(clock.monotonic() - started_s, 3))
            hold.fail(UNREACHABLE, ERROR, proven=proven)

    for _ in range(attempts):
        trying = asyncio.ensure_future(attempt())
        await clock.advance(6.0)
        await trying
    return found


@pytest.fixture
def longest(world):
    """A hold that always draws the longest pause."""
    return Hold(
        clock=world.clock,
        metrics=world.metrics,
        reporter=world.reporter,
        changed=lambda: None,
        backoff=Backoff(base_s=0.1, max_s=1.0, uniform=lambda _, high: high),
    )


async def test_pauses_grow_to_their_limit(world, longest):
    longest.fail(UNREACHABLE, ERROR)
    assert await pauses(longest, world.clock, 6) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


async def test_failures_of_one_break_count_as_one(world, longest):
    """Every pipeline that was under way meets it at the same time."""
    for _ in range(5):
        longest.fail(UNREACHABLE, ERROR)
    assert await pauses(longest, world.clock, 2) == pytest.approx([0.1, 0.2])


async def test_progress_starts_the_pauses_over(world, longest):
    longest.fail(UNREACHABLE, ERROR)
    assert await pauses(longest, world.clock, 3, proven=Scope.WRITES) == pytest.approx([0.1, 0.1, 0.1])


async def test_the_end_of_a_trouble_starts_the_pauses_over(world, longest):
    longest.fail(UNREACHABLE, ERROR)
    await pauses(longest, world.clock, 4)
    longest.prove(Scope.LINE)
    longest.fail(UNREACHABLE, ERROR)
    assert await pauses(longest, world.clock, 1) == pytest.approx([0.1])


async def test_a_cancelled_attempt_leaves_its_turn_to_the_next(world):
    hold = world.hold()
    hold.fail(UNREACHABLE, ERROR)
    entered = []

    async def attempt(name):
        async with hold.turn():
            entered.append(name)

    first, second = (asyncio.ensure_future(attempt(name)) for name in "ab")
    await settle()
    first.cancel()
    await world.clock.advance(world.settled_s)
    assert entered == ["b"]
    await second


async def test_changes_are_told_when_trouble_begins_and_when_it_ends(world):
    hold = world.hold()
    hold.prove(Scope.GLOBAL_STREAM)
    hold.fail(UNREACHABLE, ERROR)
    hold.fail(UNREACHABLE, ERROR)
    hold.prove(Scope.LINE)
    assert world.changes == ["unreachable", "well"]


@pytest.mark.parametrize("trouble", [UNREACHABLE, OUT_OF_MEMORY, NO_PERMISSION])
def test_a_trouble_is_over_when_as_much_as_it_stopped_works(world, trouble):
    hold = world.hold()
    hold.fail(trouble, ERROR)
    for scope in Scope:
        hold.prove(scope)
        assert (hold.trouble is None) is (scope >= trouble.scope)


def test_a_smaller_trouble_does_not_hide_a_larger_one(world):
    hold = world.hold()
    hold.fail(NO_PERMISSION, ERROR)
    hold.fail(UNREACHABLE, ERROR)
    hold.prove(Scope.WRITES)
    assert hold.trouble == NO_PERMISSION


def test_a_larger_trouble_takes_the_place_of_a_smaller_one(world):
    hold = world.hold()
    hold.fail(UNREACHABLE, ERROR)
    hold.fail(OUT_OF_MEMORY, ERROR)
    assert hold.trouble == OUT_OF_MEMORY


def test_a_larger_trouble_that_is_proven_gone_gives_way_to_a_smaller_one(world):
    """Its last entry may be confirmed in the pipeline that meets the smaller one: nothing could prove it later."""
    hold = world.hold()
    hold.fail(NO_PERMISSION, ERROR)
    hold.fail(UNREACHABLE, ERROR, proven=Scope.GLOBAL_STREAM)
    assert hold.trouble == UNREACHABLE
    hold.prove(Scope.LINE)
    assert hold.trouble is None


def test_a_line_that_is_back_at_the_next_attempt_is_no_news(world):
    hold = world.hold()
    for _ in range(3):
        hold.fail(UNREACHABLE, ERROR)
    hold.prove(Scope.LINE)
    assert world.reporter.causes == []
    assert world.alarms == 0


async def test_a_line_that_stays_down_is_told_once(world):
    hold = world.hold()
    hold.fail(UNREACHABLE, ERROR)
    await pauses(hold, world.clock, 4)
    assert world.reporter.causes == ["publish:unreachable"]
    assert world.alarms == 1


def test_a_server_that_refuses_is_told_at_once_and_again_only_after_it_was_well(world):
    hold = world.hold()
    for _ in range(3):
        hold.fail(OUT_OF_MEMORY, ERROR)
    assert world.reporter.causes == ["publish:out_of_memory"]
    hold.prove(Scope.WRITES)
    hold.fail(OUT_OF_MEMORY, ERROR)
    assert world.reporter.causes == ["publish:out_of_memory"] * 2


troubles = st.sampled_from([UNREACHABLE, OUT_OF_MEMORY, NO_PERMISSION])
events = st.one_of(
    st.tuples(st.just("fail"), troubles, st.one_of(st.none(), st.sampled_from(Scope))),
    st.tuples(st.just("prove"), st.sampled_from(Scope)),
)


@given(st.lists(events, max_size=20))
def test_what_stands_is_never_less_than_what_was_not_proven_since(history):
    """The trouble's scope covers each failure after which nothing as large has worked."""
    reporter, changes = NullReporter(), []
    hold = Hold(clock=FakeClock(), metrics=Metrics(), reporter=reporter, changed=lambda: changes.append(hold.trouble))
    open_scopes = []
    for event in history:
        if event[0] == "fail":
            _, trouble, proven = event
            open_scopes = [scope for scope in open_scopes if proven is None or scope > proven] + [trouble.scope]
            hold.fail(trouble, ERROR, proven=proven)
        else:
            if event[1] >= max(open_scopes, default=Scope.LINE):
                open_scopes = []
            hold.prove(event[1])
        assert (hold.trouble.scope if hold.trouble else None) == max(open_scopes, default=None)
    assert all(bool(before) != bool(after) for before, after in pairwise(changes))

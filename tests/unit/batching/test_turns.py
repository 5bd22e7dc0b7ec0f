"""Places handed out in turn, and never lost."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legit_embedding.batching import Turns
from legit_embedding.testing.clock import settle


class Work:
    """Tasks that take a place, note it, and hold it until they are told to go on."""

    def __init__(self, places):
        self.turns = Turns(places)
        self.begun = []
        self.ends = {}

    def start(self, task, name):
        self.ends[name] = asyncio.Event()
        return asyncio.create_task(self._run(task, name))

    async def _run(self, task, name):
        async with self.turns.take(task):
            self.begun.append(name)
            await self.ends[name].wait()

    async def finish(self, name):
        self.ends[name].set()
        await settle()


async def test_as_many_as_there_are_places_work_at_once():
    work = Work(2)
    for name in "abc":
        work.start(name, name)
    await settle()
    assert work.begun == ["a", "b"]
    assert repr(work.turns) == "<Turns 2 of 2 places taken, 1 waiting>"
    await work.finish("a")
    assert work.begun == ["a", "b", "c"]


async def test_a_newcomer_does_not_wait_behind_another_tasks_backlog():
    work = Work(1)
    for number in range(5):
        work.start("bulk", f"bulk{number}")
    await settle()
    work.start("search", "search")
    await settle()
    await work.finish("bulk0")
    await work.finish("bulk1")
    assert work.begun == ["bulk0", "bulk1", "search"]


async def test_tasks_take_turns():
    work = Work(1)
    names = [f"{task}{number}" for task in "ab" for number in range(3)]
    for name in names:
        work.start(name[0], name)
    await settle()
    for _ in names:
        await work.finish(work.begun[-1])
    assert work.begun == ["a0", "a1", "b0", "a2", "b1", "b2"]
    assert repr(work.turns) == "<Turns 0 of 1 places taken, 0 waiting>"


async def test_whoever_is_cancelled_while_waiting_leaves_its_place_in_the_ring():
    work = Work(1)
    work.start("a", "a")
    waiting = work.start("b", "b")
    work.start("c", "c")
    await settle()
    waiting.cancel()
    await work.finish("a")
    assert work.begun == ["a", "c"]


async def test_a_place_given_in_the_moment_of_the_cancellation_goes_to_the_next():
    work = Work(1)
    work.start("a", "a")
    waiting = work.start("b", "b")
    work.start("c", "c")
    await settle()
    work.turns._pass_on()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await settle()
    assert work.begun == ["a", "c"]


async def test_work_that_fails_gives_its_place_back():
    turns = Turns(1)
    with pytest.raises(ZeroDivisionError):
        async with turns.take("a"):
            raise ZeroDivisionError
    async with turns.take("b"):
        assert repr(turns) == "<Turns 1 of 1 places taken, 0 waiting>"


async def test_a_place_is_not_given_to_one_that_was_cancelled_in_the_same_turn():
    work = Work(1)
    holder = work.start("a", "a")
    waiting = work.start("b", "b")
    work.start("c", "c")
    await settle()
    work.ends["a"].set()
    waiting.cancel()
    await settle()
    assert (holder.exception(), waiting.cancelled()) == (None, True)
    assert work.begun == ["a", "c"]


@given(
    tasks=st.lists(st.sampled_from("abc"), min_size=1, max_size=12),
    places=st.integers(1, 3),
    turns=st.lists(st.lists(st.tuples(st.sampled_from(["cancel", "finish"]), st.integers(0, 11)), max_size=5)),
)
def test_whatever_is_cancelled_and_finished_in_one_turn_no_place_is_lost(tasks, places, turns):
    """Who is cancelled gets that and nothing else; everybody else is served, each task's in order."""

    async def scenario():
        work = Work(places)
        running = [work.start(task, number) for number, task in enumerate(tasks)]
        await settle()
        for turn in turns:
            for what, number in turn:
                if number >= len(tasks):
                    continue
                if what == "cancel":
                    running[number].cancel()
                else:
                    work.ends[number].set()
            await asyncio.sleep(0)
        for end in work.ends.values():
            end.set()
        await asyncio.wait(running, timeout=5)
        served = [number for number, task in enumerate(running) if not task.cancelled()]
        assert [running[number].exception() for number in served] == [None] * len(served)
        assert set(served) <= set(work.begun)
        for name in "abc":
            begun = [number for number in work.begun if tasks[number] == name]
            assert begun == sorted(begun)
        assert repr(work.turns) == f"<Turns 0 of {places} places taken, 0 waiting>"

    asyncio.run(scenario())

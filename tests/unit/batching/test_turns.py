"""Places handed out in turn, and never lost."""

import asyncio

import pytest

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

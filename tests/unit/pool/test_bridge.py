"""The greenlet bridge: sync code that awaits, on a running loop."""

import asyncio
import contextvars
import traceback

import pytest
from greenlet import getcurrent

from legit_embedding.pool.bridge import BridgeGreenlet, Drive, await_, can_await

colour = contextvars.ContextVar("colour", default="none")


async def test_sync_code_gets_the_result_of_what_it_awaits():
    async def body():
        await asyncio.sleep(0)
        return 42

    assert await Drive(lambda: await_(body()) + 1) == 43


async def test_sync_code_that_awaits_nothing_returns_at_once():
    assert await Drive(lambda a, b: a + b, 1, 2) == 3


async def test_a_coroutine_is_stepped_inside_the_greenlet():
    """What is keyed by greenlet, as Celery's stacks are, is the same before and after an await."""
    seen = []

    async def body():
        seen.append(getcurrent())
        await asyncio.sleep(0)
        seen.append(getcurrent())

    def run():
        seen.append(getcurrent())
        await_(body())
        seen.append(getcurrent())

    await Drive(run)
    assert len(set(seen)) == 1
    assert isinstance(seen[0], BridgeGreenlet)


async def test_other_tasks_run_while_one_awaits():
    first, second = asyncio.Event(), asyncio.Event()

    def meet(mine, other):
        mine.set()
        await_(other.wait())
        return "met"

    assert await asyncio.gather(Drive(meet, first, second), Drive(meet, second, first)) == ["met", "met"]


async def test_awaits_nest():
    async def inner():
        await asyncio.sleep(0)
        return 1

    async def outer():
        await asyncio.sleep(0)
        return await_(inner()) + await inner()

    assert await Drive(lambda: await_(outer())) == 2


async def test_an_exception_of_a_coroutine_is_raised_where_it_is_awaited_and_out_of_the_drive():
    async def body():
        await asyncio.sleep(0)
        raise KeyError("why")

    seen = []

    def run():
        try:
            await_(body())
        except KeyError as error:
            seen.append(error)
            raise

    with pytest.raises(KeyError, match="why"):
        await Drive(run)
    assert len(seen) == 1


async def test_a_cancellation_reaches_the_innermost_coroutine_which_may_await_in_its_cleaning_up():
    waiting, steps = asyncio.Event(), []

    async def body():
        try:
            waiting.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            steps.append("cleaned up")
            raise

    task = asyncio.ensure_future(drive(lambda: await_(body())))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["cleaned up"]


async def test_translate_puts_another_exception_in_the_place_of_the_one_thrown_in():
    waiting = asyncio.Event()

    async def body():
        waiting.set()
        await asyncio.Event().wait()

    def run():
        try:
            await_(body())
        except ValueError as error:
            return str(error)

    task = asyncio.ensure_future(drive(run, translate=lambda error: ValueError(type(error).__name__)))
    await waiting.wait()
    task.cancel()
    assert await task == "CancelledError"


async def test_context_variables_are_those_of_the_task_and_of_no_other():
    async def body(value):
        colour.set(value)
        await asyncio.sleep(0)
        return colour.get()

    def run(value):
        before = colour.get()
        return before, await_(body(value)), colour.get()

    async def as_task(value):
        found = await Drive(run, value)
        return (*found, colour.get())

    assert await asyncio.gather(as_task("red"), as_task("blue")) == [
        ("none", "red", "red", "red"),
        ("none", "blue", "blue", "blue"),
    ]
    assert colour.get() == "none"


async def test_await_outside_a_greenlet_is_refused():
    async def body():
        return None

    coroutine = body()
    assert not can_await()
    with pytest.raises(RuntimeError, match="legit_async pool"):
        await_(coroutine)
    coroutine.close()


async def test_children_of_a_body_are_not_in_its_greenlet():
    async def child():
        return can_await()

    async def body():
        return can_await(), await asyncio.create_task(child())

    assert await Drive(lambda: await_(body())) == (True, False)


async def drive(function, translate=None):
    return await Drive(function, translate=translate)


async def test_an_exception_of_a_child_keeps_the_frames_down_to_its_cause():
    """As under plain asyncio: a report that ends at the await would hide what went wrong."""

    async def cause():
        await asyncio.sleep(0)
        raise KeyError("why")

    async def body():
        await asyncio.gather(cause())

    def names(error):
        return [frame.name for frame in traceback.extract_tb(error.__traceback__)]

    with pytest.raises(KeyError) as plain:
        await asyncio.create_task(body())
    with pytest.raises(KeyError) as bridged:
        await Drive(lambda: await_(body()))
    assert names(plain.value)[-2:] == ["body", "cause"]
    assert names(bridged.value)[-2:] == ["body", "cause"]

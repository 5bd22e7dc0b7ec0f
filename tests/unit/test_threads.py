"""The way to a thread and back: whatever the work does, whoever waits hears of it."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from legit_embedding.threads import run_on


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1, thread_name_prefix="worker") as executor:
        yield executor


async def test_the_work_runs_on_the_executor_and_its_result_comes_back(executor):
    def work(first, *, second):
        return first, second, threading.current_thread().name

    assert await run_on(executor, work, 1, second=2) == (1, 2, "worker_0")


async def test_an_error_comes_back_as_it_is(executor):
    with pytest.raises(ZeroDivisionError):
        await run_on(executor, lambda: 1 / 0)


@pytest.mark.parametrize("error", [StopIteration("end"), asyncio.CancelledError()])
async def test_what_asyncio_would_lose_or_misread_comes_back_as_a_bug(executor, error):
    """A bare `next()` in a plugin raises StopIteration, which no future takes: whoever waits would wait for ever."""

    def work():
        raise error

    with pytest.raises(RuntimeError, match=f"{type(error).__name__} left ") as raised:
        await run_on(executor, work)
    assert raised.value.__cause__ is error
    assert not asyncio.current_task().cancelling()

"""The way to a thread and back for work that is not ours: an adapter, a plugin."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def run_on(executor: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns or raises.

    Raises:
        RuntimeError: `work` let a `StopIteration` or a `CancelledError` out. asyncio cannot pass the first one on (the
            future would never be done), and takes the second for a cancellation of whoever waits.
    """

    def contained() -> T:
        try:
            return work(*args, **kwargs)
        except (StopIteration, asyncio.CancelledError) as error:
            raise RuntimeError(f"{type(error).__name__} left {getattr(work, '__qualname__', work)}") from error

    return await asyncio.get_running_loop().run_in_executor(executor, contained)

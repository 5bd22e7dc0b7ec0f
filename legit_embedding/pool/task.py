"""`async def` tasks, on every pool."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from celery import Task

from legit_embedding.pool.bridge import await_, can_await


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Its result: awaited on the pool's loop, or run to its end where there is none (another pool, eager, called).

    Raises:
        RuntimeError: another event loop runs in this thread, which would be blocked.
    """
    if can_await():
        return await_(coroutine)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    coroutine.close()
    raise RuntimeError("an async task was called inside a running event loop: await its `async_run` instead")


def synchronous(body: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """A plain function that runs the async `body`: what Celery's tracer, which knows no coroutines, calls."""

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        return run_coroutine(body(*args, **kwargs))

    return run


class AsyncTask(Task):
    """A task whose `run` may be `async def`. `is_async` tells the pool to run it on the loop.

    The body is wrapped when its class is made, which is before Celery's autoretry wraps `run` in its turn.
    """

    abstract = True
    Request = "legit_embedding.pool.request:DecodedRequest"
    is_async = False
    async_run: Callable[..., Coroutine[Any, Any, Any]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        run = cls.__dict__.get("run")
        if run is None:
            return  # inherited, and with it whether it is async
        body = run.__func__ if isinstance(run, staticmethod) else run
        cls.is_async = inspect.iscoroutinefunction(body)
        if not cls.is_async:
            return
        wrapped = synchronous(body)
        static = isinstance(run, staticmethod)
        cls.run = staticmethod(wrapped) if static else wrapped
        cls.async_run = staticmethod(body) if static else body

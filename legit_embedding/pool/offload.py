"""The tracer's blocking calls, off the loop: they run on a thread while their task's greenlet waits.

Storing a result, publishing a retry, a chord's bookkeeping: each is one or more round trips, and on the loop each would
stop every other task for as long. Celery has no hook for them, so the methods of this app's own backend and of this app
are wrapped, where the loop's thread sees them; classes and modules stay as they are.
"""

import asyncio
import contextvars
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from typing import Any

from celery import Celery
from celery.backends.base import DisabledBackend

from legit_embedding.pool.bridge import await_, can_await


@contextmanager
def offloading(app: Celery, executor: Executor) -> Iterator[None]:
    """Wraps the app's blocking calls, and takes the wrappers off again for whoever uses the app afterwards.

    Entered on the loop's thread, because a backend may belong to its thread.
    """
    backend = app.backend
    calls = [] if isinstance(backend, DisabledBackend) else [(backend, name, STORING[name]) for name in STORING]
    # Whole, with the look for a free producer: one that was taken on the loop and held while its greenlet waits could
    # leave the next one to block the loop for ever. Who brings a producer of his own holds it already.
    calls.append((app, "send_task", _brings_no_producer))
    with ExitStack() as stack:
        for owner, name, blocks in calls:
            stack.callback(_restore, owner, name, vars(owner).get(name))
            setattr(owner, name, _offloaded(getattr(owner, name), executor, blocks))
        yield


def _restore(owner: Any, name: str, own: Any) -> None:
    """`own` is what the object itself had under that name, None where its class had it."""
    if own is None:
        delattr(owner, name)
    else:
        setattr(owner, name, own)


def _offloaded(call: Callable[..., Any], executor: Executor, blocks: Callable[..., bool]) -> Callable[..., Any]:
    @functools.wraps(call)
    def offloaded(*args: Any, **kwargs: Any) -> Any:
        if not can_await() or not blocks(*args, **kwargs):
            return call(*args, **kwargs)
        # The context goes along: in it the thread finds the current task, and tracing its span.
        work = functools.partial(contextvars.copy_context().run, call, *args, **kwargs)
        return await_(asyncio.get_running_loop().run_in_executor(executor, work))

    return offloaded


def _success_is_stored(
    _task_id: str,
    _result: Any,
    request: Any = None,
    store_result: bool = True,
    *_: Any,
    **__: Any,
) -> bool:
    """Whether `mark_as_done` does any I/O: not for a result that is ignored, unless a chord waits for it."""
    return store_result or bool(getattr(request, "chord", None))


def _always(*_: Any, **__: Any) -> bool:
    return True


def _brings_no_producer(*_: Any, **kwargs: Any) -> bool:
    return kwargs.get("producer") is None and kwargs.get("connection") is None


STORING = {
    "mark_as_done": _success_is_stored,
    "mark_as_failure": _always,
    "mark_as_retry": _always,
    "store_result": _always,
}

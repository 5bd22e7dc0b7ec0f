"""Whose request it is: the key under which Celery keeps the current task and its request.

Celery keys its stacks by greenlet. The children that a body starts (`asyncio.gather`, `create_task`) run in the loop's
own greenlet, where they would find nothing, or one another's. So the key is a context variable, which children inherit,
and the greenlet only where it is unset: in threads, and outside tasks.
"""

import threading
from contextvars import ContextVar
from typing import Any

from celery import Celery, _state
from celery.exceptions import ImproperlyConfigured
from greenlet import getcurrent

_scope: ContextVar[object | None] = ContextVar("legit_async_scope", default=None)


def enter_scope(scope: object) -> None:
    """From here on, in this context and in those that are copied from it, `scope` is the key."""
    _scope.set(scope)


def current_identity() -> Any:
    """The key: the scope, else the greenlet."""
    return _scope.get() or getcurrent()


def install(app: Celery) -> None:
    """Sets the key function of Celery's stacks, a hook that they have for it; a second call changes nothing.

    Raises:
        ImproperlyConfigured: the stacks are thread-local, and would find no request in any `async def` body.
    """
    if isinstance(_state._task_stack, threading.local):  # noqa: SLF001  as below
        raise ImproperlyConfigured("USE_FAST_LOCALS is set in the environment: take it away, tasks share a thread here")
    _state._task_stack.__ident_func__ = current_identity  # noqa: SLF001  Celery has no public name for it
    for task in app.tasks.values():
        task.request_stack.__ident_func__ = current_identity

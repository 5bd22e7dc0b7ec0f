"""Sync code that may await: it runs in a greenlet, whose futures its asyncio task awaits.

The greenlet drives: a coroutine awaited from inside is stepped there, and only the futures it waits for are handed up.
So whatever is keyed by greenlet (Celery's current task and request) is right inside the coroutine too. The other way
round, awaiting in the parent greenlet, would leave `self.request` empty there.
"""

from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Generic, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")

Translate = Callable[[BaseException], BaseException]


class BridgeGreenlet(greenlet):
    """A greenlet in which `await_` works."""


class Drive(Generic[T]):
    """Awaitable: runs `function(*args)` in a greenlet of its own and awaits whatever it awaits.

    `translate` may put another exception in the place of one that is thrown into the greenlet, such as a cancellation.
    """

    __slots__ = ("_args", "_function", "_translate")

    def __init__(self, function: Callable[..., T], *args: Any, translate: Translate | None = None) -> None:
        self._function = function
        self._args = args
        self._translate = translate

    def __await__(self) -> Generator[Any, Any, T]:
        parent = getcurrent()
        child = BridgeGreenlet(self._function, parent)
        child.gr_context = parent.gr_context  # the asyncio task's context variables, shared and not copied
        result = child.switch(*self._args)
        while not child.dead:
            try:
                sent = yield result
            except BaseException as error:  # noqa: BLE001  whatever is thrown in belongs to the greenlet
                thrown = self._translate(error) if self._translate is not None else error
                result = child.throw(type(thrown), thrown, _origin_of(thrown))
            else:
                result = child.switch(sent)
        value: T = result
        return value


def can_await() -> bool:
    """Whether `await_` works here: inside a task's greenlet on the pool's loop."""
    return isinstance(getcurrent(), BridgeGreenlet)


def await_(awaitable: Awaitable[T]) -> T:
    """The result of `awaitable`, awaited from sync code; other tasks run meanwhile.

    Raises:
        RuntimeError: not inside a task's greenlet.
    """
    current = getcurrent()
    if not isinstance(current, BridgeGreenlet) or current.parent is None:
        raise RuntimeError("await_() works only inside a task that runs on the legit_async pool")
    steps = awaitable.__await__()
    hand_up = current.parent.switch
    try:
        future = next(steps)
        while True:
            try:
                sent = hand_up(future)
            except BaseException as error:  # noqa: BLE001  whatever is thrown in belongs to the coroutine
                future = steps.throw(error.with_traceback(_origin_of(error)))
            else:
                future = steps.send(sent)
    except StopIteration as end:
        value: T = end.value
        return value


def _origin_of(error: BaseException) -> TracebackType | None:
    """Its traceback, without our own frame that caught it; `greenlet.throw` drops the one that it is not given."""
    return error.__traceback__.tb_next if error.__traceback__ is not None else None

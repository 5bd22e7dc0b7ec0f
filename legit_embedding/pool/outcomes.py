"""From what became of a job to the callback of Celery's that says so, and what is to be let go afterwards."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.exceptions import TaskError, Terminated, TimeLimitExceeded, WorkerLostError

from legit_embedding.pool import compat
from legit_embedding.pool.job import ABANDONED, HARD, TERMINATED, Job

TRACED = 3
"""How many values Celery's tracer returns."""


def callback_of(job: Job, *, ok: bool, result: Any) -> tuple[Callable[..., Any] | None, tuple[Any, ...]]:
    """Which of a job's callbacks tells Celery what became of it, and with what."""
    if ok:  # in spite of an interruption, too: the tracer has stored the result
        _unwrap(result)
        return job.callback, (result,)
    if job.reason == HARD and compat.TIMEOUT_CALLBACK_TELLS_ALL:
        return job.timeout_callback, (False, job.hard_limit_s)
    if job.reason == ABANDONED:
        return None, ()
    return job.error_callback, (_info(_error_of(job, result)),)


def let_go(args: tuple[Any, ...]) -> None:
    """Of what a callback was told: takes a failure's exceptions off their tracebacks, whose text Celery has by now.

    The frames there hold the task's arguments, and the exception itself: all would wait for the garbage collector.
    """
    value: Any = args[0] if args else None
    info = value[1] if _is_traced(value) else value
    if isinstance(info, ExceptionInfo):
        for error in _chain(info.exception):
            BaseException.with_traceback(error, None)  # not by assignment, which a class may have forbidden


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, those that it came of, and those that it holds."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += (each.__cause__, each.__context__)
            if isinstance(each, BaseExceptionGroup):
                waiting += each.exceptions


def _error_of(job: Job, result: Any) -> BaseException:
    if job.reason == HARD:
        return TimeLimitExceeded(job.hard_limit_s)
    if job.reason == TERMINATED:
        return Terminated(job.signal)
    if isinstance(result, Exception):
        return result
    if isinstance(result, asyncio.CancelledError):
        # A failure of the task's own, such as awaiting what somebody else has cancelled: no worker was lost, and to
        # run it again would end the same way.
        return TaskError("the body ended with a cancellation that nobody asked for")
    return WorkerLostError(f"the task ended with {result!r}")


def _info(error: BaseException) -> ExceptionInfo:
    """Celery's form of an exception, with the traceback that it has."""
    try:
        raise error  # noqa: TRY301  ExceptionInfo reads the exception that is being handled
    except BaseException:  # noqa: BLE001  raised one line above
        return _bare(ExceptionInfo())


def _unwrap(result: Any) -> None:
    if _is_traced(result) and isinstance(result[1], ExceptionInfo):
        _bare(result[1])


def _is_traced(result: Any) -> bool:
    """Whether it is what the tracer returns: whether it failed, its value or its `ExceptionInfo`, how long it took."""
    return isinstance(result, tuple) and len(result) == TRACED


def _bare(info: ExceptionInfo) -> ExceptionInfo:
    """With the exception itself: billiard's wrapper for the way between processes has no text for those who watch."""
    if isinstance(info.exception, ExceptionWithTraceback):
        info.exception = info.exception.exc
    return info

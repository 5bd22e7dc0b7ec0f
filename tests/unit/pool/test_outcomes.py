"""Which callback of Celery's is told what."""

import asyncio
from dataclasses import dataclass

import pytest
from billiard.einfo import ExceptionInfo
from celery.exceptions import TaskError, Terminated, WorkerLostError

from legit_embedding.pool import compat
from legit_embedding.pool.job import ABANDONED, HARD, TERMINATED, Job
from legit_embedding.pool.outcomes import callback_of, let_go


@pytest.fixture(autouse=True)
def _celery(monkeypatch):
    """As from Celery 5.7 on; what differs before is in the tests of `compat`."""
    monkeypatch.setattr(compat, "TIMEOUT_CALLBACK_TELLS_ALL", True)


@pytest.fixture
def job():
    return Job(
        id=1,
        target=print,
        args=(),
        kwargs={},
        callback=lambda *_: "callback",
        error_callback=lambda *_: "error",
        timeout_callback=lambda *_: "timeout",
        soft_limit_s=1.0,
        hard_limit_s=2.0,
        interrupt=lambda *_: None,
    )


def info_of(error):
    try:
        raise error
    except ValueError:
        return ExceptionInfo()


def test_what_the_tracer_returned_goes_to_the_callback_as_it_is(job):
    assert callback_of(job, ok=True, result=(0, "value", 0.1)) == (job.callback, ((0, "value", 0.1),))


def test_a_failure_that_the_tracer_returned_shows_its_own_exception(job):
    """Billiard wraps it for the way between processes, and the wrapper says nothing of what it holds."""
    error = ValueError("why")
    _, ((failed, info, _),) = callback_of(job, ok=True, result=(1, info_of(error), 0.1))
    assert failed
    assert info.exception is error
    assert "ValueError: why" in info.traceback


def test_a_body_that_returned_in_spite_of_its_interruption_has_succeeded(job):
    job.reason = TERMINATED
    assert callback_of(job, ok=True, result=(0, "value", 0.1))[0] is job.callback


def test_the_hard_limit_is_told_as_a_timeout_with_its_length(job):
    job.reason = HARD
    assert callback_of(job, ok=False, result=asyncio.CancelledError()) == (job.timeout_callback, (False, 2.0))


def test_what_is_abandoned_is_told_to_nobody(job):
    job.reason = ABANDONED
    assert callback_of(job, ok=False, result=asyncio.CancelledError()) == (None, ())


@pytest.mark.parametrize(
    ("reason", "result", "told"),
    [
        (TERMINATED, asyncio.CancelledError(), Terminated),
        (None, KeyError("why"), KeyError),
        (None, asyncio.CancelledError(), TaskError),
        (None, SystemExit(3), WorkerLostError),
    ],
)
def test_other_ends_are_errors_with_an_exception_of_their_own(job, reason, result, told):
    job.reason = reason
    callback, (info,) = callback_of(job, ok=False, result=result)
    assert callback is job.error_callback
    assert isinstance(info.exception, told)


def failed_in_turn():
    """An exception that came of one that came of one."""
    try:
        int("first")
    except ValueError:
        try:
            {}["second"]
        except KeyError:
            try:
                int("third")
            except ValueError:
                return ExceptionInfo()


@pytest.mark.parametrize("traced", [True, False])
def test_what_was_told_of_a_failure_holds_no_frames_any_more(job, traced):
    info = failed_in_turn()
    ok, result = (True, (1, info, 0.1)) if traced else (False, info.exception.exc)
    _, args = callback_of(job, ok=ok, result=result)
    told = args[0][1] if traced else args[0]
    error = told.exception
    assert error.__traceback__ is not None
    let_go(args)
    for each in (error, error.__context__, error.__context__.__context__):
        assert each.__traceback__ is None
    assert "first" in told.traceback
    assert "third" in told.traceback


@dataclass(frozen=True)
class FrozenError(Exception):
    why: str


def test_an_exception_that_can_be_changed_by_nobody_is_let_go_too(job):
    first, second = FrozenError("first"), ValueError("second")
    for error in (first, second):
        _, args = callback_of(job, ok=False, result=error)
    second.__cause__ = first
    assert first.__traceback__ is not None
    let_go(args)
    assert [first.__traceback__, second.__traceback__] == [None, None]


def test_the_exceptions_of_a_group_are_let_go_with_it(job):
    one, other = info_of(ValueError("one")).exception.exc, info_of(ValueError("other")).exception.exc
    _, args = callback_of(job, ok=False, result=ExceptionGroup("both", [one, other]))
    assert one.__traceback__ is not None
    let_go(args)
    assert [one.__traceback__, other.__traceback__] == [None, None]


def test_exceptions_that_came_of_each_other_are_let_go_once(job):
    one, other = ValueError("one"), ValueError("other")
    _, args = callback_of(job, ok=False, result=one)
    one.__context__, other.__context__ = other, one
    let_go(args)
    assert one.__traceback__ is None


@pytest.mark.parametrize("args", [(), ("value",), ((0, "value", 0.1),), (True, 3.0)])
def test_of_what_is_no_failure_there_is_nothing_to_let_go(args):
    let_go(args)

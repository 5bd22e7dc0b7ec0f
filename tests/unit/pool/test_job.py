"""A job's outcome, and what an interruption looks like to its body."""

import asyncio
import gc
import weakref

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from legit_embedding.pool.job import HARD, SOFT, TERMINATED, Job
from legit_embedding.testing.clock import settle


def make_job(target=None, *, args=(), interrupt=None, soft_limit_s=None, hard_limit_s=None):
    return Job(
        id=1,
        target=target or (lambda: None),
        args=args,
        kwargs={},
        callback=None,
        error_callback=None,
        timeout_callback=None,
        soft_limit_s=soft_limit_s,
        hard_limit_s=hard_limit_s,
        interrupt=interrupt or (lambda *_: None),
    )


def test_run_gives_the_targets_result():
    assert make_job(lambda a, b: a + b, args=(1, 2)).run() == (True, 3)


@pytest.mark.parametrize("error", [KeyError("why"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
def test_nothing_that_the_target_raises_gets_out(error):
    def target():
        raise error

    assert make_job(target).run() == (False, error)


def test_terminate_interrupts_with_the_signal():
    calls = []
    job = make_job(interrupt=lambda *call: calls.append(call))
    job.terminate(15)
    assert calls == [(job, TERMINATED, 15)]


async def test_a_cancellation_by_the_soft_limit_becomes_the_soft_limits_exception_once():
    """And is taken back from the asyncio task, so that `asyncio.timeout` and the like count right afterwards."""
    job = make_job()
    job.task = asyncio.ensure_future(asyncio.Event().wait())
    job.task.cancel()
    job.reason = SOFT
    assert isinstance(job.translate(asyncio.CancelledError()), SoftTimeLimitExceeded)
    assert job.task.cancelling() == 0
    later = asyncio.CancelledError()
    assert job.translate(later) is later
    await asyncio.wait([job.task])


@pytest.mark.parametrize("reason", [None, HARD, TERMINATED])
def test_any_other_cancellation_stays_one(reason):
    job = make_job()
    job.reason = reason
    error = asyncio.CancelledError()
    assert job.translate(error) is error


def test_other_exceptions_stay_what_they_are_under_a_soft_limit():
    job = make_job()
    job.reason = SOFT
    error = GeneratorExit()
    assert job.translate(error) is error


@pytest.mark.parametrize(("reason", "doomed"), [(None, False), (SOFT, False), (HARD, True), (TERMINATED, True)])
def test_a_soft_limit_leaves_the_choice_to_the_body(reason, doomed):
    job = make_job()
    job.reason = reason
    assert job.doomed is doomed


@pytest.mark.parametrize(("limits", "limited"), [({}, False), ({"soft_limit_s": 1}, True), ({"hard_limit_s": 1}, True)])
def test_a_job_knows_whether_it_has_limits(limits, limited):
    assert make_job(**limits).limited is limited


async def test_cancelled_timers_do_not_fire():
    fired = []
    job = make_job()
    job.timers.append(asyncio.get_running_loop().call_later(0, fired.append, "timer"))
    job.cancel_timers()
    await settle()
    assert fired == []
    assert job.timers == []


def test_celery_may_hold_it_weakly():
    job = make_job()
    reference = weakref.ref(job)
    assert reference() is job
    del job
    gc.collect()
    assert reference() is None

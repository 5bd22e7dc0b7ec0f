"""Time limits."""

import time

import pytest
from celery import version_info
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from tests.conformance.conftest import OURS, PATIENCE_S, both_kinds, kills_children, until

pytestmark = pytest.mark.not_applicable(pool="threads", reason="Celery's threads pool has no time limits")

LIMIT_S = 0.3
LONG_S = 60

NO_EXCEPTION = "nothing can be raised in a thread from outside: its soft limit is a line in the log"
both_kinds_of_body = pytest.mark.parametrize(
    "kind", ["async", pytest.param("plain", marks=pytest.mark.not_applicable(pool="legit_async", reason=NO_EXCEPTION))]
)


# -- the soft limit ----------------------------------------------------------------------------------------------------


@both_kinds_of_body
def test_a_soft_limit_is_raised_once_in_the_body(shared, key, kind):
    result = shared.send("time_limits.wait", key, kind=kind, soft_time_limit=LIMIT_S)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=PATIENCE_S)
    assert shared.notes(key) == ["started", "SoftTimeLimitExceeded"]


@both_kinds_of_body
def test_a_body_may_catch_its_soft_limit_and_return(shared, key, kind):
    result = shared.send("time_limits.clean_up", key, kind=kind, soft_time_limit=LIMIT_S)
    assert result.get(timeout=PATIENCE_S) == "cleaned up"


@pytest.mark.one_broker
def test_a_soft_limit_is_raised_where_the_body_awaits_its_children(shared, key):
    result = shared.send("time_limits.clean_up_in_a_child", key, soft_time_limit=LIMIT_S)
    assert result.get(timeout=PATIENCE_S) == "cleaned up"


@pytest.mark.one_broker
def test_a_soft_limit_is_no_cancellation_for_the_timeouts_around_it(shared, key):
    result = shared.send("time_limits.clean_up_within_timeout", key, soft_time_limit=LIMIT_S)
    assert result.get(timeout=PATIENCE_S) == 0


@both_kinds_of_body
def test_a_body_that_goes_on_after_its_soft_limit_meets_the_hard_one(shared, key, kind):
    result = shared.send("time_limits.go_on", key, kind=kind, soft_time_limit=LIMIT_S, time_limit=3 * LIMIT_S)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE_S)
    assert shared.notes(key) == ["soft"]


@both_kinds
def test_a_soft_limit_is_told_in_the_log(shared, key, kind):
    result = shared.send("time_limits.wait", key, kind=kind, soft_time_limit=LIMIT_S)
    name = {"async": "wait", "plain": "plain_wait"}[kind]
    shared.shared_worker.wait_for_log(
        f"Soft time limit ({LIMIT_S}s) exceeded for conformance_app.time_limits.{name}[{result.id}]", PATIENCE_S
    )


@pytest.mark.not_applicable(pool="prefork", reason="a soft limit interrupts a plain body there")
def test_a_plain_body_goes_on_after_its_soft_limit(shared, key):
    result = shared.send("time_limits.wait", key, kind="plain", soft_time_limit=LIMIT_S)
    shared.shared_worker.wait_for_log(f"time_limits.plain_wait[{result.id}]", PATIENCE_S, count=2)
    shared.release(key)
    assert result.get(timeout=PATIENCE_S) == "waited"


# -- the hard limit ----------------------------------------------------------------------------------------------------


@both_kinds
def test_a_hard_limit_fails_the_task(shared, key, kind):
    result = shared.send("time_limits.wait", key, kind=kind, time_limit=LIMIT_S)
    with pytest.raises(TimeLimitExceeded, match=str(LIMIT_S)):
        result.get(timeout=PATIENCE_S)
    name = {"async": "wait", "plain": "plain_wait"}[kind]
    # Before 5.7 it is told as an error: pool/compat.py.
    says = "Hard time limit (" if version_info[:2] >= (5, 7) else "TimeLimitExceeded("
    shared.shared_worker.wait_for_log(says, PATIENCE_S)
    assert f"conformance_app.time_limits.{name}[{result.id}]" in shared.shared_worker.log
    assert "finished" not in shared.notes(key)


def test_a_hard_limit_cancels_the_body_once_and_lets_it_clean_up(shared, key):
    result = shared.send("time_limits.wait", key, time_limit=LIMIT_S)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE_S)
    assert shared.notes(key) == ["started", "CancelledError"]


@pytest.mark.one_broker
def test_a_body_that_returns_in_spite_of_its_hard_limit_has_succeeded(shared, key):
    result = shared.send("time_limits.insist", key, time_limit=LIMIT_S)
    assert result.get(timeout=PATIENCE_S) == "all the same"


@pytest.mark.skipif(version_info[:2] < (5, 7), reason="before Celery 5.7 a hard limit calls no hooks in its own pools")
@both_kinds
def test_a_hard_limit_calls_hooks_signal_and_errback_once(shared, key, kind):
    errback = shared.app.signature("conformance_app.time_limits.tell_failure")
    result = shared.send("time_limits.wait_with_hooks", key, kind=kind, time_limit=LIMIT_S, link_error=errback)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE_S)
    assert sorted(shared.wait_for_notes(f"{result.id}:hooks", 4)) == [
        "after_return FAILURE",
        "link_error TimeLimitExceeded",
        f"on_failure TimeLimitExceeded {key}",
        "task_failure TimeLimitExceeded",
    ]
    # Whatever came twice would have come before this.
    assert shared.send("outcomes.add", 1, 2).get(timeout=PATIENCE_S) == 3
    assert len(shared.notes(f"{result.id}:hooks")) == 4


@pytest.mark.one_broker
@both_kinds
def test_a_hard_limit_frees_the_slot(own, key, kind):
    """While the thread of a plain task is still busy; the pool has another one in its place."""
    with own.worker(concurrency=1, config={"legit_async_threads": 1}):
        with pytest.raises(TimeLimitExceeded):
            own.send("time_limits.wait", key, kind=kind, time_limit=LIMIT_S).get(timeout=PATIENCE_S)
        for after in ("plain", "async"):
            assert own.send("outcomes.add", 1, 2, kind=after).get(timeout=PATIENCE_S) == 3
        until(lambda: own.ask("active") == [], "the last one to be counted out")


@pytest.mark.one_broker
@kills_children
def test_the_thread_of_a_plain_task_that_exceeded_its_hard_limit_is_left_behind(own, key):
    """It runs on, and does not keep the worker from ending."""
    with own.worker(concurrency=1) as worker:
        results = [own.send("time_limits.wait", name, kind="plain", time_limit=LIMIT_S) for name in (key, key + "2")]
        for result in results:
            with pytest.raises(TimeLimitExceeded):
                result.get(timeout=PATIENCE_S)
        own.release(key)
        assert own.wait_for_notes(key, 2) == ["started", "finished"]
        assert worker.stop(PATIENCE_S) == 0
    assert own.notes(key + "2") == ["started"]


@pytest.mark.one_broker
def test_a_body_that_will_not_end_is_reported_without_it(own, key):
    with own.worker(concurrency=1):
        result = own.send("time_limits.ignore_cancellations", key, time_limit=LIMIT_S)
        with pytest.raises(TimeLimitExceeded):
            result.get(timeout=PATIENCE_S)
        assert own.send("outcomes.add", 1, 2).get(timeout=PATIENCE_S) == 3
        own.release(key)
        # Before the worker stops, which would cancel it once more.
        assert own.wait_for_notes(key, 2) == ["cancelled", "ended"]


# -- where limits come from --------------------------------------------------------------------------------------------


@pytest.mark.one_broker
@both_kinds_of_body
def test_a_task_has_its_own_soft_limit(shared, key, kind):
    with pytest.raises(SoftTimeLimitExceeded):
        shared.send("time_limits.wait_with_soft_limit", key, kind=kind).get(timeout=PATIENCE_S)


@pytest.mark.one_broker
@both_kinds
def test_a_task_has_its_own_hard_limit(shared, key, kind):
    with pytest.raises(TimeLimitExceeded):
        shared.send("time_limits.wait_with_hard_limit", key, kind=kind).get(timeout=PATIENCE_S)


@pytest.mark.one_broker
@both_kinds
def test_the_limit_of_a_call_comes_before_that_of_the_task(shared, key, kind):
    patient = shared.send("time_limits.wait_with_hard_limit", key, kind=kind, time_limit=LONG_S)
    hasty = shared.send("time_limits.wait_with_hard_limit", key, kind=kind)
    with pytest.raises(TimeLimitExceeded):  # it began later
        hasty.get(timeout=PATIENCE_S)
    assert not patient.ready()
    shared.release(key)
    assert patient.get(timeout=PATIENCE_S) is None


@pytest.mark.one_broker
@both_kinds
def test_the_worker_has_limits_for_tasks_without_any(own, key, kind):
    with own.worker("--soft-time-limit", "0.2", concurrency=3) as worker:
        soft = own.send("time_limits.wait", key, kind=kind)
        worker.wait_for_log("Soft time limit (0.2s) exceeded", PATIENCE_S)
        assert f"[{soft.id}]" in next(line for line in worker.log.splitlines() if "Soft time limit" in line)
        own.release(key)
        until(soft.ready, "its end")
    key = f"{key}-hard"
    with own.worker("--time-limit", "0.6", concurrency=3):
        patient = own.send("time_limits.wait", key, kind=kind, time_limit=LONG_S)
        hard = own.send("time_limits.wait", key, kind=kind)
        with pytest.raises(TimeLimitExceeded, match=r"0\.6"):
            hard.get(timeout=PATIENCE_S)
        assert not patient.ready()
        own.release(key)
        assert patient.get(timeout=PATIENCE_S) == "waited"


@pytest.mark.one_broker
def test_the_settings_have_limits_for_tasks_without_any(own, key):
    with own.worker(config={"task_time_limit": 0.6}), pytest.raises(TimeLimitExceeded, match=r"0\.6"):
        own.send("time_limits.wait", key).get(timeout=PATIENCE_S)
    with own.worker(config={"task_soft_time_limit": 0.2}), pytest.raises(SoftTimeLimitExceeded):
        own.send("time_limits.wait", key).get(timeout=PATIENCE_S)


@pytest.mark.one_broker
@both_kinds
def test_the_remote_command_sets_the_limits_of_a_task(shared, key, kind):
    task = shared.signature("time_limits.wait_with_remote_limit", kind=kind).task
    try:
        assert "ok" in shared.command("time_limit", task_name=task, soft=0.2, hard=LONG_S)
        soft = shared.send("time_limits.wait_with_remote_limit", key, kind=kind)
        shared.shared_worker.wait_for_log(f"Soft time limit (0.2s) exceeded for {task}[{soft.id}]", PATIENCE_S)
        if (shared.pool, kind) != (OURS, "plain"):  # there it is the line alone
            with pytest.raises(SoftTimeLimitExceeded):
                soft.get(timeout=PATIENCE_S)
        assert "ok" in shared.command("time_limit", task_name=task, soft=None, hard=0.4)
        hard = shared.send("time_limits.wait_with_remote_limit", key, kind=kind)
        with pytest.raises(TimeLimitExceeded, match=r"0\.4"):
            hard.get(timeout=PATIENCE_S)
    finally:
        shared.command("time_limit", task_name=task, soft=None, hard=None)


@pytest.mark.one_broker
def test_the_remote_command_knows_the_tasks(shared, key):
    assert shared.command("time_limit", task_name=key, soft=1, hard=2) == {"error": "unknown task"}


# -- when they count ---------------------------------------------------------------------------------------------------


@pytest.mark.one_broker
@both_kinds
def test_limits_count_from_the_start_of_the_body(own, key, kind):
    """Neither the wait for a slot counts nor, where there are fewer threads than slots, the wait for a thread."""
    limit_s = 1.5
    with own.worker(concurrency=2, config={"legit_async_threads": 1, "worker_prefetch_multiplier": 4}) as worker:
        running = [own.send("time_limits.wait", key, kind=kind) for _ in range(2)]
        last = own.send("outcomes.add", 1, 2, kind=kind, time_limit=limit_s, soft_time_limit=limit_s)
        worker.wait_for_log(f"[{last.id}] received", PATIENCE_S)
        received_s = time.monotonic()
        until(lambda: time.monotonic() - received_s > limit_s, "the limit")
        own.release(key)
        assert last.get(timeout=PATIENCE_S) == 3
        assert [result.get(timeout=PATIENCE_S) for result in running] == ["waited"] * 2

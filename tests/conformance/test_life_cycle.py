"""Stopping, resizing and replacing a worker"""

import json
import signal
from datetime import UTC, datetime, timedelta

import pytest

from legit_embedding.testing.worker import WorkerStartError
from tests.conformance.conftest import PATIENCE_S, both_kinds, until

OURS_ALONE = "Celery has no such setting"
FAR_S = 1000
"""Longer than any test waits."""


def only_ours(reason):
    """Behaviour that is an addition of this pool's."""

    def mark(test):
        for pool in ("threads", "prefork"):
            test = pytest.mark.not_applicable(pool=pool, reason=reason)(test)
        return test

    return mark


def start_waiting(own, key, count, *, kind):
    """So many tasks that run until the test releases them, with four slots: the rest waits."""
    results = [own.send("life_cycle.wait", key, kind=kind) for _ in range(count)]
    own.wait_for_notes(f"{key}:started", min(count, 4))
    return results


# -- warm --------------------------------------------------------------------------------------------------------------


by_signal = pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 1)], ids=["TERM", "INT"])
"""And Celery's exit code after it."""


@both_kinds
@by_signal
def test_a_warm_shutdown_finishes_what_runs_and_returns_what_waits(own, key, kind, number, code):
    with own.worker(config={"worker_prefetch_multiplier": 2}) as worker:
        results = start_waiting(own, key, 6, kind=kind)
        until(lambda: own.ready == 0, "the prefetch")
        worker.signal(number)
        worker.wait_for_log("Warm shutdown" if number == signal.SIGTERM else "Hitting Ctrl+C again", PATIENCE_S)
        own.release(key)
        assert worker.wait(PATIENCE_S) == code
    assert [result.state for result in results].count("SUCCESS") == 4
    assert len(own.notes(f"{key}:started")) == 4
    assert own.counts == (2, 0)


def test_what_ends_during_a_warm_shutdown_is_acknowledged_at_once(own, key):
    """A supervisor that loses its patience kills only what still runs."""
    with own.worker() as worker:
        for number in range(2):
            own.send("life_cycle.wait", f"{key}{number}")
            own.wait_for_notes(f"{key}{number}:started", 1)
        worker.signal(signal.SIGTERM)
        worker.wait_for_log("Warm shutdown", PATIENCE_S)
        own.release(f"{key}0")
        until(lambda: own.unacked == 1, "the ack of the one that is done")
        own.release(f"{key}1")
        assert worker.wait(PATIENCE_S) == 0


def test_a_second_term_changes_nothing(own, key):
    with own.worker() as worker:
        (result,) = start_waiting(own, key, 1, kind="async")
        worker.signal(signal.SIGTERM)
        worker.wait_for_log("Warm shutdown", PATIENCE_S)
        worker.signal(signal.SIGTERM)
        worker.wait_for_log("Warm shutdown", PATIENCE_S, count=2)
        own.release(key)
        assert worker.wait(PATIENCE_S) == 0
    assert result.state == "SUCCESS"


def test_a_remote_shutdown_is_a_warm_one(own, key):
    with own.worker() as worker:
        (result,) = start_waiting(own, key, 1, kind="async")
        own.app.control.shutdown(destination=[own.node])
        worker.wait_for_log("Got shutdown from remote", PATIENCE_S)
        own.release(key)
        assert worker.wait(PATIENCE_S) == 0
    assert result.state == "SUCCESS"


@only_ours(OURS_ALONE)
@both_kinds
@by_signal
def test_a_bounded_warm_shutdown_returns_what_still_runs_and_exits_as_any_other(own, key, kind, number, code):
    with own.worker(config={"legit_async_drain_timeout_s": 0.5}) as worker:
        done = own.send("life_cycle.process_id", kind=kind)
        done.get(timeout=PATIENCE_S)
        start_waiting(own, key, 6, kind=kind)
        worker.signal(number)
        assert worker.wait(PATIENCE_S) == code
        assert "4 tasks still run after 0.5 s: their messages go back" in worker.log
    assert own.counts == (6, 0)


@only_ours(OURS_ALONE)
def test_a_bounded_warm_shutdown_ends_with_the_work(own, key):
    with own.worker(config={"legit_async_drain_timeout_s": FAR_S}) as worker:
        (result,) = start_waiting(own, key, 1, kind="async")
        worker.signal(signal.SIGTERM)
        worker.wait_for_log("Warm shutdown", PATIENCE_S)
        own.release(key)
        assert worker.wait(PATIENCE_S) == 0
    assert result.state == "SUCCESS"
    assert own.counts == (0, 0)


# -- cold --------------------------------------------------------------------------------------------------------------


@both_kinds
def test_a_cold_shutdown_returns_what_runs_and_what_waits_and_another_worker_does_it(own, key, kind):
    with own.worker(config={"worker_prefetch_multiplier": 2}) as worker:
        results = start_waiting(own, key, 6, kind=kind)
        until(lambda: own.ready == 0, "the prefetch")
        worker.signal(signal.SIGQUIT)
        assert worker.wait(PATIENCE_S) == 0
    assert len(own.notes(f"{key}:started")) == 4
    assert own.counts == (6, 0)
    own.release(key)
    with own.worker():
        assert {result.get(timeout=PATIENCE_S) for result in results} == {"waited"}
        own.settled()


@pytest.mark.parametrize(
    "numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGQUIT)], ids=["INT-INT", "TERM-QUIT"]
)
def test_a_second_signal_turns_a_warm_shutdown_into_a_cold_one(own, key, numbers):
    with own.worker() as worker:
        start_waiting(own, key, 2, kind="async")
        worker.signal(numbers[0])
        first = "Hitting Ctrl+C again will initiate cold" if numbers[0] == signal.SIGINT else "Warm shutdown"
        worker.wait_for_log(first, PATIENCE_S)
        worker.signal(numbers[1])
        assert worker.wait(PATIENCE_S) == 0
    assert own.counts == (2, 0)


def block(own, key):
    own.send("life_cycle.block", key)
    own.wait_for_notes(f"{key}:started", 1)


@only_ours("no body can block the others there")
def test_a_body_that_blocks_the_loop_holds_up_neither_a_cold_shutdown_nor_one_after_a_warm_one(own, key):
    for first in (None, signal.SIGTERM):
        with own.worker(config={"legit_async_lifespan_exit_timeout_s": 0.2}) as worker:
            block(own, key)
            if first is not None:
                worker.signal(first)
                worker.wait_for_log("Warm shutdown", PATIENCE_S)
            worker.signal(signal.SIGQUIT)
            assert worker.wait(PATIENCE_S) == 0
        assert own.counts == (1, 0)
        own.purge()


# -- soft --------------------------------------------------------------------------------------------------------------


@both_kinds
def test_a_soft_shutdown_ends_with_the_work(own, key, kind):
    with own.worker(config={"worker_soft_shutdown_timeout": FAR_S}) as worker:
        results = start_waiting(own, key, 2, kind=kind)
        worker.signal(signal.SIGQUIT)
        worker.wait_for_log("Initiating Soft Shutdown", PATIENCE_S)
        own.release(key)
        assert worker.wait(PATIENCE_S) == 0
    assert {result.state for result in results} == {"SUCCESS"}
    assert own.counts == (0, 0)


@both_kinds
def test_a_soft_shutdown_returns_what_outlasts_its_timeout(own, key, kind):
    with own.worker(config={"worker_soft_shutdown_timeout": 0.5}) as worker:
        start_waiting(own, key, 2, kind=kind)
        worker.signal(signal.SIGQUIT)
        assert worker.wait(PATIENCE_S) == 0
    assert own.counts == (2, 0)


def test_a_second_signal_ends_a_soft_shutdown(own, key):
    with own.worker(config={"worker_soft_shutdown_timeout": FAR_S}) as worker:
        start_waiting(own, key, 2, kind="async")
        worker.signal(signal.SIGQUIT)
        worker.wait_for_log("Initiating Soft Shutdown", PATIENCE_S)
        worker.signal(signal.SIGQUIT)
        assert worker.wait(PATIENCE_S) == 0
    assert own.counts == (2, 0)


def test_a_soft_shutdown_of_an_idle_worker_ends_at_once(own):
    with own.worker(config={"worker_soft_shutdown_timeout": FAR_S}) as worker:
        worker.signal(signal.SIGQUIT)
        assert worker.wait(PATIENCE_S) == 0


def test_a_soft_shutdown_on_idle_returns_tasks_with_an_eta_without_waiting(own):
    config = {"worker_soft_shutdown_timeout": FAR_S, "worker_enable_soft_shutdown_on_idle": True}
    with own.worker(config=config) as worker:
        own.send("life_cycle.process_id", eta=datetime.now(UTC) + timedelta(hours=1))
        until(lambda: own.unacked == 1, "the task to be scheduled")
        worker.signal(signal.SIGQUIT)
        assert worker.wait(PATIENCE_S) == 0
    assert own.counts == (1, 0)


# -- replaced ----------------------------------------------------------------------------------------------------------


@only_ours("each of prefork's children is replaced while its worker goes on; threads ignores the setting")
@both_kinds
def test_a_worker_that_has_done_its_tasks_per_child_finishes_what_runs_and_exits_with_0(own, key, kind):
    with own.worker("--max-tasks-per-child", "3", config={"worker_prefetch_multiplier": 2}) as worker:
        results = [own.send("life_cycle.wait", f"{key}{number}", kind=kind) for number in range(10)]
        for number in range(3):  # each gives its slot to the one four behind it, but for the third
            own.wait_for_notes(f"{key}{number}:started", 1)
            own.release(f"{key}{number}")
            results[number].get(timeout=PATIENCE_S)
            if number < 2:
                own.wait_for_notes(f"{key}{number + 4}:started", 1)
        worker.wait_for_log("worker_max_tasks_per_child is 3", PATIENCE_S)
        for number in range(3, 10):
            own.release(f"{key}{number}")
        assert worker.wait(PATIENCE_S) == 0
    assert [result.state for result in results].count("SUCCESS") == 6
    assert own.counts == (4, 0)


@pytest.mark.not_applicable(pool="legit_async", reason="there are no children: the process ends, see the line above")
@pytest.mark.not_applicable(pool="threads", reason="there are no children, and the setting is ignored")
def test_a_child_that_has_done_its_tasks_is_replaced(own):
    with own.worker("--max-tasks-per-child", "1", concurrency=1):
        found = {own.send("life_cycle.process_id", kind="plain").get(timeout=PATIENCE_S) for _ in range(2)}
        assert len(found) == 2


@only_ours("each of prefork's children is replaced while its worker goes on; threads ignores the setting")
@both_kinds
def test_a_worker_that_has_grown_beyond_its_memory_per_child_finishes_what_runs_and_exits_with_0(own, key, kind):
    with own.worker("--max-memory-per-child", "300000") as worker:
        (running,) = start_waiting(own, key, 1, kind=kind)
        hoarding = own.send("life_cycle.hoard", 300, kind=kind)
        hoarding.get(timeout=PATIENCE_S)
        # Memory is looked at when tasks end, once a second at most.

        def has_retired():
            own.send("life_cycle.process_id", kind=kind).forget()
            return "worker_max_memory_per_child is 300000 KiB" in worker.log

        until(has_retired, "the look at the memory")
        own.release(key)
        assert worker.wait(PATIENCE_S) == 0
    assert running.state == "SUCCESS"
    assert own.unacked == 0


@only_ours("a check of this pool's own")
def test_a_memory_limit_below_what_the_worker_takes_is_refused_at_the_start(own):
    with pytest.raises(WorkerStartError, match="worker_max_memory_per_child is 1000 KiB"):
        own.worker("--max-memory-per-child", "1000").start()


def test_hup_starts_the_worker_anew_after_its_work_under_the_same_process_id(own, key):
    with own.worker() as worker:
        (result,) = start_waiting(own, key, 1, kind="async")
        worker.signal(signal.SIGHUP)
        worker.wait_for_log("Restarting celery worker", PATIENCE_S)
        own.release(key)
        worker.wait_for_log(" ready.", PATIENCE_S, count=2)
        assert own.send("outcomes.add", 1, 2).get(timeout=PATIENCE_S) == 3
        assert own.ask("stats")["pid"] == worker.pid
    assert result.state == "SUCCESS"


# -- resized -----------------------------------------------------------------------------------------------------------


@both_kinds
def test_a_grown_pool_runs_more_at_once_and_a_shrunk_one_fewer(own, key, kind):
    with own.worker(concurrency=1, config={"worker_prefetch_multiplier": 10}):
        results = [own.send("life_cycle.wait", f"{key}{number}", kind=kind) for number in range(4)]
        own.wait_for_notes(f"{key}0:started", 1)
        assert "ok" in own.command("pool_grow", n=1)
        own.wait_for_notes(f"{key}1:started", 1)
        assert own.ask("stats")["pool"]["max-concurrency"] == 2
        assert "ok" in own.command("pool_shrink", n=1)
        own.release(f"{key}0")
        results[0].get(timeout=PATIENCE_S)
        assert own.ask("stats")["pool"]["max-concurrency"] == 1
        assert own.notes(f"{key}2:started") == []
        for number in range(1, 4):
            own.release(f"{key}{number}")
        assert [result.get(timeout=PATIENCE_S) for result in results] == ["waited"] * 4


@both_kinds
def test_autoscale_follows_the_load(own, key, kind):
    with own.worker("--autoscale", "4,1", env={"AUTOSCALE_KEEPALIVE": "1"}):
        results = [own.send("life_cycle.meet", key, 4, kind=kind) for _ in range(4)]
        for result in results:
            result.get(timeout=PATIENCE_S)
        assert own.ask("stats")["autoscaler"]["max"] == 4
        until(lambda: own.ask("stats")["pool"]["max-concurrency"] == 1, "the pool to shrink")


def test_pool_restart_is_answered_and_what_runs_goes_on(own, key):
    with own.worker(config={"worker_pool_restarts": True}):
        (result,) = start_waiting(own, key, 1, kind="async")
        assert "ok" in own.command("pool_restart", reload=False)
        own.release(key)
        assert result.get(timeout=PATIENCE_S) == "waited"
        assert own.send("life_cycle.process_id").get(timeout=PATIENCE_S) is not None


def test_pool_restart_is_refused_where_it_is_not_allowed(own):
    with own.worker():
        assert "error" in own.command("pool_restart")


def test_what_is_told_of_the_pool_is_what_its_readers_expect(own):
    with own.worker("--max-tasks-per-child", "1000", "--time-limit", "60", "--soft-time-limit", "50"):
        pool = own.ask("stats")["pool"]
    assert pool["max-concurrency"] == 4
    assert len(pool["processes"]) >= 1
    assert pool["max-tasks-per-child"] == 1000
    assert list(pool["timeouts"]) == [50, 60]
    json.dumps(pool)

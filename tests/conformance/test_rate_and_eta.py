"""Rate limits, ETA and countdown."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from celery.app.defaults import NAMESPACES

from tests.conformance.conftest import PATIENCE_S, both_kinds, since, until

SLACK_S = 0.05
"""The worker's clock for timers is not the one by which the tasks tell their time."""


def runs(site, key, count):
    """(number, time) of each run, in order."""
    return [json.loads(told) for told in site.wait_for_notes(key, count)]


def rarely(found, interval_s):
    """Whether the runs keep the interval."""
    times_s = sorted(at_s for _number, at_s in found)
    return times_s[-1] - times_s[0] >= (len(times_s) - 1) * interval_s - SLACK_S


# -- rate limits -------------------------------------------------------------------------------------------------------

RATES = since((5, 7), "a rate that the first two tasks keep, too")


@RATES
@both_kinds
def test_a_task_keeps_its_rate(shared, key, kind):
    for number in range(4):
        shared.send("rate_and_eta.tell_rarely", key, number, kind=kind)
    found = runs(shared, key, 4)
    assert [number for number, _at_s in found] == [0, 1, 2, 3]
    assert rarely(found, 1 / 5)


@RATES
@pytest.mark.one_broker
def test_several_tasks_keep_their_own_rates_and_hold_up_no_other(shared, key):
    names = {"rarely": 1 / 5, "often": 1 / 10}
    for number in range(4):
        for name in names:
            for kind in ("async", "plain"):
                shared.send(f"rate_and_eta.tell_{name}", f"{key}:{name}:{kind}", number, kind=kind)
    shared.send("rate_and_eta.tell", f"{key}:other", 0)
    ((_number, other_s),) = runs(shared, f"{key}:other", 1)
    for name, interval_s in names.items():
        for kind in ("async", "plain"):
            found = runs(shared, f"{key}:{name}:{kind}", 4)
            assert rarely(found, interval_s)
            if name == "rarely":
                assert found[-1][1] > other_s


@both_kinds
def test_a_rate_is_set_and_taken_away_by_remote_command(shared, key, kind):
    task = shared.signature("rate_and_eta.tell", kind=kind).task
    assert shared.command("rate_limit", task_name=task, rate_limit="5/s") == {"ok": "new rate limit set successfully"}
    for number in range(4):
        shared.send("rate_and_eta.tell", f"{key}:limited", number, kind=kind)
    assert rarely(runs(shared, f"{key}:limited", 4), 1 / 5)
    assert "ok" in shared.command("rate_limit", task_name=task, rate_limit="1/h")
    assert "ok" in shared.command("rate_limit", task_name=task, rate_limit=0)
    for number in range(2):
        shared.send("rate_and_eta.tell", f"{key}:unlimited", number, kind=kind)
    assert len(runs(shared, f"{key}:unlimited", 2)) == 2


@pytest.mark.one_broker
def test_a_rate_that_makes_no_sense_is_refused(shared):
    assert "error" in shared.command("rate_limit", task_name="conformance_app.rate_and_eta.tell", rate_limit="often")
    assert "error" in shared.command("rate_limit", task_name="conformance_app.rate_and_eta.nothing", rate_limit="1/s")


def test_what_a_rate_holds_back_takes_no_slot_and_goes_back_when_the_worker_stops(own, key):
    with own.worker(concurrency=1, config={"worker_prefetch_multiplier": 8}) as worker:
        for number in range(2):
            for kind in ("async", "plain"):
                last = own.send("rate_and_eta.tell_once", key, number, kind=kind)
        worker.wait_for_log(f"[{last.id}] received", PATIENCE_S)
        assert [number for number, _at_s in runs(own, key, 2)] == [0, 0]
        for other in ("async", "plain"):
            assert own.send("outcomes.add", 1, 2, kind=other).get(timeout=PATIENCE_S) == 3
        until(lambda: own.unacked == 2, "the acks of the others")
        assert worker.stop(PATIENCE_S) == 0
        until(lambda: own.counts == (2, 0), "the messages to be back")
    assert len(own.notes(key)) == 2


@pytest.mark.one_broker
def test_rates_do_not_count_where_they_are_switched_off(own, key):
    with own.worker(config={"worker_disable_rate_limits": True}):
        for number in range(3):
            for kind in ("async", "plain"):
                own.send("rate_and_eta.tell_once", key, number, kind=kind)
        assert len(runs(own, key, 6)) == 6


# -- ETA and countdown -------------------------------------------------------------------------------------------------


@both_kinds
def test_a_task_does_not_start_before_its_time(shared, key, kind):
    sent_s = time.time()
    shared.send("rate_and_eta.tell", key, 0, kind=kind, countdown=0.4)
    shared.send("rate_and_eta.tell", key, 1, kind=kind, eta=datetime.fromtimestamp(sent_s + 0.4, UTC))
    assert all(at_s >= sent_s + 0.4 - SLACK_S for _number, at_s in runs(shared, key, 2))


@pytest.mark.one_broker
@both_kinds
def test_a_time_that_is_past_is_now(shared, key, kind):
    shared.send("rate_and_eta.tell", key, 0, kind=kind, eta=datetime.now(UTC) - timedelta(days=1))
    assert len(runs(shared, key, 1)) == 1


def test_tasks_start_in_the_order_of_their_times(own, key):
    """And not of their sending; each slot is free until then."""
    with own.worker(concurrency=1) as worker:
        start_s = time.time() + 4
        results = [
            own.send(
                "rate_and_eta.tell",
                key,
                number,
                kind=("async", "plain")[number % 2],
                eta=datetime.fromtimestamp(start_s + 0.1 * number, UTC),
            )
            for number in (3, 1, 0, 2)
        ]
        worker.wait_for_log(f"[{results[-1].id}] received", PATIENCE_S)
        assert own.send("outcomes.add", 1, 2).get(timeout=PATIENCE_S) == 3
        found = runs(own, key, 4)
        assert [number for number, _at_s in found] == [0, 1, 2, 3]
        assert all(at_s >= start_s + 0.1 * number - SLACK_S for number, at_s in found)


def test_many_wait_for_their_time_beyond_the_prefetch_count_and_go_back_when_the_worker_stops(own, key):
    many, late = 12, datetime.now(UTC) + timedelta(hours=1)
    with own.worker(concurrency=1) as worker:
        for number in range(many):
            own.send("rate_and_eta.tell", key, number, kind=("async", "plain")[number % 2], eta=late)
        # Asking keeps the worker's loop awake: an idle one raises the count on RabbitMQ about once a second.
        until(lambda: len(own.ask("scheduled")) == many, "the worker to hold them all")
        assert own.counts == (0, many)
        assert own.send("outcomes.add", 1, 2).get(timeout=PATIENCE_S) == 3
        assert worker.stop(PATIENCE_S) == 0
        until(lambda: own.counts == (many, 0), "the messages to be back")
    assert own.notes(key) == []


@pytest.mark.one_broker
def test_many_whose_time_comes_at_once_all_run_once(shared, key):
    many, start_s = 200, time.time() + 1
    eta = datetime.fromtimestamp(start_s, UTC)
    for number in range(many):
        shared.send("rate_and_eta.tell", key, number, kind=("async", "plain")[number % 2], eta=eta)
    found = runs(shared, key, many)
    shared.settled()
    assert sorted(number for number, _at_s in runs(shared, key, many)) == list(range(many))
    assert all(at_s >= start_s - SLACK_S for _number, at_s in found)


@pytest.mark.skipif("eta_task_limit" not in NAMESPACES["worker"], reason="a setting that this Celery does not have")
def test_a_worker_takes_no_more_for_later_than_it_may(own, key):
    limit, late = 4, datetime.now(UTC) + timedelta(hours=1)
    with own.worker(concurrency=1, config={"worker_eta_task_limit": limit}):
        for number in range(3 * limit):
            own.send("rate_and_eta.tell", key, number, kind=("async", "plain")[number % 2], eta=late)
        until(lambda: own.unacked == limit, "the limit")
        assert len(own.ask("scheduled")) == limit
        assert own.counts == (2 * limit, limit)


@RATES
@pytest.mark.one_broker
@both_kinds
def test_a_task_keeps_its_rate_after_its_time(shared, key, kind):
    start_s = time.time() + 0.3
    for number in range(3):
        shared.send("rate_and_eta.tell_rarely", key, number, kind=kind, eta=datetime.fromtimestamp(start_s, UTC))
    found = runs(shared, key, 3)
    assert all(at_s >= start_s - SLACK_S for _number, at_s in found)
    assert rarely(found, 1 / 5)

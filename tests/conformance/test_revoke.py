"""Revokes and expiry."""

import json
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest
from celery import group
from celery.exceptions import TaskRevokedError

from tests.conformance.conftest import PATIENCE_S, both_kinds, kills_children, since, stops_tasks, until

NAMES = {"async": "conformance_app.revoke.wait", "plain": "conformance_app.revoke.plain_wait"}
SIGNAL = {"terminated": False, "signal": None, "expired": False}

PREFETCHING = {"worker_prefetch_multiplier": 8}


def is_revoked(result):
    """It says so to whoever waits for it, and in its stored state."""
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE_S)
    return result.state == "REVOKED"


def signals_of(site, result):
    return [json.loads(told) for told in site.wait_for_notes(f"{result.id}:revoked", 1)]


def revoke(site, *results, terminate=False):
    """Returns once the worker has obeyed."""
    obeys(site, "revoke", [result.id for result in results], terminate=terminate)


def obeys(site, command, *args, **options):
    answers = getattr(site.app.control, command)(
        *args, destination=[site.node], reply=True, timeout=PATIENCE_S, **options
    )
    assert "ok" in answers[0][site.node]


def discards(worker, *results):
    """Returns once the worker has thrown the messages of these away."""
    for result in results:
        until(
            lambda result=result: any(
                "Discarding revoked task" in line and f"[{result.id}]" in line for line in worker.log.splitlines()
            ),
            f"the discarding of {result.id}",
        )


# -- before they start -------------------------------------------------------------------------------------------------


@both_kinds
def test_a_task_that_was_revoked_before_it_arrives_never_starts(shared, key, kind):
    obeys(shared, "revoke", key)
    result = shared.send("revoke.wait", key, kind=kind, task_id=key)
    discards(shared.shared_worker, result)
    assert is_revoked(result)
    assert signals_of(shared, result) == [{"sender": NAMES[kind], **SIGNAL}]
    assert shared.notes(f"{key}:started") == []


@both_kinds
def test_a_task_that_is_revoked_while_it_waits_for_a_slot_never_starts(own, key, kind):
    """With `terminate` and without."""
    with own.worker(concurrency=1, config=PREFETCHING) as worker:
        running, first, second, after = (own.send("revoke.wait", key, kind=kind) for _ in range(4))
        worker.wait_for_log(f"[{after.id}] received", PATIENCE_S)
        own.wait_for_notes(f"{key}:started", 1)
        own.wait_until_active(running)
        revoke(own, first)
        revoke(own, second, terminate=True)
        own.release(key)
        assert running.get(timeout=PATIENCE_S) == after.get(timeout=PATIENCE_S) == "waited"
        for waiting in (first, second):
            assert is_revoked(waiting)
            assert signals_of(own, waiting) == [{"sender": NAMES[kind], **SIGNAL}]
        assert own.notes(f"{key}:started") == [running.id, after.id]
        own.settled()


def test_many_are_revoked_at_once(own, key):
    with own.worker(concurrency=1, config=PREFETCHING) as worker:
        running = own.send("revoke.wait", key)
        own.wait_for_notes(f"{key}:started", 1)
        own.wait_until_active(running)
        waiting = [own.send("revoke.wait", key, kind=kind) for kind in ("async", "plain") * 3]
        worker.wait_for_log(f"[{waiting[-1].id}] received", PATIENCE_S)
        revoke(own, *waiting)
        assert {result.id for result in waiting} <= set(own.ask("revoked"))
        own.release(key)
        assert running.get(timeout=PATIENCE_S) == "waited"
        assert all(is_revoked(result) for result in waiting)
        own.settled()
        assert own.notes(f"{key}:started") == [running.id]


@stops_tasks
@pytest.mark.one_broker
def test_a_group_is_revoked_at_once(shared, key):
    signatures = [shared.signature("revoke.wait", key, kind=kind) for kind in ("async", "plain")]
    results = group(signatures, app=shared.app).apply_async()
    shared.wait_for_notes(f"{key}:started", 2)
    shared.wait_until_active(*results)
    results.revoke(terminate=True)
    assert all(is_revoked(result) for result in results)


def test_a_task_that_waits_for_its_time_is_revoked(own, key):
    """Its message goes when its time has come."""
    with own.worker() as worker:
        eta = datetime.now(UTC) + timedelta(seconds=6)
        results = [own.send("revoke.wait", key, kind=kind, eta=eta) for kind in ("async", "plain")]
        for result in results:
            worker.wait_for_log(f"[{result.id}] received", PATIENCE_S)
        revoke(own, results[0])
        revoke(own, results[1], terminate=True)
        discards(worker, *results)
        assert all(is_revoked(result) for result in results)
        own.settled()
        assert own.notes(f"{key}:started") == []


@pytest.mark.one_broker
def test_revokes_outlive_the_worker_where_they_are_written_down(own, key, tmp_path):
    state = ["--statedb", str(tmp_path / "state")]
    ids = [f"{key}{number}" for number in range(2)]
    with own.worker(*state):
        obeys(own, "revoke", ids)
    results = [own.send("revoke.wait", key, kind=kind, task_id=id_) for kind, id_ in zip(NAMES, ids, strict=True)]
    with own.worker(*state) as worker:
        discards(worker, *results)
        assert set(ids) <= set(own.ask("revoked"))
        own.settled()
    assert own.notes(f"{key}:started") == []


# -- while they run ----------------------------------------------------------------------------------------------------


@since((5, 7), "a state of its own for what runs on")
@both_kinds
def test_a_running_task_goes_on_when_it_is_revoked_without_terminate(shared, key, kind):
    result = shared.send("revoke.wait", key, kind=kind)
    shared.wait_for_notes(f"{key}:started", 1)
    shared.wait_until_active(result)
    revoke(shared, result)
    assert not result.ready()
    shared.release(key)
    assert result.get(timeout=PATIENCE_S) == "waited"


@stops_tasks
@both_kinds
def test_a_running_task_is_revoked_with_terminate(own, key, kind):
    """Reported at once, signal included, acknowledged, and its slot is free."""
    with own.worker(concurrency=1):
        result = own.send("revoke.wait_late", key, kind=kind)
        own.wait_for_notes(f"{key}:started", 1)
        own.wait_until_active(result)
        result.revoke(terminate=True)
        assert is_revoked(result)
        (told,) = signals_of(own, result)
        assert (told["terminated"], told["expired"]) == (True, False)
        for after in ("async", "plain"):
            assert own.send("outcomes.add", 1, 2, kind=after).get(timeout=PATIENCE_S) == 3
        # A result is there before the consumer hears of the task's end.
        until(lambda: own.ask("active") == [], "the last one to be counted out")
        own.settled()
        assert own.notes(f"{key}:started") == [result.id]
        assert own.notes(f"{key}:finished") == []
        own.release(key)


@stops_tasks
def test_a_terminated_body_is_cancelled_once_and_cleans_up(shared, key):
    result = shared.send("revoke.wait", key)
    shared.wait_for_notes(f"{key}:started", 1)
    shared.wait_until_active(result)
    obeys(shared, "terminate", result.id)
    assert is_revoked(result)
    assert shared.wait_for_notes(f"{key}:cleaned up", 1) == [result.id]
    assert shared.notes(f"{key}:cancelled") == [result.id]


@stops_tasks
@pytest.mark.one_broker
@kills_children
def test_the_thread_of_a_terminated_plain_task_is_left_behind(shared, key):
    result = shared.send("revoke.wait", key, kind="plain")
    shared.wait_for_notes(f"{key}:started", 1)
    shared.wait_until_active(result)
    result.revoke(terminate=True)
    assert is_revoked(result)
    shared.release(key)
    assert shared.wait_for_notes(f"{key}:finished", 1) == [result.id]


@stops_tasks
@pytest.mark.one_broker
@both_kinds
def test_the_signal_of_a_terminate_is_told(shared, key, kind):
    result = shared.send("revoke.wait", key, kind=kind)
    shared.wait_for_notes(f"{key}:started", 1)
    shared.wait_until_active(result)
    obeys(shared, "terminate", result.id, signal="SIGUSR2")
    assert is_revoked(result)
    assert signals_of(shared, result)[0]["signal"] == str(int(signal.SIGUSR2))


@stops_tasks
def test_only_what_is_named_is_terminated(shared, key):
    named = [shared.send("revoke.wait", key, kind=kind) for kind in ("async", "plain")]
    other = shared.send("revoke.wait", key)
    shared.wait_for_notes(f"{key}:started", 3)
    shared.wait_until_active(*named, other)
    obeys(shared, "terminate", [result.id for result in named])
    assert all(is_revoked(result) for result in named)
    assert not other.ready()
    shared.release(key)
    assert other.get(timeout=PATIENCE_S) == "waited"


@pytest.mark.one_broker
def test_a_terminate_of_an_unknown_task_says_so(shared, key):
    (answer,) = shared.app.control.terminate(key, destination=[shared.node], reply=True, timeout=PATIENCE_S)
    assert answer == {shared.node: {"ok": "terminate: tasks unknown"}}


# -- by stamps ---------------------------------------------------------------------------------------------------------


def send_stamped(site, key, stamp, kind):
    return site.signature("revoke.wait", key, kind=kind).stamp(owner=stamp).apply_async()


@pytest.mark.one_broker
@both_kinds
def test_waiting_tasks_are_revoked_by_their_stamp_and_running_ones_go_on(own, key, kind):
    with own.worker(concurrency=1, config=PREFETCHING) as worker:
        running, waiting, other = (send_stamped(own, key, stamp, kind) for stamp in ("them", "them", "us"))
        worker.wait_for_log(f"[{other.id}] received", PATIENCE_S)
        own.wait_for_notes(f"{key}:started", 1)
        own.wait_until_active(running)
        obeys(own, "revoke_by_stamped_headers", {"owner": ["them", "nobody"]})
        own.release(key)
        assert is_revoked(waiting)
        assert signals_of(own, waiting) == [{"sender": NAMES[kind], **SIGNAL}]
        assert running.get(timeout=PATIENCE_S) == other.get(timeout=PATIENCE_S) == "waited"
        assert own.notes(f"{key}:started") == [running.id, other.id]
        late = send_stamped(own, key, "them", kind)
        assert is_revoked(late)
        own.settled()


@stops_tasks
@both_kinds
def test_running_tasks_are_terminated_by_their_stamp(shared, key, kind):
    stamped = [send_stamped(shared, key, f"{key}{number}", kind) for number in range(3)]
    shared.wait_for_notes(f"{key}:started", 3)
    shared.wait_until_active(*stamped)
    obeys(shared, "revoke_by_stamped_headers", {"owner": [f"{key}0", f"{key}1"]}, terminate=True)
    for result in stamped[:2]:
        assert is_revoked(result)
        assert signals_of(shared, result)[0]["terminated"]
    assert not stamped[2].ready()
    shared.release(key)
    assert stamped[2].get(timeout=PATIENCE_S) == "waited"


# -- expiry ------------------------------------------------------------------------------------------------------------


@both_kinds
def test_a_task_that_has_expired_when_it_arrives_never_starts(shared, key, kind):
    result = shared.send("revoke.wait", key, kind=kind, expires=datetime.now(UTC) - timedelta(seconds=1))
    assert is_revoked(result)
    assert signals_of(shared, result) == [{"sender": NAMES[kind], **SIGNAL, "expired": True}]
    assert shared.notes(f"{key}:started") == []


@pytest.mark.one_broker
@both_kinds
def test_a_task_that_expires_while_it_waits_for_a_slot_never_starts(own, key, kind):
    with own.worker(concurrency=1, config=PREFETCHING) as worker:
        running = own.send("revoke.wait", key, kind=kind)
        own.wait_for_notes(f"{key}:started", 1)
        expires_s = time.time() + 1.5
        waiting = own.send("revoke.wait", key, kind=kind, expires=datetime.fromtimestamp(expires_s, UTC))
        patient = own.send("revoke.wait", key, kind=kind, expires=3600)
        worker.wait_for_log(f"[{patient.id}] received", PATIENCE_S)
        until(lambda: time.time() > expires_s, "the expiry")
        own.release(key)
        assert is_revoked(waiting)
        assert signals_of(own, waiting) == [{"sender": NAMES[kind], **SIGNAL, "expired": True}]
        assert running.get(timeout=PATIENCE_S) == patient.get(timeout=PATIENCE_S) == "waited"
        assert own.notes(f"{key}:started") == [running.id, patient.id]
        own.settled()


@pytest.mark.one_broker
def test_a_task_that_expires_before_its_time_never_starts(own, key):
    """Its message goes when its time has come."""
    with own.worker() as worker:
        now = datetime.now(UTC)
        times = {"expires": now + timedelta(seconds=1), "eta": now + timedelta(seconds=1.5)}
        results = [own.send("revoke.wait", key, kind=kind, **times) for kind in ("async", "plain")]
        discards(worker, *results)
        assert all(is_revoked(result) for result in results)
        own.settled()
        assert own.notes(f"{key}:started") == []


@both_kinds
def test_a_task_that_has_begun_does_not_expire(shared, key, kind):
    expires_s = time.time() + 2
    result = shared.send("revoke.wait", key, kind=kind, expires=datetime.fromtimestamp(expires_s, UTC))
    shared.wait_for_notes(f"{key}:started", 1)
    until(lambda: time.time() > expires_s, "the expiry")
    shared.release(key)
    assert result.get(timeout=PATIENCE_S) == "waited"

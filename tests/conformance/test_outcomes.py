"""What becomes of a task."""

import pytest
from celery.exceptions import MaxRetriesExceededError, TaskError, WorkerLostError
from kombu.exceptions import EncodeError

from tests.conformance.conftest import PATIENCE_S, both_kinds, until


def lives(site):
    """The worker still does what it is sent."""
    return site.send("outcomes.add", 1, 2).get(timeout=PATIENCE_S) == 3


@both_kinds
def test_a_task_returns_its_value(shared, kind):
    assert shared.send("outcomes.add", 1, 2, kind=kind).get(timeout=PATIENCE_S) == 3


# -- failures ----------------------------------------------------------------------------------------------------------


@both_kinds
def test_a_failure_reaches_the_caller_with_its_traceback(shared, kind):
    result = shared.send("outcomes.fail", "why", kind=kind)
    with pytest.raises(KeyError, match="why"):
        result.get(timeout=PATIENCE_S)
    assert result.state == "FAILURE"
    assert "in plain_fail" in result.traceback if kind == "plain" else "in fail" in result.traceback
    assert "raise KeyError(message)" in result.traceback
    shared.shared_worker.wait_for_log(f"[{result.id}] raised unexpected: KeyError('why')", PATIENCE_S)


@both_kinds
def test_wrong_arguments_are_a_failure(shared, kind):
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        shared.send("outcomes.add", 1, kind=kind).get(timeout=PATIENCE_S)


@both_kinds
def test_a_failure_that_throws_names_is_logged_as_expected(shared, kind):
    result = shared.send("outcomes.fail_as_expected", "why", kind=kind)
    with pytest.raises(KeyError, match="why"):
        result.get(timeout=PATIENCE_S)
    shared.shared_worker.wait_for_log(f"[{result.id}] raised expected: KeyError('why')", PATIENCE_S)


@both_kinds
def test_an_exception_that_cannot_be_pickled_is_a_failure_that_says_what_it_was(shared, kind):
    with pytest.raises(Exception, match=r"LockedOut\(.*locked out"):
        shared.send("outcomes.fail_unpicklably", kind=kind).get(timeout=PATIENCE_S)
    assert lives(shared)


@pytest.mark.one_broker
def test_the_failure_of_a_task_group_reaches_the_caller(shared):
    result = shared.send("outcomes.fail_in_a_child")
    with pytest.raises(Exception, match="unhandled errors in a TaskGroup"):
        result.get(timeout=PATIENCE_S)
    assert "KeyError: 'of a child'" in result.traceback


@pytest.mark.one_broker
@both_kinds
def test_a_value_that_cannot_be_serialized_is_a_failure(shared, kind):
    with pytest.raises(EncodeError, match="not JSON serializable"):
        shared.send("outcomes.return_what_no_serializer_knows", kind=kind).get(timeout=PATIENCE_S)


@both_kinds
@pytest.mark.parametrize(
    ("way", "error", "says"),
    [
        ("exit", WorkerLostError, None),
        ("interrupt", WorkerLostError, None),
        ("cancel", TaskError, "a cancellation that nobody asked for"),
    ],
    ids=["exit", "interrupt", "cancel"],
)
def test_a_body_that_leaves_by_a_way_of_its_own_fails_and_the_worker_lives(shared, kind, way, error, says):
    with pytest.raises(error, match=says):
        shared.send("outcomes.leave", way, kind=kind).get(timeout=PATIENCE_S)
    assert lives(shared)


@pytest.mark.one_broker
def test_a_body_that_awaits_what_was_cancelled_fails(shared):
    with pytest.raises(TaskError, match="a cancellation that nobody asked for"):
        shared.send("outcomes.await_a_cancelled_child").get(timeout=PATIENCE_S)


# -- retries -----------------------------------------------------------------------------------------------------------


@both_kinds
def test_a_task_retries_until_it_succeeds(shared, kind):
    assert shared.send("outcomes.retry", 2, kind=kind).get(timeout=PATIENCE_S) == 2


def test_a_child_of_a_body_asks_for_its_retry(shared):
    assert shared.send("outcomes.retry_in_a_child", 2).get(timeout=PATIENCE_S) == 2


@both_kinds
def test_a_task_that_retries_too_often_fails(shared, kind):
    with pytest.raises(MaxRetriesExceededError):
        shared.send("outcomes.retry", 3, kind=kind).get(timeout=PATIENCE_S)


@both_kinds
def test_a_task_that_retries_too_often_fails_with_its_reason(shared, kind):
    with pytest.raises(KeyError, match="why"):
        shared.send("outcomes.retry_because", "why", kind=kind).get(timeout=PATIENCE_S)


@both_kinds
def test_a_retry_may_change_the_arguments(shared, kind):
    assert shared.send("outcomes.retry_with_other_arguments", 1, kind=kind).get(timeout=PATIENCE_S) == 3


@both_kinds
def test_autoretry_retries_until_the_task_succeeds(shared, kind):
    assert shared.send("outcomes.autoretry", 2, kind=kind).get(timeout=PATIENCE_S) == 2


@both_kinds
def test_autoretry_gives_up_with_the_last_exception(shared, kind):
    with pytest.raises(KeyError, match="4"):
        shared.send("outcomes.autoretry", 4, kind=kind).get(timeout=PATIENCE_S)


@pytest.mark.one_broker
@both_kinds
def test_autoretry_backs_off_twice_as_long_each_time_up_to_the_maximum(shared, kind):
    result = shared.send("outcomes.back_off", kind=kind)
    with pytest.raises(KeyError):
        result.get(timeout=PATIENCE_S)
    # The fourth asks too, and is told that three are enough.
    assert shared.notes(result.id) == ["3", "6", "10", "10"]


@both_kinds
def test_a_retry_comes_when_it_has_backed_off(shared, kind):
    result = shared.send("outcomes.back_off_for_a_second", kind=kind)
    with pytest.raises(KeyError):
        result.get(timeout=PATIENCE_S)
    first_s, second_s = map(float, shared.notes(result.id))
    assert second_s - first_s >= 0.99  # the worker goes by another clock


# -- no outcome --------------------------------------------------------------------------------------------------------


def test_an_ignored_task_stores_nothing_and_is_acknowledged(shared):
    results = [shared.send("outcomes.ignore", None, kind=kind, acks_late=True) for kind in ("async", "plain")]
    for result in results:
        shared.shared_worker.wait_for_log(f"[{result.id}] ignored", PATIENCE_S)
    shared.settled()
    assert {result.state for result in results} == {"PENDING"}


@pytest.mark.one_broker
@both_kinds
def test_an_ignored_task_keeps_the_state_that_it_gave_itself(shared, kind):
    result = shared.send("outcomes.ignore", "SHELVED", kind=kind)
    shared.shared_worker.wait_for_log(f"[{result.id}] ignored", PATIENCE_S)
    assert (result.state, result.info) == ("SHELVED", {"by": "hand"})


def test_a_rejected_task_with_requeue_comes_back(shared):
    results = [shared.send("outcomes.reject", True, kind=kind) for kind in ("async", "plain")]
    for result in results:
        assert result.get(timeout=PATIENCE_S) == "second time"
        assert shared.notes(result.id) == ["redelivered False", "redelivered True"]


def test_a_rejected_task_without_requeue_does_not_come_back(shared):
    results = [shared.send("outcomes.reject", False, kind=kind) for kind in ("async", "plain")]
    for result in results:
        shared.wait_for_notes(result.id, 1)
    shared.settled()
    for result in results:
        assert shared.notes(result.id) == ["redelivered False"]


# -- messages that are no tasks ----------------------------------------------------------------------------------------


def publish(site, body, **options):
    """Puts a message of any form into the queue."""
    with site.app.producer_or_acquire() as producer:
        producer.publish(body, exchange="", routing_key=site.queue, **options)


def test_a_task_of_an_unknown_name_fails(shared, key):
    result = shared.app.send_task(f"conformance_app.{key}")
    until(lambda: result.state == "FAILURE", "the failure")
    assert type(result.result).__name__ == "NotRegistered"
    assert key in str(result.result)
    assert lives(shared)


def test_a_malformed_message_is_discarded(shared):
    """One that cannot be decoded, one that is no task, one whose task makes no sense, one whose form is not allowed."""
    text = {"content_type": "application/json", "content_encoding": "utf-8"}
    unknown = {"task": "conformance_app.outcomes.add", "id": "no mapping", "args": [], "kwargs": 7}
    malformed = {
        "Can't decode message body": ("{not JSON", text),
        "Received and deleted unknown message": ({"whoever": "sent this"}, {}),
        "Received invalid task message": (unknown, {}),
        "Refusing to deserialize": ("task: add", {"content_type": "application/x-yaml", "content_encoding": "utf-8"}),
    }
    counts = {says: shared.shared_worker.log.count(says) for says in malformed}
    for body, options in malformed.values():
        publish(shared, body, **options)
    for says, before in counts.items():
        shared.shared_worker.wait_for_log(says, PATIENCE_S, count=before + 1)
    shared.settled()
    assert lives(shared)

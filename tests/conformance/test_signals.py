"""The signals of tasks."""

import json
from collections import Counter

import pytest

from tests.conformance.conftest import PATIENCE_S, both_kinds, since, stops_tasks, until

pytestmark = pytest.mark.one_broker

NAME = {"async": "conformance_app.signals.act", "plain": "conformance_app.signals.plain_act"}


class Told(list):
    """What the receivers noted of one task."""

    @property
    def names(self):
        return [told["signal"] for told in self]

    def of(self, signal):
        (found,) = (told for told in self if told["signal"] == signal)
        return found


def told_of(site, task_id, last="task_postrun", count=1):
    """All signals of a task, once the last one has come and another task of the same worker is through."""

    def read():
        return Told(map(json.loads, site.notes(f"signals-{task_id}")))

    until(lambda: read().names.count(last) >= count, f"{last} of {task_id}")
    assert site.send("outcomes.add", 1, 2).get(timeout=PATIENCE_S) == 3
    return read()


def in_the_task(told, kind, task_id):
    """Sent by the task, while it is current and has its request."""
    return (told["sender"], told["current"], told["request"]) == (NAME[kind], task_id, task_id)


@both_kinds
def test_a_success_sends_its_signals_once_and_in_order(shared, kind):
    result = shared.send("signals.act", 1, kind=kind)
    told = told_of(shared, result.id)
    assert told.names == ["task_received", "task_prerun", "task_success", "task_postrun"]
    assert told[0] == {"signal": "task_received", "sender": "Consumer", "current": None, "request": None}
    assert all(in_the_task(each, kind, result.id) for each in told[1:])
    assert (told[1]["args"], told[1]["kwargs"], told[1]["same"]) == ([1], {}, True)
    assert told[2]["result"] == 2
    assert (told[3]["retval"], told[3]["state"]) == ("2", "SUCCESS")


@both_kinds
def test_a_failure_sends_its_signals_once_and_in_order(shared, kind):
    result = shared.send("signals.act", 1, "fail", kind=kind)
    told = told_of(shared, result.id)
    assert told.names == ["task_received", "task_prerun", "task_failure", "task_postrun"]
    assert all(in_the_task(each, kind, result.id) for each in told[1:])
    failure = told.of("task_failure")
    assert (failure["exception"], failure["args"]) == ("KeyError(1)", [1, "fail"])
    assert (failure["traceback"], failure["einfo"]) == (True, "Traceback")
    assert told.of("task_postrun")["state"] == "FAILURE"


@both_kinds
def test_a_retry_sends_its_signals_once_a_run(shared, kind):
    result = shared.send("signals.act", 1, "retry", kind=kind)
    assert result.get(timeout=PATIENCE_S) == 2
    told = told_of(shared, result.id, count=2)
    assert Counter(told.names) == {
        "task_received": 2,
        "task_prerun": 2,
        "before_task_publish": 1,
        "after_task_publish": 1,
        "task_retry": 1,
        "task_success": 1,
        "task_postrun": 2,
    }
    assert in_the_task(told.of("task_retry"), kind, result.id)
    assert (told.of("task_retry")["reason"], told.of("task_retry")["einfo"]) == ("ValueError(1)", "Traceback")
    assert [each["state"] for each in told if each["signal"] == "task_postrun"] in (
        ["RETRY", "SUCCESS"],
        ["SUCCESS", "RETRY"],  # the message of the next run is on its way before this one has ended
    )
    assert told.of("before_task_publish")["current"] == told.of("after_task_publish")["current"] == result.id


@since((5, 7), "a request in the signal for a lost worker")
@both_kinds
def test_a_body_that_exits_sends_the_signal_of_its_failure_once(shared, kind):
    result = shared.send("signals.act", 1, "exit", kind=kind)
    told = told_of(shared, result.id, last="task_failure")
    names = Counter(told.names)
    assert (names["task_received"], names["task_prerun"], names["task_failure"]) == (1, 1, 1)
    assert "task_success" not in names
    failure = told.of("task_failure")
    assert (failure["sender"], failure["request"]) == (NAME[kind], result.id)
    assert "WorkerLostError" in failure["exception"]


@both_kinds
def test_a_task_that_has_expired_sends_the_signal_of_its_revocation_alone(shared, kind):
    result = shared.send("signals.act", 1, kind=kind, expires=-1)
    told = told_of(shared, result.id, last="task_revoked")
    assert told.names == ["task_revoked"]
    revoked = told.of("task_revoked")
    assert (revoked["sender"], revoked["request"]) == (NAME[kind], result.id)
    assert (revoked["terminated"], revoked["expired"]) == (False, True)


@both_kinds
@stops_tasks
def test_a_task_that_is_terminated_sends_that_signal_once(shared, kind, key):
    result = shared.send("signals.wait", key, kind=kind)
    shared.wait_for_notes(key, 1)
    shared.wait_until_active(result)
    result.revoke(terminate=True)
    told = told_of(shared, result.id, last="task_revoked")
    shared.release(key)  # the thread of a plain task goes on
    revoked = told.of("task_revoked")
    assert revoked["request"] == result.id
    assert (revoked["terminated"], revoked["expired"]) == (True, False)
    assert not {"task_success", "task_failure", "task_retry"} & set(told.names)


@both_kinds
def test_a_body_that_publishes_sends_both_signals_once_while_it_is_current(shared, kind):
    result = shared.send("signals.publish", kind=kind)
    sent = result.get(timeout=PATIENCE_S)
    assert len(sent) == 3
    for task_id in sent:
        told = told_of(shared, task_id)
        for signal in ("before_task_publish", "after_task_publish"):
            publish = told.of(signal)
            assert (publish["sender"], publish["current"]) == (NAME["async"], result.id)
            assert publish["routing_key"] == shared.queue


@both_kinds
def test_an_error_outside_the_body_sends_its_signal_once_and_fails_the_task(shared, kind):
    """Here, a callback of a form that Celery does not know."""
    nonsense = {"task": "x", "args": [], "kwargs": {}, "options": {}, "subtask_type": "nonsense", "immutable": False}
    result = shared.send("signals.act", 1, kind=kind, link=nonsense)
    with pytest.raises(KeyError, match="nonsense"):
        result.get(timeout=PATIENCE_S)
    told = told_of(shared, result.id, last="task_internal_error")
    error = told.of("task_internal_error")
    assert (error["sender"], error["request"]) == (NAME[kind], result.id)
    assert (error["exception"], error["einfo"]) == ("KeyError('nonsense')", "Traceback")
    assert Counter(told.names)["task_success"] == 0


def test_a_task_of_an_unknown_name_sends_that_signal_alone(shared, key):
    result = shared.app.send_task(f"conformance_app.signals.{key}")
    told = told_of(shared, result.id, last="task_unknown")
    assert told == [
        {
            "signal": "task_unknown",
            "sender": "Consumer",
            "current": None,
            "request": None,
            "exc": "KeyError",
        }
    ]


def test_a_message_that_is_no_task_sends_the_signal_of_its_rejection_alone(shared, key):
    with shared.app.producer_or_acquire() as producer:
        producer.publish({"whoever": "sent this"}, exchange="", routing_key=shared.queue, headers={"marker": key})
    told = told_of(shared, key, last="task_rejected")
    assert told.names == ["task_rejected"]
    assert (told[0]["sender"], told[0]["exc"]) == ("Consumer", "NoneType")

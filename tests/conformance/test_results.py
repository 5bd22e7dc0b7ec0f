"""What callers see of a result."""

import datetime as dt
import threading

import pytest
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as ResultTimeoutError
from celery.result import ResultSet

from tests.conformance.conftest import OURS, PATIENCE_S, both_kinds, since, stops_tasks, until

MEGABYTE = 1_000_000


@pytest.mark.one_broker
@both_kinds
@pytest.mark.parametrize(
    "value",
    [None, False, 0, 0.1, "", "Grüße, 你好", [1, [2, {"three": None}]], {"a": {"b": [1.5, True]}}],
    ids=["None", "False", "0", "0.1", "empty", "text", "list", "dict"],
)
def test_a_value_comes_back_as_it_was(shared, kind, value):
    assert shared.send("results.echo", value, kind=kind).get(timeout=PATIENCE_S) == value


@both_kinds
def test_a_megabyte_goes_there_and_back(shared, kind):
    text = "é" * (MEGABYTE // 2)
    assert shared.send("results.echo", text, kind=kind).get(timeout=PATIENCE_S) == text


@pytest.mark.one_broker
@both_kinds
def test_a_success_is_seen_by_whoever_knows_its_id(shared, kind):
    sent = shared.send("results.echo", 7, kind=kind)
    assert sent.get(timeout=PATIENCE_S) == 7
    result = shared.app.AsyncResult(sent.id)
    assert result.get(timeout=PATIENCE_S) == 7
    assert (result.state, result.result, result.info, result.traceback) == ("SUCCESS", 7, 7, None)
    assert (result.ready(), result.successful(), result.failed()) == (True, True, False)
    age_s = (dt.datetime.now(dt.UTC) - result.date_done).total_seconds()
    assert 0 <= age_s < PATIENCE_S


@pytest.mark.one_broker
@both_kinds
def test_a_failure_is_seen_with_its_exception_and_the_cause(shared, kind):
    result = shared.send("results.fail", 7, kind=kind)
    error = result.get(timeout=PATIENCE_S, propagate=False)
    assert (type(error).__name__, error.args) == ("Lost", ("nobody home", 7))
    assert result.state == "FAILURE"
    assert type(result.info).__name__ == type(result.result).__name__ == "Lost"
    assert (result.ready(), result.successful(), result.failed()) == (True, False, True)
    assert "KeyError: 'the cause'" in result.traceback
    assert "was the direct cause" in result.traceback


@pytest.mark.one_broker
@both_kinds
def test_a_caller_who_waits_too_short_gets_the_value_later(shared, kind, key):
    result = shared.send("results.wait", key, kind=kind)
    with pytest.raises(ResultTimeoutError):
        result.get(timeout=0.1)
    assert (result.state, result.ready()) == ("PENDING", False)
    shared.release(key)
    assert result.get(timeout=PATIENCE_S) == "waited"


@pytest.mark.one_broker
@both_kinds
def test_a_task_that_tracks_its_start_is_seen_started_on_its_worker(shared, kind, key):
    result = shared.send("results.track", key, kind=kind)
    until(lambda: result.state == "STARTED", "the start")
    started = result.info
    shared.release(key)
    assert started == {"pid": result.get(timeout=PATIENCE_S), "hostname": shared.node}


@pytest.mark.one_broker
@both_kinds
def test_each_state_reaches_a_caller_who_waits(shared, key, kind):
    seen = []
    result = shared.send("results.report_steps", key, 5, kind=kind)
    consumer = shared.app.backend.result_consumer

    def on_message(meta):
        if meta["task_id"] == result.id:
            seen.append((meta["status"], meta["result"]))

    def release():
        until(lambda: consumer.on_message is on_message, "the caller to wait")
        shared.release(key)

    # What was there before somebody waits is told to nobody.
    releasing = threading.Thread(target=release)
    releasing.start()
    assert result.get(timeout=PATIENCE_S, on_message=on_message) == "done"
    releasing.join()
    assert seen == [*(("PROGRESS", {"step": step}) for step in range(5)), ("SUCCESS", "done")]


@pytest.mark.one_broker
@both_kinds
def test_a_set_of_results_comes_in_order(shared, kind):
    results = ResultSet([shared.send("results.echo", number, kind=kind) for number in range(20)], app=shared.app)
    assert results.get(timeout=PATIENCE_S) == list(range(20))
    assert results.completed_count() == 20


@pytest.mark.one_broker
@both_kinds
def test_a_forgotten_result_is_gone(shared, kind):
    result = shared.send("results.echo", 7, kind=kind)
    assert result.get(timeout=PATIENCE_S) == 7
    result.forget()
    assert shared.app.AsyncResult(result.id).state == "PENDING"


@since((5, 7), "ignoring as both the task and its caller say")
@pytest.mark.one_broker
@both_kinds
@pytest.mark.parametrize("outcome", ["success", "failure"])
@pytest.mark.parametrize("by", ["task", "caller"])
def test_a_result_that_is_ignored_is_not_stored(shared, kind, outcome, by):
    if by == "task":
        result = shared.send("results.keep_quiet", outcome, kind=kind)
    else:
        name = {"success": "results.echo", "failure": "results.fail"}[outcome]
        result = shared.send(name, 7, kind=kind, ignore_result=True)
    logged = "succeeded" if outcome == "success" else "raised unexpected"
    shared.shared_worker.wait_for_log(f"[{result.id}] {logged}", PATIENCE_S)
    assert shared.app.AsyncResult(result.id).state == "PENDING"


@since((5, 7), "ignoring as both the task and its caller say")
@pytest.mark.one_broker
@both_kinds
def test_errors_may_be_stored_even_where_results_are_ignored(shared, kind):
    success, failure = (shared.send("results.tell_errors", outcome, kind=kind) for outcome in ("success", "failure"))
    shared.shared_worker.wait_for_log(f"[{success.id}] succeeded", PATIENCE_S)
    until(lambda: failure.state == "FAILURE", "the failure")
    assert str(failure.result) == "quietly"
    assert success.state == "PENDING"


@since((5, 7), "the reason of a revoke at the caller")
@both_kinds
@stops_tasks
def test_a_running_task_that_is_revoked_with_terminate_raises_at_the_caller(shared, kind, key):
    result = shared.send("results.wait", key, kind=kind)
    shared.wait_for_notes(key, 1)
    shared.wait_until_active(result)
    result.revoke(terminate=True)
    # Prefork says now the one, now the other.
    with pytest.raises(TaskRevokedError, match="terminated" if shared.pool == OURS else r"terminated|revoked"):
        result.get(timeout=PATIENCE_S)
    shared.release(key)  # the thread of a plain task goes on
    assert result.state == "REVOKED"


@both_kinds
def test_a_task_that_is_revoked_while_it_waits_for_a_slot_raises_at_the_caller_and_never_starts(own, kind, key):
    with own.worker(concurrency=1) as worker:
        first = own.send("results.wait", key, kind=kind)
        own.wait_for_notes(key, 1)
        own.wait_until_active(first)
        second = own.send("results.wait", key, kind=kind)
        worker.wait_for_log(f"[{second.id}] received", PATIENCE_S)
        second.revoke()
        worker.wait_for_log(f"Tasks flagged as revoked: {second.id}", PATIENCE_S)
        own.release(key)
        with pytest.raises(TaskRevokedError, match="revoked"):
            second.get(timeout=PATIENCE_S)
        assert first.get(timeout=PATIENCE_S) == "waited"
        assert own.send("results.echo", 7, kind=kind).get(timeout=PATIENCE_S) == 7  # after what was before it
        assert (second.state, own.notes(key)) == ("REVOKED", [first.id])


@pytest.mark.one_broker
def test_an_extended_result_tells_what_was_called_where(own):
    with own.worker(config={"result_extended": True}):
        for kind in ("async", "plain"):
            signature = own.signature("results.echo", kind=kind, value=7)
            result = signature.apply_async()
            assert result.get(timeout=PATIENCE_S) == 7
            found = own.app.AsyncResult(result.id)
            assert (found.name, found.args, found.kwargs) == (signature.task, [], {"value": 7})
            assert (found.worker, found.retries, found.queue) == (own.node, 0, own.queue)


# -- from inside a body ------------------------------------------------------------------------------------------------


@pytest.mark.one_broker
@both_kinds
def test_a_body_looks_at_another_result(shared, kind):
    other = shared.send("results.echo", 7, kind=kind)
    assert other.get(timeout=PATIENCE_S) == 7
    assert shared.send("results.look_at", other.id, kind=kind).get(timeout=PATIENCE_S) == ["SUCCESS", 7]


@pytest.mark.one_broker
@both_kinds
def test_a_body_that_waits_for_another_task_is_told_not_to(shared, kind):
    with pytest.raises(RuntimeError, match="Never call result"):
        shared.send("results.wait_for_another", kind=kind).get(timeout=PATIENCE_S)


@pytest.mark.one_broker
@both_kinds
def test_a_body_that_knows_what_it_does_waits_for_another_task_in_a_thread(shared, kind):
    results = [shared.send("results.wait_for_another_all_the_same", kind=kind) for _ in range(2)]
    assert [result.get(timeout=PATIENCE_S) for result in results] == ["another"] * 2

"""Class-based tasks and their hooks."""

import json

import pytest

from tests.conformance.conftest import PATIENCE_S, both_kinds

pytestmark = pytest.mark.one_broker

OWN = "its own request"
HOW = pytest.mark.parametrize("how", ["counting", "counting_on", "decorated"], ids=["class", "subclass", "base"])
"""A task that is a class, one that inherits its body, and a function with a base."""


def hooks(site, result, count):
    return [json.loads(told) for told in site.wait_for_notes(result.id, count)]


@HOW
@both_kinds
def test_a_success_calls_its_hooks_with_its_value(shared, kind, how):
    result = shared.send(f"hooks.{how}", 1, kind=kind)
    assert result.get(timeout=PATIENCE_S) == 2
    assert hooks(shared, result, 3) == [
        ["before_start", [1], {}, OWN],
        ["on_success", [1], {}, 2, OWN],
        ["after_return", [1], {}, "SUCCESS", "2", OWN],
    ]


@HOW
@both_kinds
def test_a_failure_calls_its_hooks_with_its_exception(shared, kind, how):
    result = shared.send(f"hooks.{how}", 1, "fail", kind=kind)
    with pytest.raises(KeyError):
        result.get(timeout=PATIENCE_S)
    assert hooks(shared, result, 3) == [
        ["before_start", [1, "fail"], {}, OWN],
        ["on_failure", [1, "fail"], {}, "KeyError(1)", OWN],
        ["after_return", [1, "fail"], {}, "FAILURE", "KeyError(1)", OWN],
    ]


@HOW
@both_kinds
def test_a_retry_calls_its_hook_and_the_next_run_calls_the_others(shared, kind, how):
    result = shared.signature(f"hooks.{how}", 1, kind=kind, way="retry").apply_async()
    assert result.get(timeout=PATIENCE_S) == 2
    expected = [
        ["before_start", [1], {"way": "retry"}, OWN],
        ["on_retry", [1], {"way": "retry"}, "ValueError(1)", OWN],
        ["before_start", [1], {"way": "return"}, OWN],
        ["on_success", [1], {"way": "return"}, 2, OWN],
        ["after_return", [1], {"way": "return"}, "SUCCESS", "2", OWN],
    ]
    # The next run may begin before the hook of the last one is through.
    assert sorted(hooks(shared, result, 5), key=str) == sorted(expected, key=str)


@both_kinds
def test_an_ignored_task_calls_no_hook_of_an_outcome(shared, kind):
    result = shared.send("hooks.counting", 1, "ignore", kind=kind)
    shared.shared_worker.wait_for_log(f"[{result.id}] ignored", PATIENCE_S)
    assert shared.send("hooks.counting", 1, kind=kind).get(timeout=PATIENCE_S) == 2
    assert hooks(shared, result, 1) == [["before_start", [1, "ignore"], {}, OWN]]


@both_kinds
def test_a_rejected_task_calls_no_hook_of_an_outcome(shared, kind):
    result = shared.send("hooks.counting", 1, "reject", kind=kind, acks_late=True)
    shared.shared_worker.wait_for_log(f"[{result.id}] reject requeue=False", PATIENCE_S)
    assert shared.send("hooks.counting", 1, kind=kind).get(timeout=PATIENCE_S) == 2
    assert hooks(shared, result, 1) == [["before_start", [1, "reject"], {}, OWN]]


@both_kinds
def test_a_hook_that_refuses_before_the_start_fails_the_task_and_its_body_never_runs(shared, kind, key):
    with pytest.raises(PermissionError, match="not you"):
        shared.send("hooks.guarded", key, kind=kind).get(timeout=PATIENCE_S)
    assert shared.notes(key) == []


@both_kinds
def test_a_task_may_surround_the_call_of_its_body(shared, kind, key):
    assert shared.send("hooks.surrounded", 7, key, kind=kind).get(timeout=PATIENCE_S) == 70
    assert shared.notes(key) == ["before", "body", "after"]

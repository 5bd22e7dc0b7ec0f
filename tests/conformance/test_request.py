"""Whose request a body sees."""

import pytest

from tests.conformance.conftest import PATIENCE_S, both_kinds, since, until

pytestmark = pytest.mark.one_broker

PARTY = {"prefork": 8, "threads": 250, "legit_async": 250}
"""How many bodies are under way at once; processes are too dear for more."""


def all_at_once(site, name, kind="async"):
    """What each of many bodies returns that wait for one another, by the id of its task."""
    party = PARTY[site.pool]
    # Threads for plain tasks, and connections for all that store their results in one moment.
    config = {"legit_async_threads": party, "redis_max_connections": 2 * party}
    with site.worker(concurrency=party, config=config):
        results = [site.send(f"request.{name}", site.queue, party, kind=kind) for _ in range(party)]
        return {result.id: result.get(timeout=2 * PATIENCE_S) for result in results}


MANY = since((5, 7), "a client that finds hundreds of results that were there before it asked")


@MANY
@both_kinds
def test_each_of_many_bodies_at_once_sees_its_own_request_in_itself_and_its_children(own, kind):
    for task_id, seen in all_at_once(own, "who", kind).items():
        assert len(seen) == (9 if kind == "async" else 2)
        assert [place for place, ids in seen.items() if set(ids) != {task_id}] == []


@MANY
def test_each_of_many_bodies_at_once_sees_its_own_request_in_a_thread_that_it_asks(own):
    for task_id, seen in all_at_once(own, "who_in_a_thread").items():
        assert seen == {"thread": [task_id, task_id], "body after it": [task_id, task_id]}


def test_bodies_at_once_have_context_variables_of_their_own(shared, key):
    for result in [shared.send("request.keep_a_variable", key, 4) for _ in range(4)]:
        assert result.get(timeout=PATIENCE_S) == [None, result.id, result.id, result.id]


@both_kinds
def test_the_request_tells_how_the_task_was_sent(shared, kind, key):
    signature = shared.signature("request.describe", 1, kind=kind, b=2)
    result = signature.apply_async(
        headers={"own": key},
        priority=3,
        shadow="another name",
        time_limit=50,
        soft_time_limit=40,
        expires=3600,
        countdown=0.01,
    )
    found = result.get(timeout=PATIENCE_S)
    assert found.pop("origin").startswith("gen")
    assert found.pop("eta") < found.pop("expires")
    assert found == {
        "id": result.id,
        "task": signature.task,
        "args": [1],
        "kwargs": {"b": 2},
        "retries": 0,
        "root_id": result.id,
        "parent_id": None,
        "group": None,
        "is_eager": False,
        "called_directly": False,
        "hostname": shared.node,
        "timelimit": [50, 40],
        "correlation_id": result.id,
        "shadow": "another name",
        "argsrepr": "(1,)",
        "kwargsrepr": "{'b': 2}",
        "stamps": {},
        "stamped_headers": None,
        "own": key,
        "routing_key": shared.queue,
        "priority": 3,
        "redelivered": False,
    }


@pytest.mark.not_applicable(pool="threads", reason="asyncio enters no loop in a thread that runs one")
@pytest.mark.not_applicable(pool="prefork", reason="asyncio enters no loop in a thread that runs one")
def test_a_body_calls_tasks_of_both_kinds_as_functions_and_has_its_own_request_again(shared):
    result = shared.send("request.call_directly")
    called = [["inner", None, True], ["plain_inner", None, True]]
    assert result.get(timeout=PATIENCE_S) == [*called, [result.id, result.id]]


def test_a_plain_body_calls_tasks_of_both_kinds_as_functions_and_has_its_own_request_again(shared):
    result = shared.send("request.call_directly", kind="plain")
    called = [["inner", None, True], ["plain_inner", None, True]]
    assert result.get(timeout=PATIENCE_S) == [*called, [result.id, result.id]]


@pytest.mark.not_applicable(pool="threads", reason="asyncio enters no loop in a thread that runs one")
@pytest.mark.not_applicable(pool="prefork", reason="asyncio enters no loop in a thread that runs one")
def test_a_body_applies_tasks_of_both_kinds_where_it_is_and_has_its_own_request_again(shared):
    assert_applied(shared.send("request.apply_eagerly"))


def test_a_plain_body_applies_tasks_of_both_kinds_where_it_is_and_has_its_own_request_again(shared):
    assert_applied(shared.send("request.apply_eagerly", kind="plain"))


def assert_applied(result):
    *applied, own = result.get(timeout=PATIENCE_S)
    assert own == [result.id, result.id]
    assert [(state, name, directly) for _, state, (name, _, directly) in applied] == [
        ("SUCCESS", "inner", False),
        ("SUCCESS", "plain_inner", False),
    ]
    assert all(task_id == of_request != result.id for task_id, _, (_, of_request, _) in applied)


def test_a_body_awaits_the_body_of_another_task(shared):
    result = shared.send("request.await_another")
    (name, _, _), own = result.get(timeout=PATIENCE_S)
    assert (name, own) == ("inner", [result.id, result.id])


@both_kinds
def test_a_body_reports_its_progress(shared, kind, key):
    result = shared.send("request.report_progress", key, kind=kind)
    for step in (1, 2):
        until(lambda done=step: result.info == {"done": done}, f"step {step}")
        assert result.state == "PROGRESS"
        if shared.redis.incr(f"met:{key} {step}") == 2:
            shared.redis.rpush(f"leave:{key} {step}", 1, 2)
    assert result.get(timeout=PATIENCE_S) == "done"

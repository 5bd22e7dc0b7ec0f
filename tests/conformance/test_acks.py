"""When messages are acknowledged."""

import pytest
import redis
from celery import version_info
from celery.exceptions import TimeLimitExceeded
from kombu import Connection, Exchange, Queue

from tests.conformance.conftest import PATIENCE_S, both_kinds, until

LIMIT_S = 0.3
ONCE = ["redelivered False"]
TWICE = ["redelivered False", "redelivered True"]

no_limits = pytest.mark.not_applicable(pool="threads", reason="Celery's threads pool has no time limits")


@pytest.fixture(autouse=True)
def _left_running(notes_server, key):
    """What a test leaves running in the shared worker ends with it."""
    yield
    with redis.Redis.from_url(notes_server.url()) as client:
        client.set(f"go:{key}", 1)


# -- early and late ----------------------------------------------------------------------------------------------------


@both_kinds
def test_an_early_ack_comes_before_the_body(shared, key, kind):
    result = shared.send("acks.wait", key, kind=kind)
    shared.wait_for_notes(f"{key}:started", 1)
    shared.settled()
    assert not result.ready()
    shared.release(key)
    assert result.get(timeout=PATIENCE_S) == "waited"


@both_kinds
def test_a_late_ack_follows_the_body_and_its_stored_result(shared, key, kind):
    result = shared.send("acks.wait_late", key, kind=kind)
    shared.wait_for_notes(f"{key}:started", 1)
    assert shared.unacked == 1
    shared.release(key)
    until(lambda: shared.unacked == 0, "the ack")
    assert result.state == "SUCCESS"
    assert shared.ready == 0


@pytest.mark.one_broker
def test_acks_are_late_where_the_settings_say_so(own, key):
    with own.worker(config={"task_acks_late": True}):
        results = [own.send("acks.wait", key, kind=kind) for kind in ("async", "plain")]
        own.wait_for_notes(f"{key}:started", 2)
        assert own.unacked == 2
        own.release(key)
        assert {result.get(timeout=PATIENCE_S) for result in results} == {"waited"}
        own.settled()


# -- failures ----------------------------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("name", ["fail", "fail_unacknowledged"])
def test_a_failed_task_does_not_come_back(shared, key, kind, name):
    """Acknowledged, or rejected without requeue where `acks_on_failure_or_timeout` is off."""
    result = shared.send(f"acks.{name}", key, "fail", kind=kind)
    with pytest.raises(KeyError):
        result.get(timeout=PATIENCE_S)
    shared.settled()
    assert shared.notes(result.id) == ONCE


@both_kinds
def test_an_unacknowledged_failure_is_a_dead_letter(own, key, kind):
    if own.broker.redis:
        pytest.skip("Redis and Valkey have no dead letters")
    dead = f"{own.queue}-dead"
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    own.app.conf.task_queues = [Queue(own.queue, Exchange(own.queue), routing_key=own.queue, queue_arguments=arguments)]
    queue = {"exchange": own.queue, "routing_key": own.queue, "queue_arguments": arguments}
    with Connection(own.broker.url) as connection:
        Queue(dead, channel=connection).declare()
    with own.worker(config={"task_queues": {own.queue: queue}}):
        for name in ("fail", "fail_unacknowledged"):
            with pytest.raises(KeyError):
                own.send(f"acks.{name}", key, "fail", kind=kind).get(timeout=PATIENCE_S)
        own.settled()
    with Connection(own.broker.url) as connection:
        letters = Queue(dead, channel=connection)
        letter = letters.get()
        assert letter.headers["task"].endswith("fail_unacknowledged")
        letter.ack()
        assert letters.get() is None
        letters.delete()


@no_limits
@both_kinds
def test_a_task_that_exceeds_its_hard_limit_is_acknowledged(shared, key, kind):
    result = shared.send("acks.fail", key, "wait", kind=kind, time_limit=LIMIT_S)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE_S)
    shared.settled()
    assert shared.notes(result.id) == ONCE


NEW = pytest.mark.skipif(version_info[:2] < (5, 7), reason="a setting of Celery 5.7")


@no_limits
@both_kinds
@pytest.mark.parametrize("name", ["fail_unacknowledged", pytest.param("fail_unacknowledged_on_timeout", marks=NEW)])
def test_a_task_that_exceeds_its_hard_limit_comes_back_where_timeouts_are_not_acknowledged(shared, key, kind, name):
    result = shared.send(f"acks.{name}", key, "wait", kind=kind, time_limit=LIMIT_S)
    assert shared.wait_for_notes(result.id, 2) == TWICE
    # A result object keeps the first outcome that it sees, which is the failure.
    until(lambda: shared.app.AsyncResult(result.id).state == "SUCCESS", "the second time")
    shared.settled()
    assert shared.notes(result.id) == TWICE


# -- workers that are lost ---------------------------------------------------------------------------------------------


@both_kinds
def test_a_body_that_ends_its_worker_is_acknowledged(shared, key, kind):
    """Or its pool's child, or would where there are none; else it would do so again and again."""
    result = shared.send("acks.fail", key, "exit", kind=kind)
    until(lambda: result.state == "FAILURE", "the failure")
    shared.settled()
    assert shared.notes(result.id) == ONCE


@both_kinds
def test_a_body_that_ends_its_worker_comes_back_where_that_is_wished(shared, key, kind):
    result = shared.send("acks.fail_rejected_when_lost", key, "exit", kind=kind)
    assert result.get(timeout=PATIENCE_S) == "second time"
    shared.settled()
    assert shared.notes(result.id) == TWICE


def test_late_tasks_of_a_killed_worker_come_back(own, key):
    """At once where the broker sees the connection end, else within the visibility timeout, or the worker's lease."""
    options = {"visibility_timeout": 1, "unacked_restore_interval": 1, "unacked_restore_throttle": 1, "lease_s": 1}
    config = {"broker_transport_options": options} if own.broker.redis else {}
    with own.worker(concurrency=2, config=config) as worker:
        results = [own.send("acks.wait_late", key, kind=kind) for kind in ("async", "plain")]
        own.wait_for_notes(f"{key}:started", 2)
        worker.kill()
    if own.broker.redis:
        assert own.unacked == 2
        # Before 5.7 kombu looks for what is overdue at a worker's start, and then every 100 s.
        until(lambda: own.broker.held_longer_than(1), "the visibility timeout to be over")
    else:
        until(lambda: own.ready == 2, "the messages to be back")
    own.release(key)
    with own.worker(concurrency=2, config=config):
        # Asked for, and not waited for: Celery 5.5's client may miss what came between its look and its wait.
        until(lambda: {result.state for result in results} == {"SUCCESS"}, "both results")
        own.settled()
    assert len(own.notes(f"{key}:started")) == 4


def test_early_tasks_of_a_killed_worker_are_lost(own, key):
    with own.worker(concurrency=2) as worker:
        for kind in ("async", "plain"):
            own.send("acks.wait", key, kind=kind)
        own.wait_for_notes(f"{key}:started", 2)
        own.settled()
        worker.kill()
    assert own.counts == (0, 0)

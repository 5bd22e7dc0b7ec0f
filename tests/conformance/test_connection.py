"""A broker that goes away and comes back"""

import signal

import pytest

from tests.conformance.conftest import PATIENCE_S, both_kinds, kills_children, since, stops_tasks

LOST = {"worker_cancel_long_running_tasks_on_connection_loss": True}
KEPT = {"worker_cancel_long_running_tasks_on_connection_loss": False}


@both_kinds
def test_work_goes_on_after_the_broker_has_come_back(own_broker, kind):
    with own_broker.worker(config=LOST) as worker:
        assert own_broker.send("outcomes.add", 1, 2, kind=kind).get(timeout=PATIENCE_S) == 3
        own_broker.broker.restart()
        worker.wait_for_log("Connected to", PATIENCE_S, count=2)
        assert own_broker.send("outcomes.add", 2, 3, kind=kind).get(timeout=PATIENCE_S) == 5


def test_running_tasks_are_cancelled_where_that_is_wished(own_broker, key):
    with own_broker.worker(concurrency=1, config=LOST) as worker:
        own_broker.send("life_cycle.wait", key)
        own_broker.wait_for_notes(f"{key}:started", 1)
        own_broker.broker.restart()
        worker.wait_for_log("Connected to", PATIENCE_S, count=2)
        # The only slot is free.
        after = own_broker.send("outcomes.add", 1, 2)
        if own_broker.broker.durable:  # it is durable: the cancelled task is there again, and takes the slot
            own_broker.wait_for_notes(f"{key}:started", 2)
            own_broker.release(key)
        assert after.get(timeout=PATIENCE_S) == 3
    finished = 1 if own_broker.broker.durable else 0
    assert len(own_broker.notes(f"{key}:finished")) == finished


@kills_children
@stops_tasks
def test_the_thread_of_a_plain_task_is_left_behind_where_running_tasks_are_cancelled(own_broker, key):
    with own_broker.worker(concurrency=1, config=LOST | {"legit_async_threads": 1}) as worker:
        own_broker.send("life_cycle.wait", key, kind="plain")
        own_broker.wait_for_notes(f"{key}:started", 1)
        own_broker.broker.restart()
        worker.wait_for_log("Connected to", PATIENCE_S, count=2)
        # The only slot is free, and has a thread.
        if own_broker.broker.durable:  # the cancelled task is there again
            own_broker.wait_for_notes(f"{key}:started", 2)
        else:
            assert own_broker.send("outcomes.add", 1, 2, kind="plain").get(timeout=PATIENCE_S) == 3
        own_broker.release(key)
        own_broker.wait_for_notes(f"{key}:finished", 2 if own_broker.broker.durable else 1)


@both_kinds
def test_running_tasks_go_on_where_that_is_wished_and_keep_their_slots(own_broker, key, kind):
    with own_broker.worker(concurrency=1, config=KEPT) as worker:
        first = own_broker.send("life_cycle.wait", key, kind=kind)
        own_broker.wait_for_notes(f"{key}:started", 1)
        own_broker.broker.restart()
        worker.wait_for_log("Connected to", PATIENCE_S, count=2)
        second = own_broker.send("life_cycle.wait", key, kind=kind)
        if own_broker.broker.durable:  # it is durable, and hands out the first one again
            worker.wait_for_log(f"[{first.id}] received", PATIENCE_S, count=2)
        else:
            worker.wait_for_log(f"[{second.id}] received", PATIENCE_S)
        assert len(own_broker.ask("active")) == 1
        assert len(own_broker.notes(f"{key}:started")) == 1
        own_broker.release(key)
        assert second.get(timeout=PATIENCE_S) == "waited"
        assert own_broker.notes(f"{key}:finished")[0] == first.id


def test_a_worker_stops_warm_while_the_broker_is_away(own_broker):
    with own_broker.worker(config=LOST) as worker:
        own_broker.broker.stop()
        worker.wait_for_log("Trying again", PATIENCE_S)
        assert worker.stop(PATIENCE_S) == 0


@both_kinds
def test_what_runs_in_a_warm_shutdown_goes_on_where_the_broker_is_lost(own_broker, key, kind):
    """Its ack fails; that ends neither the other tasks nor the shutdown."""
    with own_broker.worker(config=LOST) as worker:
        for number in range(2):
            own_broker.send("life_cycle.wait", f"{key}{number}", kind=kind)
            own_broker.wait_for_notes(f"{key}{number}:started", 1)
        worker.signal(signal.SIGTERM)
        worker.wait_for_log("Warm shutdown", PATIENCE_S)
        own_broker.broker.stop()
        for number in range(2):
            own_broker.release(f"{key}{number}")
            own_broker.wait_for_notes(f"{key}{number}:finished", 1)
        assert worker.wait(PATIENCE_S) == 0


@since((5, 6), "heartbeats while prefork's warm shutdown waits")
def test_a_warm_shutdown_may_outlast_the_heartbeats_of_its_connection(own, key):
    """A server that hears nothing for two of them closes the connection, and hands out again what was done."""
    if not own.broker.durable:
        pytest.skip("Redis and Valkey have no heartbeats")
    heartbeat_s = 1
    with own.worker(config={"broker_heartbeat": heartbeat_s}) as worker:
        own.send("life_cycle.wait", key)
        own.wait_for_notes(f"{key}:started", 1)
        worker.signal(signal.SIGTERM)
        worker.wait_for_log("Warm shutdown", PATIENCE_S)
        assert worker.wait(6 * heartbeat_s) is None
        own.release(key)
        assert worker.wait(PATIENCE_S) == 0
    assert own.counts == (0, 0)


@pytest.mark.one_broker
def test_a_broker_that_is_away_at_the_start_is_waited_for(own_broker):
    own_broker.broker.stop()
    worker = own_broker.worker(config=LOST)
    worker.launch()
    try:
        worker.wait_for_log("Cannot connect to", PATIENCE_S)
        own_broker.broker.start()
        worker.wait_for_log(" ready.", PATIENCE_S)
        assert own_broker.send("outcomes.add", 1, 2).get(timeout=PATIENCE_S) == 3
    finally:
        worker.kill()

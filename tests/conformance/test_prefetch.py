"""How many messages a worker takes."""

import pytest

from tests.conformance.conftest import PATIENCE_S, since, until

CONCURRENCY = 2
SENT = 10


def send(site, key, name="wait_late"):
    """`async def` and plain tasks in turn."""
    return [site.send(f"prefetch.{name}", key, number, kind=("async", "plain")[number % 2]) for number in range(SENT)]


def finish(site, key, results):
    """Lets them go on, and everything is done once."""
    site.release(key)
    assert [result.get(timeout=PATIENCE_S) for result in results] == list(range(SENT))
    site.settled()
    assert sorted(map(int, site.notes(f"{key}:started"))) == list(range(SENT))


def takes(site, held):
    """Returns once the worker holds as many messages, the others wait, and its slots are taken."""
    until(lambda: site.unacked == held, f"{held} messages to be held")


@pytest.mark.parametrize("multiplier", [1, 3])
def test_a_worker_takes_its_slots_times_the_multiplier(own, key, multiplier):
    with own.worker(concurrency=CONCURRENCY, config={"worker_prefetch_multiplier": multiplier}):
        results = send(own, key)
        takes(own, CONCURRENCY * multiplier)
        own.wait_for_notes(f"{key}:started", CONCURRENCY)
        assert own.ask("stats")["prefetch_count"] == CONCURRENCY * multiplier
        # The answer came after whatever else the worker could have taken.
        assert own.counts == (SENT - CONCURRENCY * multiplier, CONCURRENCY * multiplier)
        assert len(own.notes(f"{key}:started")) == CONCURRENCY
        finish(own, key, results)


@pytest.mark.one_broker
def test_what_was_acknowledged_early_makes_room_for_as_many(own, key):
    with own.worker(concurrency=CONCURRENCY):
        results = send(own, key, "wait")
        own.wait_for_notes(f"{key}:started", CONCURRENCY)
        takes(own, CONCURRENCY)
        assert own.ready == SENT - 2 * CONCURRENCY
        finish(own, key, results)


def test_a_worker_without_a_multiplier_takes_all(own, key):
    with own.worker(concurrency=CONCURRENCY, config={"worker_prefetch_multiplier": 0}):
        results = send(own, key)
        takes(own, SENT)
        assert own.ready == 0
        assert len(own.wait_for_notes(f"{key}:started", CONCURRENCY)) == CONCURRENCY
        finish(own, key, results)


@pytest.mark.one_broker
def test_what_waits_for_a_slot_starts_in_the_order_in_which_it_came(own, key):
    with own.worker(concurrency=1, config={"worker_prefetch_multiplier": SENT}):
        finish(own, key, send(own, key))
        assert own.notes(f"{key}:started") == [str(number) for number in range(SENT)]


@since((5, 6), "worker_disable_prefetch")
@pytest.mark.one_broker
@pytest.mark.parametrize("name", ["wait", "wait_late"])
def test_a_worker_that_must_not_prefetch_takes_what_it_can_start(own, key, name):
    """Whatever the multiplier; early and late acks."""
    if own.broker.durable:
        pytest.skip("Celery has the setting for Redis and Valkey alone")
    config = {"worker_disable_prefetch": True, "worker_prefetch_multiplier": 4}
    with own.worker(concurrency=CONCURRENCY, config=config):
        results = send(own, key, name)
        own.wait_for_notes(f"{key}:started", CONCURRENCY)
        own.ask("ping")
        assert own.counts == (SENT - CONCURRENCY, CONCURRENCY if name == "wait_late" else 0)
        finish(own, key, results)


def test_a_worker_takes_more_when_its_pool_grows_and_less_when_it_shrinks(own, key):
    with own.worker(concurrency=1, config={"worker_prefetch_multiplier": 2}):
        results = send(own, key)
        takes(own, 2)
        assert "ok" in own.command("pool_grow", n=2)
        takes(own, 6)
        own.wait_for_notes(f"{key}:started", 3)
        assert "ok" in own.command("pool_shrink", n=1)
        until(lambda: own.ask("stats")["prefetch_count"] == 4, "the lower count")
        finish(own, key, results)

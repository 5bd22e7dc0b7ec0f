"""How a worker's shutdown waits for this pool."""

import logging

import pytest
from celery import Celery
from celery.worker import state
from kombu.asynchronous import Hub
from kombu.asynchronous.timer import Timer

from legit_embedding.pool.controller import adopt, allow_reentry, cancel_requests, serve_acks_and_timers
from legit_embedding.pool.legit_async import TaskPool


class Pool:
    def __init__(self):
        self.waits = []

    def wait_until_idle(self, timeout_s):
        self.waits.append(timeout_s)


class Consumer:
    def __init__(self):
        self.cancelled = 0

    def cancel_active_requests(self):
        self.cancelled += 1


@pytest.fixture
def worker(monkeypatch):
    """A worker as Celery has it when `worker_init` is sent, with its pool and consumer added later."""
    monkeypatch.setattr(state, "active_requests", set())
    monkeypatch.setattr(state, "should_terminate", None)
    app = Celery("controller", broker="memory://", set_as_current=False)
    app.conf.worker_soft_shutdown_timeout = 7.0
    found = Worker(app)
    adopt(found)
    found.pool, found.consumer = Pool(), Consumer()
    yield found
    app.close()


class Worker:
    """Celery's `WorkController`, as far as the pool knows it."""

    def __init__(self, app, pool_cls=TaskPool):
        self.app, self.pool_cls = app, pool_cls
        self.pool = self.consumer = None

    def wait_for_soft_shutdown(self):
        raise AssertionError("Celery's own sleeps")


def test_a_soft_shutdown_waits_for_the_pool_with_the_timeout_as_its_bound(worker, caplog):
    state.active_requests.add("request")
    worker.wait_for_soft_shutdown()
    assert worker.pool.waits == [7.0]
    assert "Initiating Soft Shutdown, terminating in 7.0 seconds" in caplog.text


def test_an_idle_worker_does_not_wait(worker, caplog):
    caplog.set_level(logging.INFO)
    worker.wait_for_soft_shutdown()
    assert (worker.pool.waits, caplog.text) == ([], "")


def test_an_idle_worker_that_is_told_to_wait_asks_the_pool_which_knows_that_nothing_runs(worker):
    worker.app.conf.worker_enable_soft_shutdown_on_idle = True
    worker.wait_for_soft_shutdown()
    assert worker.pool.waits == [7.0]


def test_without_a_timeout_there_is_no_soft_shutdown(worker):
    worker.app.conf.worker_soft_shutdown_timeout = 0.0
    state.active_requests.add("request")
    worker.wait_for_soft_shutdown()
    assert worker.pool.waits == []


def test_a_signal_before_there_is_a_pool_waits_for_nothing(worker):
    worker.pool = None
    worker.app.conf.worker_enable_soft_shutdown_on_idle = True
    worker.wait_for_soft_shutdown()


def test_a_worker_with_another_pool_is_left_alone():
    worker = Worker(Celery(set_as_current=False), pool_cls="solo")
    adopt(worker)
    with pytest.raises(AssertionError, match="sleeps"):
        worker.wait_for_soft_shutdown()


def test_requests_are_cancelled_by_the_consumer_of_the_pools_own_worker(worker):
    other = Worker(worker.app)
    adopt(other)
    other.pool, other.consumer = Pool(), Consumer()
    cancel_requests(worker.pool)
    assert (worker.consumer.cancelled, other.consumer.cancelled) == (1, 0)


def test_without_a_worker_there_is_nothing_to_cancel():
    cancel_requests(Pool())


# -- a hub that no longer runs -----------------------------------------------------------------------------------------


class Message:
    """One of kombu's, as far as its ack goes."""

    def __init__(self):
        self.settled = []

    def ack_log_error(self, *_):
        self.settled.append("ack")

    def reject_log_error(self, *_):
        self.settled.append("reject")


@pytest.fixture
def hub():
    own = Hub()
    yield own
    own.close()


def test_acks_and_rejects_that_wait_on_the_hub_are_made(hub):
    message = Message()
    hub.call_soon(message.ack_log_error)
    hub.call_soon(message.reject_log_error)
    serve_acks_and_timers(hub)
    assert sorted(message.settled) == ["ack", "reject"]


def test_everything_else_waits_on_for_the_hub(hub):
    called = []
    hub.call_soon(called.append, "later")
    serve_acks_and_timers(hub)
    assert called == []
    hub.run_once()
    assert called == ["later"]


def test_what_stands_there_as_it_is_waits_on_too(hub):
    """As Celery before 5.7 queues the sending of its events."""
    message, called = Message(), []

    def send_events():
        called.append("sent")

    hub._ready.add(send_events)
    hub.call_soon(message.ack_log_error)
    serve_acks_and_timers(hub)
    assert (message.settled, called) == (["ack"], [])
    hub.run_once()
    assert called == ["sent"]


def test_timers_that_are_due_are_fired_heartbeats_among_them(hub):
    fired = []
    hub.timer = Timer()
    hub.timer.call_after(0, fired.append, ("heartbeat",))
    hub.timer.call_after(1000, fired.append, ("later",))
    serve_acks_and_timers(hub)
    assert fired == ["heartbeat"]


def test_an_ack_that_fails_keeps_neither_the_others_nor_the_tasks_that_still_run(hub, caplog):
    """The connection is gone: kombu raises it again from an ack that it has logged."""
    broken, message = Message(), Message()

    def ack_log_error():
        raise BrokenPipeError

    hub.call_soon(ack_log_error)
    hub.call_soon(broken.ack_log_error)
    hub.call_soon(message.ack_log_error)
    serve_acks_and_timers(hub)
    assert (broken.settled, message.settled) == (["ack"], ["ack"])
    assert "an ack failed" in caplog.text


def test_a_timer_that_fails_is_logged(hub, caplog):
    hub.timer = Timer()

    def heartbeat():
        raise MemoryError

    hub.timer.call_after(0, heartbeat)
    serve_acks_and_timers(hub)
    assert "a timer failed" in caplog.text


def test_a_signals_handler_can_ack_where_it_has_interrupted_an_ack(hub):
    allow_reentry(hub)
    lock = hub._ready_lock
    message = Message()
    with hub._ready_lock:
        hub.call_soon(message.ack_log_error)
        serve_acks_and_timers(hub)
    assert message.settled == ["ack"]
    allow_reentry(hub)
    assert hub._ready_lock is lock

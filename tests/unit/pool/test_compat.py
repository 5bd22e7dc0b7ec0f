"""What is said of the installed Celery, held against Celery itself. `make test-celery` does so on each version."""

from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from celery import Celery, signals
from celery.apps import worker as celery_worker
from celery.exceptions import TimeLimitExceeded
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu import Message
from kombu.serialization import dumps

from legit_embedding.pool import compat
from legit_embedding.pool.job import HARD, Job
from legit_embedding.pool.outcomes import callback_of


@pytest.fixture(autouse=True)
def _no_shutdown(monkeypatch):
    monkeypatch.setattr(state, "should_terminate", None)


def test_the_installed_celery_is_one_that_the_pool_knows():
    assert compat.CELERY in {(5, 5), (5, 6), (5, 7)}


# -- cold shutdown -----------------------------------------------------------------------------------------------------


class ShuttingDown:
    """A worker as far as Celery's own handler of SIGQUIT needs one; notes what was said of the shutdown, and when."""

    def __init__(self, announce):
        self.seen = []
        self.wait_for_soft_shutdown = announce
        self.consumer = self
        self.pool = SimpleNamespace(stop=lambda: self._see("stop"))
        self.task_consumer = self.connection = None

    def cancel_active_requests(self):
        self._see("cancel")

    cancel_all_unacked_requests = cancel_active_requests

    def _see(self, step):
        self.seen.append((step, state.should_terminate))


@pytest.fixture
def cold_shutdown(monkeypatch):
    """Celery's handler, without the handlers that it would install and what it says to the terminal."""
    monkeypatch.setattr(celery_worker, "install_worker_term_hard_handler", lambda *_, **__: None)
    monkeypatch.setattr(celery_worker, "safe_say", lambda *_: None)
    return celery_worker.on_cold_shutdown


def test_a_cold_shutdown_is_known_for_one_when_the_pool_is_stopped(cold_shutdown):
    worker = ShuttingDown(compat.announce_cold_shutdown)
    cold_shutdown(worker)
    assert worker.seen[-1] == ("stop", True)


def test_a_cold_shutdown_is_not_announced_to_a_celery_that_reads_it_while_it_cancels(cold_shutdown):
    worker = ShuttingDown(compat.announce_cold_shutdown)
    cold_shutdown(worker)
    assert worker.seen[0] == ("cancel", None if compat.SAYS_COLD_ITSELF else True)


def test_celery_says_by_itself_what_it_is_said_to_say(cold_shutdown):
    worker = ShuttingDown(lambda: None)
    cold_shutdown(worker)
    assert worker.seen[-1] == ("stop", True if compat.SAYS_COLD_ITSELF else None)


class Running:
    """A request that runs, as far as Celery's consumer looks at it to cancel it."""

    def __init__(self, *, acknowledged):
        self.id = "running"
        self.task = SimpleNamespace(acks_late=True)
        self.acknowledged = acknowledged
        self.cancelled_on = None

    def cancel(self, pool, **_):
        self.cancelled_on = pool


class BareConsumer(Consumer):
    """Celery's consumer, of which nothing but the pool is there."""

    def __init__(self, pool):
        self.pool = pool


def test_running_requests_are_cancelled_unless_they_are_acknowledged(monkeypatch):
    pool = object()
    running, acknowledged = Running(acknowledged=False), Running(acknowledged=True)
    monkeypatch.setattr("celery.worker.consumer.consumer.active_requests", [running, acknowledged])
    compat.cancel_requests(BareConsumer(pool))
    assert running.cancelled_on is pool
    assert acknowledged.cancelled_on is None


# -- hard time limits --------------------------------------------------------------------------------------------------


@pytest.fixture
def failures():
    """The exceptions that the signal `task_failure` told of."""
    told = []

    def note(exception=None, **_):
        told.append(exception)

    signals.task_failure.connect(note)
    yield told
    signals.task_failure.disconnect(note)


class Received:
    """The request of a late-acknowledging task, as a worker has it; notes what becomes of its message."""

    def __init__(self, *, acks):
        app = Celery("compat", broker="memory://", backend="cache+memory://", set_as_current=False)
        app.task(self._body, name="task", acks_late=True, acks_on_failure_or_timeout=acks, shared=False)
        app.finalize()
        sent = app.amqp.as_task_v2("id", "task", (), {})
        content_type, content_encoding, body = dumps(sent.body, "json")
        message = Message(
            body=body, content_type=content_type, content_encoding=content_encoding, headers=sent.headers,
            properties=sent.properties, delivery_info={"redelivered": False},
        )  # fmt: skip
        self.app = app
        self.fate = []
        self.request = Request(
            message, app=app, task=app.tasks["task"], body=body, on_ack=lambda *_: self.fate.append("acknowledged"),
            on_reject=lambda _logger, _errors, requeue: self.fate.append("requeued" if requeue else "rejected"),
        )  # fmt: skip

    @staticmethod
    def _body():
        pass

    def exceed(self):
        """What the pool does once the task is beyond its hard limit."""
        job = Job(
            id=1, target=None, args=(), kwargs={}, callback=self.request.on_success,
            error_callback=self.request.on_failure, timeout_callback=self.request.on_timeout, soft_limit_s=None,
            hard_limit_s=0.5, interrupt=None, reason=HARD,
        )  # fmt: skip
        callback, args = callback_of(job, ok=False, result=None)
        callback(*args)

    @property
    def result(self):
        return self.app.AsyncResult("id").result


@pytest.fixture
def received():
    """Makes such a request."""
    with ExitStack() as stack:

        def make(*, acks):
            found = Received(acks=acks)
            stack.callback(found.app.close)
            return found

        yield make


def test_a_hard_limit_is_a_failure_told_once(received, failures):
    """Stored, told by `task_failure`, and acknowledged: on each version, as on Celery's prefork pool."""
    late = received(acks=True)
    late.exceed()
    assert [type(failure) for failure in failures] == [TimeLimitExceeded]
    assert isinstance(late.result, TimeLimitExceeded)
    assert late.fate == ["acknowledged"]


def test_a_message_that_a_hard_limit_does_not_acknowledge_goes_back(received):
    """Otherwise it would stay with the worker until its end, and count against its prefetch."""
    late = received(acks=False)
    late.exceed()
    assert late.fate == ["requeued"]


@pytest.mark.parametrize("acks", [True, False])
def test_celerys_own_timeout_callback_tells_all_where_it_is_said_to(received, failures, acks):
    late = received(acks=acks)
    late.request.on_timeout(soft=False, timeout=0.5)
    told = compat.TIMEOUT_CALLBACK_TELLS_ALL
    assert len(failures) == (1 if told else 0)
    assert ("requeued" in late.fate) == (told and not acks)

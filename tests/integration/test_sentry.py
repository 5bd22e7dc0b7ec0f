"""Sentry's SDK on an app (`sentry_app.py`) in the pool: one report a failure, whole, and of its own task alone."""

import signal
import uuid
from pathlib import Path

import pytest
from celery import Celery

from legit_embedding.testing.ingest import IngestServer
from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess

HERE = Path(__file__).parent
PATIENCE_S = 30
STOP_BOUND_S = 30
"""The SDK itself gives up after 2 s; a stop that waits for its server would not end at all."""

PARTY, PLAIN_PARTY = 100, 8
FAILING = ["fail", "plain_fail", "fail_in_child", "fail_in_thread", "fail_after_retries", "fail_as_expected"]
ENDING = ["ignore", "reject", "exceed_soft_limit", "exceed_hard_limit", "leave", "succeed"]


class Client:
    """A producer, and what the worker reported."""

    def __init__(self, url, ingest):
        self.url, self.ingest = url, ingest
        self.app = Celery("client", broker=url, backend=url, set_as_current=False)

    def send(self, name, *args):
        return self.app.send_task(f"sentry_app.{name}", args=args)

    def worker(self, dsn=None):
        return WorkerProcess(
            "sentry_app",
            args=["-P", "legit_async", "-c", str(2 * PARTY), "-l", "INFO", "--without-gossip", "--without-mingle"],
            env={"SENTRY_APP_URL": self.url, "SENTRY_APP_DSN": dsn or self.ingest.dsn},
            cwd=HERE,
        )

    def events_of(self, result):
        return [event for event in self.ingest.events if event.get("tags", {}).get("celery_task_id") == result.id]

    def transactions_of(self, result):
        """One for each time that the task ran."""
        return [
            transaction
            for transaction in self.ingest.transactions
            if transaction["tags"].get("celery_task_id") == result.id
        ]

    def close(self):
        # Results that are collected later would unsubscribe at a server that is gone by then.
        self.app.backend.remove_pending_result = lambda result: result
        self.app.backend.result_consumer.stop()
        self.app.backend.client.close()
        self.app.close()


def own_frames(event):
    """The functions of the app itself in an event's innermost exception, outermost first."""
    frames = event["exception"]["values"][-1]["stacktrace"]["frames"]
    return [frame["function"] for frame in frames if frame.get("in_app")]


def mechanism(event):
    return event["exception"]["values"][-1]["mechanism"]["type"]


@pytest.fixture(scope="module")
def server():
    with EmbeddedServer() as own:
        yield own


@pytest.fixture
def client(server):
    with IngestServer() as ingest:
        own = Client(server.url(1), ingest)
        try:
            yield own
        finally:
            own.close()


@pytest.fixture(scope="module")
def ran(server):
    """A client after a worker ran one task of each kind and stopped; its `results` by name."""
    with IngestServer() as ingest:
        client = Client(server.url(), ingest)
        try:
            with client.worker() as worker:
                client.results = {name: client.send(name, "ann") for name in FAILING}
                client.results |= {name: client.send(name) for name in ENDING}
                for name, result in client.results.items():
                    if name == "ignore":  # leaves no result
                        worker.wait_for_log(f"[{result.id}] received", PATIENCE_S)
                    else:
                        result.get(timeout=PATIENCE_S, propagate=False)
                client.code = worker.stop()
            yield client
        finally:
            client.close()


# -- one event a failure -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("fail", ["fail", "charge"]),
        ("plain_fail", ["plain_fail", "plain_charge"]),
        ("fail_in_thread", ["fail_in_thread", "plain_charge"]),
        ("fail_after_retries", ["fail_after_retries", "charge"]),
    ],
)
def test_a_failure_is_one_event_with_the_frames_down_to_its_cause(ran, name, frames):
    """Of the last try, where there were several."""
    result = ran.results[name]
    (event,) = ran.events_of(result)
    assert own_frames(event) == frames
    error = event["exception"]["values"][-1]
    assert (error["type"], error["value"]) == ("ValueError", "ann has no money")
    assert error["mechanism"] == {"type": "celery", "handled": False}
    assert error["stacktrace"]["frames"][-1]["vars"] == {"customer": "'ann'"}
    assert event["transaction"] == f"sentry_app.{name}"
    assert event["extra"]["celery-job"]["task_name"] == f"sentry_app.{name}"


def test_a_failing_child_is_reported_for_itself_and_for_its_task(ran):
    """Two events, as in any asyncio program: the SDK's asyncio integration reports a failed child where it fails."""
    events = ran.events_of(ran.results["fail_in_child"])
    assert {mechanism(event): own_frames(event) for event in events} == {
        "asyncio": ["charge"],
        "celery": ["fail_in_child", "charge"],
    }
    assert len(events) == 2


@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        ("succeed", ["ok"]),
        ("ignore", ["aborted"]),
        ("reject", ["aborted"]),
        ("fail_as_expected", ["internal_error"]),
    ],
)
def test_what_is_no_failure_is_no_event(ran, name, statuses):
    result = ran.results[name]
    assert ran.events_of(result) == []
    assert [one["contexts"]["trace"]["status"] for one in ran.transactions_of(result)] == statuses


def test_each_try_is_a_transaction_of_the_same_trace(ran):
    traces = [one["contexts"]["trace"] for one in ran.transactions_of(ran.results["fail_after_retries"])]
    assert [trace["status"] for trace in traces] == ["aborted", "aborted", "internal_error"]
    assert len({trace["trace_id"] for trace in traces}) == 1


def test_a_soft_time_limit_is_one_event_where_the_body_waited(ran):
    (event,) = ran.events_of(ran.results["exceed_soft_limit"])
    assert event["exception"]["values"][-1]["type"] == "SoftTimeLimitExceeded"
    assert own_frames(event) == ["exceed_soft_limit"]
    assert event["fingerprint"] == ["celery", "SoftTimeLimitExceeded", "sentry_app.exceed_soft_limit"]


def test_what_the_worker_itself_reports_is_one_event_of_no_task(ran):
    """A hard limit and a body that would leave the process are errors in Celery's log, as under its own pools."""
    untold = [event for event in ran.ingest.events if "celery_task_id" not in event.get("tags", {})]
    assert {event["logger"] for event in untold} == {"celery.worker.request"}
    told = sorted(event["logentry"]["formatted"] for event in untold)
    assert len(told) == 2
    assert told[0].startswith("Hard time limit (0.2s) exceeded")
    assert ran.results["exceed_hard_limit"].id in told[0]
    assert "SystemExit(3)" in told[1]
    assert ran.code == 0


# -- many at once ------------------------------------------------------------------------------------------------------


def test_no_event_holds_the_tags_or_breadcrumbs_of_another_task(client):
    """A hundred bodies on the loop and eight in threads, all under way at the same time."""
    meeting = uuid.uuid4().hex
    with client.worker() as worker:
        results = {
            f"customer-{number}": client.send("fail_among_many", f"customer-{number}", meeting, PARTY)
            for number in range(PARTY)
        }
        plain = {
            f"plain-{number}": client.send("plain_fail_among_many", f"plain-{number}") for number in range(PLAIN_PARTY)
        }
        for result in (*results.values(), *plain.values()):
            result.get(timeout=PATIENCE_S, propagate=False)
        assert worker.stop() == 0
    assert len(client.ingest.events) == PARTY + PLAIN_PARTY
    for customer, result in (results | plain).items():
        (event,) = client.events_of(result)
        assert event["tags"] == {"customer": customer, "celery_task_id": result.id}
        assert event["exception"]["values"][-1]["value"] == f"{customer} has no money"
        crumbs = [crumb["message"] for crumb in event["breadcrumbs"]["values"] if crumb.get("type") == "default"]
        assert crumbs == [f"{customer} arrives", f"{customer} leaves"]
        if customer in results:
            assert event["contexts"]["seen"] == {"customers": [customer] * 4}


def test_spans_belong_to_their_own_task_and_a_trace_goes_on_into_what_a_body_sends(client):
    meeting = uuid.uuid4().hex
    with client.worker() as worker:
        results = {
            f"customer-{number}": client.send("trace_among_many", f"customer-{number}", meeting, PARTY)
            for number in range(PARTY)
        }
        sent = {
            customer: client.app.AsyncResult(result.get(timeout=PATIENCE_S)) for customer, result in results.items()
        }
        for result in sent.values():
            assert result.get(timeout=PATIENCE_S) == "done"
        assert worker.stop() == 0
    assert client.ingest.events == []
    for customer, result in results.items():
        (transaction,) = client.transactions_of(result)
        spans = {span["span_id"]: span for span in transaction["spans"]}
        mine = [span for span in spans.values() if span["op"] == "mine"]
        assert sorted(span["description"] for span in mine) == sorted(
            [f"outer {customer}", f"inner {customer}", f"inner {customer}"]
        )
        for span in mine:
            assert transaction["contexts"]["trace"]["span_id"] in ancestors(span, spans)
        (outer,) = (span for span in mine if span["description"].startswith("outer"))
        for span in mine:
            assert span is outer or outer["span_id"] in ancestors(span, spans)
        (next_one,) = client.transactions_of(sent[customer])
        trace = next_one["contexts"]["trace"]
        assert trace["trace_id"] == transaction["contexts"]["trace"]["trace_id"]
        assert spans[trace["parent_span_id"]]["op"] == "queue.submit.celery"


def ancestors(span, spans):
    """The ids of the spans around it, up to that of its transaction."""
    found = []
    while span is not None:
        found.append(span["parent_span_id"])
        span = spans.get(span["parent_span_id"])
    return found


# -- the stop ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_what_was_reported_last_is_sent_before_the_worker_ends(client, number):
    with client.worker() as worker:
        client.ingest.pause()
        result = client.send("fail", "ann")
        result.get(timeout=PATIENCE_S, propagate=False)
        assert client.ingest.wait_for_request(PATIENCE_S)
        worker.signal(number)
        worker.wait_for_log("shutdown", PATIENCE_S)
        client.ingest.resume()
        assert worker.wait(STOP_BOUND_S) == 0
    (event,) = client.events_of(result)
    assert own_frames(event) == ["fail", "charge"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_stop_does_not_wait_for_a_server_that_does_not_answer(client, number):
    with client.worker() as worker:
        client.ingest.pause()
        client.send("fail", "ann").get(timeout=PATIENCE_S, propagate=False)
        assert client.ingest.wait_for_request(PATIENCE_S)
        worker.signal(number)
        assert worker.wait(STOP_BOUND_S) == 0


def test_a_server_that_is_not_there_disturbs_neither_tasks_nor_the_stop(client):
    with IngestServer() as gone:
        dsn = gone.dsn
    with client.worker(dsn) as worker:
        for _ in range(10):
            with pytest.raises(ValueError, match="ann has no money"):
                client.send("fail", "ann").get(timeout=PATIENCE_S)
        assert client.send("succeed").get(timeout=PATIENCE_S) == "done"
        worker.signal(signal.SIGTERM)
        assert worker.wait(STOP_BOUND_S) == 0

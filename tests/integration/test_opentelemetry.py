"""OpenTelemetry's instrumentation of Celery on an app in the pool (`opentelemetry_app.py`): spans nest as code does."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess, environment_without_site_settings

HERE = Path(__file__).parent
PATIENCE_S = 60
PARTY, PLAIN_PARTY = 50, 8


class Traces:
    """All spans of a producer and a worker, once both have ended."""

    def __init__(self, folder, ids):
        self.ids = ids
        self.spans = {}
        for path in folder.iterdir():
            for line in path.read_text().splitlines():
                span = json.loads(line)
                self.spans[span["context"]["span_id"]] = span

    def named(self, name):
        return [span for span in self.spans.values() if span["name"] == name]

    def runs(self, name):
        """The spans in which the worker ran the task, first try first."""
        task_id = self.ids[name]
        runs = [
            span
            for span in self.spans.values()
            if span["kind"] == "SpanKind.CONSUMER" and span["attributes"].get("messaging.message.id") == task_id
        ]
        return sorted(runs, key=lambda span: span["start_time"])

    def parent(self, span):
        return self.spans.get(span["parent_id"])

    def path(self, span):
        """The names from the root down to this span; a retry's publishing and the like included."""
        names = []
        while span is not None:
            names.append(span["name"])
            span = self.parent(span)
        return names[::-1]

    def below(self, run):
        """The names of all spans under this one, those of other tasks' runs included."""
        found = []
        for span in self.spans.values():
            above = self.parent(span)
            while above is not None and above is not run:
                above = self.parent(above)
            if above is run:
                found.append(span["name"])
        return found


def environment(url, folder, name="worker_init"):
    return {"OTEL_APP_URL": url, "OTEL_APP_SPANS": str(folder), "OTEL_APP_SIGNAL": name}


def worker_for(env):
    return WorkerProcess(
        "opentelemetry_app",
        args=["-P", "legit_async", "-c", "200", "-l", "INFO", "--without-gossip", "--without-mingle"],
        env=env,
        cwd=HERE,
    )


def traced(url, folder, name="worker_init"):
    """What a worker and a producer traced; the worker's log must not complain of a context left in disorder."""
    env = environment(url, folder, name)
    with worker_for(env) as worker:
        producer = subprocess.run(
            [sys.executable, "opentelemetry_app.py"],
            cwd=HERE,
            env={**environment_without_site_settings(), **env},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert producer.returncode == 0, producer.stderr + worker.log
        assert worker.stop() == 0
    assert "Failed to detach context" not in worker.log
    assert "no existing span found" not in worker.log
    return Traces(folder, json.loads(producer.stdout))


@pytest.fixture(scope="module")
def server():
    with EmbeddedServer() as own:
        yield own


@pytest.fixture(scope="module")
def traces(server, tmp_path_factory):
    return traced(server.url(), tmp_path_factory.mktemp("spans"))


@pytest.mark.parametrize("name", ["add", "plain_add"])
def test_a_run_is_a_child_of_what_sent_it(traces, name):
    (run,) = traces.runs(name)
    task = f"opentelemetry_app.{name}"
    assert traces.path(run) == ["order", f"apply_async/{task}", f"run/{task}"]
    assert run["status"]["status_code"] == "UNSET"
    assert run["attributes"]["celery.task_name"] == task
    assert run["attributes"]["celery.state"] == "SUCCESS"


def test_each_task_has_its_spans_and_no_other_task_has_them(traces):
    """Fifty bodies meet inside every span: across each await, in gathered children and in threads."""
    for number in range(PARTY):
        name = f"nest-{number}"
        (run,) = traces.runs(name)
        root = ["order", "apply_async/opentelemetry_app.nest", "run/opentelemetry_app.nest"]
        outer = [*root, f"outer of {name}"]
        expected = [outer, [*outer, f"thread of {name}"], [*outer, f"inner of {name}"]]
        for child in range(2):
            expected.append([*outer, f"child {child} of {name}"])
            expected.append([*outer, f"child {child} of {name}", f"grandchild {child} of {name}"])
        for path in expected:
            (span,) = traces.named(path[-1])
            assert traces.path(span) == path
        assert Counter(traces.below(run)) == Counter(path[-1] for path in expected)


def test_plain_tasks_at_the_same_time_have_their_own_spans_too(traces):
    for number in range(PLAIN_PARTY):
        name = f"plain_nest-{number}"
        (run,) = traces.runs(name)
        assert sorted(traces.below(run)) == [f"inner of {name}", f"outer of {name}"]
        (inner,) = traces.named(f"inner of {name}")
        assert traces.path(inner)[-2:] == [f"outer of {name}", f"inner of {name}"]


@pytest.mark.parametrize("name", ["fail", "plain_fail"])
def test_a_failure_is_an_error_with_its_exception(traces, name):
    (run,) = traces.runs(name)
    assert run["status"] == {"status_code": "ERROR", "description": "no money"}
    (event,) = run["events"]
    assert event["attributes"]["exception.type"] == "ValueError"
    assert event["attributes"]["exception.message"] == "no money"


def test_each_try_is_a_run_below_the_one_before(traces):
    runs = traces.runs("retry")
    task = "opentelemetry_app.retry"
    assert [traces.path(run) for run in runs] == [
        ["order", *[f"apply_async/{task}", f"run/{task}"] * tries] for tries in (1, 2, 3)
    ]
    reason = "Retry in 1s: ValueError('not yet')"
    assert [run["attributes"].get("celery.retry.reason") for run in runs] == [reason, reason, None]
    assert [run["attributes"]["celery.state"] for run in runs] == ["RETRY", "RETRY", "SUCCESS"]


def test_an_interrupted_body_leaves_no_span_open(traces):
    """The hard limit cancels it: its spans end and are exported, the body's own with the cancellation."""
    (run,) = traces.runs("exceed_hard_limit")
    assert traces.below(run) == ["waiting"]
    (waiting,) = traces.named("waiting")
    assert waiting["end_time"] <= run["end_time"]


def test_what_a_body_sends_goes_on_with_its_trace(traces):
    """Also what a gathered child sends."""
    (run,) = traces.runs("send_on")
    for number, task in enumerate(("opentelemetry_app.add", "opentelemetry_app.plain_add")):
        (sent,) = traces.runs(f"sent-{number}")
        assert traces.path(sent) == [*traces.path(run), "sending", f"apply_async/{task}", f"run/{task}"]


def test_all_is_one_trace_and_nothing_else_was_traced(traces):
    assert len({span["context"]["trace_id"] for span in traces.spans.values()}) == 1
    roots = [span["name"] for span in traces.spans.values() if span["parent_id"] is None]
    assert roots == ["order"]
    assert all(span["parent_id"] in traces.spans for span in traces.spans.values() if span["parent_id"] is not None)


def test_tracing_that_is_set_up_as_its_documentation_says_works(server, tmp_path):
    """On `worker_process_init`, which Celery's prefork and solo pools send where tasks will run."""
    found = traced(server.url(1), tmp_path, "worker_process_init")
    (run,) = found.runs("add")
    assert found.path(run) == ["order", "apply_async/opentelemetry_app.add", "run/opentelemetry_app.add"]

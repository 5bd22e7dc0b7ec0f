"""An app of somebody else's with OpenTelemetry's instrumentation of Celery; of ours, the pool alone.

    celery -A opentelemetry_app worker -P legit_async
    python opentelemetry_app.py  # the producer: sends one task of each kind, prints their ids as JSON

`OTEL_APP_URL` is its broker and backend; spans go to a file of each process in the folder `OTEL_APP_SPANS`, one a line,
at the latest when the process ends. `OTEL_APP_SIGNAL` names the signal of Celery's on which the worker sets tracing up.
"""

import asyncio
import json
import os
import sys
import threading
from collections import Counter, defaultdict
from pathlib import Path

from celery import Celery, signals
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

import legit_embedding.pool  # noqa: F401  makes `-P legit_async` known

PARTY, PLAIN_PARTY = 50, 8
PATIENCE_S = 30

app = Celery(
    "opentelemetry_app",
    task_cls="legit_embedding.pool.task:AsyncTask",
    broker=os.environ["OTEL_APP_URL"],
    backend=os.environ["OTEL_APP_URL"],
)
app.conf.update(broker_connection_retry_on_startup=True)
tracer = trace.get_tracer("opentelemetry_app")


def set_up(**_):
    spans = Path(os.environ["OTEL_APP_SPANS"], f"{os.getpid()}.jsonl").open("a")  # noqa: SIM115  until the process ends
    exporter = ConsoleSpanExporter(out=spans, formatter=lambda span: span.to_json(indent=None) + "\n")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()


getattr(signals, os.environ.get("OTEL_APP_SIGNAL", "worker_init")).connect(set_up, weak=False)


_arrived = Counter()
_complete = defaultdict(asyncio.Event)
_barrier = threading.Barrier(PLAIN_PARTY)


async def everybody_is_here(meeting):
    """Returns once all tasks of the party wait here at the same time."""
    _arrived[meeting] += 1
    if _arrived[meeting] == PARTY:
        _complete[meeting].set()
    await _complete[meeting].wait()


@app.task
async def nest(customer):
    """Spans across meetings of all, in gathered children, and in a thread."""

    async def look(number):
        with tracer.start_as_current_span(f"child {number} of {customer}"):
            await everybody_is_here(f"child {number}")
            with tracer.start_as_current_span(f"grandchild {number} of {customer}"):
                await asyncio.sleep(0)

    def look_from_thread():
        with tracer.start_as_current_span(f"thread of {customer}"):
            pass

    await everybody_is_here("start")
    with tracer.start_as_current_span(f"outer of {customer}"):
        await everybody_is_here("middle")
        await asyncio.gather(look(0), look(1))
        await asyncio.to_thread(look_from_thread)
        with tracer.start_as_current_span(f"inner of {customer}"):
            await everybody_is_here("end")


@app.task
def plain_nest(customer):
    _barrier.wait(PATIENCE_S)
    with tracer.start_as_current_span(f"outer of {customer}"):
        _barrier.wait(PATIENCE_S)
        with tracer.start_as_current_span(f"inner of {customer}"):
            _barrier.wait(PATIENCE_S)


@app.task
async def add(a, b):
    await asyncio.sleep(0)
    return a + b


@app.task
def plain_add(a, b):
    return a + b


@app.task
async def fail():
    await asyncio.sleep(0)
    raise ValueError("no money")


@app.task
def plain_fail():
    raise ValueError("no money")


@app.task(bind=True, max_retries=2)
async def retry(self):
    await asyncio.sleep(0)
    if self.request.retries < 2:
        # Not at once: the instrumentation keeps one span for each id, and two tries must not be under way together.
        raise self.retry(countdown=1, exc=ValueError("not yet"))
    return self.request.retries


@app.task(time_limit=0.2)
async def exceed_hard_limit():
    with tracer.start_as_current_span("waiting"):
        await asyncio.Event().wait()


@app.task
async def send_on(a, b):
    """Sends from the body and from a child of its."""

    async def send():
        await asyncio.sleep(0)
        return plain_add.delay(a, b).id

    with tracer.start_as_current_span("sending"):
        first = add.delay(a, b).id
        (second,) = await asyncio.gather(send())
        return [first, second]


def produce():
    """Sends one task of each kind inside a span; the ids by name, once all have ended."""
    with tracer.start_as_current_span("order"):
        sent = {f"nest-{number}": nest.delay(f"nest-{number}") for number in range(PARTY)}
        sent |= {f"plain_nest-{number}": plain_nest.delay(f"plain_nest-{number}") for number in range(PLAIN_PARTY)}
        for task in (fail, plain_fail, retry, exceed_hard_limit):
            sent[task.__name__] = task.delay()
        for task in (add, plain_add, send_on):
            sent[task.__name__] = task.delay(1, 2)
    values = {name: result.get(timeout=PATIENCE_S, propagate=False) for name, result in sent.items()}
    for number, task_id in enumerate(values["send_on"]):
        sent[f"sent-{number}"] = app.AsyncResult(task_id)
        sent[f"sent-{number}"].get(timeout=PATIENCE_S)
    return {name: result.id for name, result in sent.items()}


if __name__ == "__main__":
    app.set_current()
    set_up()
    json.dump(produce(), sys.stdout)

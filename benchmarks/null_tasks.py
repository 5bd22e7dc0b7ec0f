"""The app that `benchmarks.pools` and `benchmarks.drain` measure: tasks that do nothing.

Their arguments only make the message longer. The environment says where they come from.

`BENCHMARK_BROKER_URL` is the broker, `BENCHMARK_RESULT_URL` where results are stored, unset: nowhere.
`BENCHMARK_TRANSPORT` is `legit` where our transport is to talk to the broker.
`BENCHMARK_EVENTS` is the class that sends events: else ours, and Celery's own beside kombu's transport.
`BENCHMARK_TASK_CLASS` is the class of the tasks, for pools that bring async tasks of their own.
"""

import os
import sys

from celery import Celery
from celery.signals import task_failure, worker_ready

import legit_embedding.broker
import legit_embedding.pool  # makes `-P legit_async` known

FAILED = "a null task has failed:"

OUR_EVENTS = "legit_embedding.pool.events:Events"

transport = os.environ.get("BENCHMARK_TRANSPORT")
if transport == "legit":
    legit_embedding.broker.install()

THREADS = 8
"""For plain tasks, as many as Celery's threads pool is given: more of them fight for the GIL."""

results = os.environ.get("BENCHMARK_RESULT_URL")
app = Celery(
    "null_tasks",
    task_cls=os.environ.get("BENCHMARK_TASK_CLASS", "legit_embedding.pool.task:AsyncTask"),
    broker=os.environ.get("BENCHMARK_BROKER_URL"),
    backend=results,
    events=os.environ.get("BENCHMARK_EVENTS", None if transport in {None, "kombu"} else OUR_EVENTS),
)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=not results,
    broker_connection_retry_on_startup=True,
    legit_async_threads=THREADS,
)


@app.task
async def async_null(*_: str) -> None:
    """Nothing, on the loop."""


@app.task
def plain_null(*_: str) -> None:
    """Nothing, in a thread, or wherever the pool runs plain functions."""


@worker_ready.connect
def _say_so(**_: object) -> None:
    sys.stderr.write("the worker is ready.\n")  # at a log level at which Celery itself does not


@task_failure.connect
def _complain(exception: BaseException | None = None, **_: object) -> None:
    sys.stderr.write(f"{FAILED} {exception!r}\n")  # a pool that cannot run them would look fast

"""The app that `benchmarks.pool` measures: tasks that do nothing. `BENCHMARK_BROKER_URL` is its broker."""

import os
import sys

from celery import Celery
from celery.signals import worker_ready

import legit_embedding.pool  # noqa: F401  makes `-P legit_async` known

app = Celery(
    "null_tasks", task_cls="legit_embedding.pool.task:AsyncTask", broker=os.environ.get("BENCHMARK_BROKER_URL")
)
app.conf.update(task_acks_late=True, task_ignore_result=True, broker_connection_retry_on_startup=True)


@app.task
async def async_null() -> None:
    """Nothing, on the loop."""


@app.task
def plain_null() -> None:
    """Nothing, in a thread, or wherever the pool runs plain functions."""


@worker_ready.connect
def _say_so(**_: object) -> None:
    sys.stderr.write("the worker is ready.\n")  # at a log level at which Celery itself does not

"""The app of the tests of what finished tasks leave to the garbage collector, which does not run by itself here.

    celery -A garbage_app worker -P legit_async

`GARBAGE_APP_URL` is its broker. `collect` says what the collector has found since it was last asked.
"""

import asyncio
import gc
import os
import sys
from collections import Counter

import redis
from celery import Celery
from celery.signals import worker_ready

import legit_embedding.broker
import legit_embedding.pool  # makes `-P legit_async` known

URL = os.environ["GARBAGE_APP_URL"]
if os.environ["GARBAGE_APP_TRANSPORT"] == "legit":
    legit_embedding.broker.install()
KINDS = 5
"""How many of the commonest types of what was found are told."""

app = Celery("garbage_app", task_cls="legit_embedding.pool.task:AsyncTask", broker=URL, backend=URL)
# Few threads: each makes a result backend of its own once, for which importlib leaves cycles of its entry points.
app.conf.update(task_acks_late=True, broker_connection_retry_on_startup=True, legit_async_threads=2)


class RefusedError(Exception):
    pass


@app.task
async def async_null(payload):
    pass


@app.task
def plain_null(payload):
    pass


@app.task
async def wait(payload):
    await asyncio.sleep(0.001)


@app.task
async def start_children(payload):
    await asyncio.gather(*(asyncio.sleep(0) for _ in range(3)))


@app.task
async def async_fail(payload):
    raise RefusedError(payload[:10])


@app.task
def plain_fail(payload):
    raise RefusedError(payload[:10])


@app.task(time_limit=3600)
async def async_limited(payload):
    await asyncio.sleep(0)


@app.task(bind=True, max_retries=1, default_retry_delay=0)
async def async_retry(self, payload):
    if not self.request.retries:
        raise self.retry()


@app.task
async def collect(key):
    """What was found, and by type what there was most of."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        found = [f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()  # else they were found again the next time
    with redis.Redis.from_url(URL) as client:
        client.rpush(key, len(found), str(Counter(found).most_common(KINDS)))


@worker_ready.connect
def _stop_collecting(**_):
    gc.disable()
    sys.stderr.write("the worker is ready.\n")  # at a log level at which Celery itself does not

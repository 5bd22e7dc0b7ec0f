"""An app of somebody else's, which uses the pool and nothing more: an import and a task class.

    celery -A pool_app worker -P legit_async

`POOL_APP_URL` is its broker; `POOL_APP_NOTES` is where it keeps results and notes for the tests, so that they survive a
broker's death; `POOL_APP_CONFIG` holds further settings as JSON.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections import Counter, defaultdict
from contextlib import asynccontextmanager

import redis
import redis.asyncio
from celery import Celery, current_task
from celery.exceptions import Reject

import legit_embedding.pool  # noqa: F401  makes `-P legit_async` known

URL = os.environ["POOL_APP_URL"]
NOTES_URL = os.environ["POOL_APP_NOTES"]

app = Celery(
    "pool_app",
    task_cls="legit_embedding.pool.task:AsyncTask",
    events="legit_embedding.pool.events:Events",
    broker=URL,
    backend=NOTES_URL,
)
app.conf.update(
    broker_transport_options={"visibility_timeout": 3600, "unacked_restore_interval": 1, "unacked_restore_throttle": 1},
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=True,
)
app.conf.update(json.loads(os.environ.get("POOL_APP_CONFIG", "{}")))

notes = redis.Redis.from_url(NOTES_URL, decode_responses=True)


def note(key, value):
    """Tells the test, in order, what happened."""
    notes.rpush(f"note:{key}", value)


async def wait_for_key(key):
    """Returns once the test has set the key."""
    # With redis-py's own timeout each write is an `asyncio.wait_for`, which may swallow a cancellation in Python 3.11.
    async with redis.asyncio.Redis.from_url(NOTES_URL, socket_timeout=None) as client:
        while not await client.exists(key):
            await asyncio.sleep(0.02)


_arrived = Counter()
_complete = defaultdict(asyncio.Event)


async def everybody_is_here(meeting, party):
    """Returns once `party` tasks of this process wait here at the same time."""
    _arrived[meeting] += 1
    if _arrived[meeting] == party:
        _complete[meeting].set()
    await _complete[meeting].wait()


# -- lifespans ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(_app):
    note("life", f"enter {threading.current_thread().name}")
    yield
    note("life", f"exit {threading.current_thread().name}")


@asynccontextmanager
async def broken_lifespan(_app):
    raise ValueError("the model cannot be found")
    yield


@asynccontextmanager
async def endless_start(_app):
    note("life", "starting")
    try:
        await asyncio.Event().wait()
    finally:
        note("life", "start called off")
    yield


@asynccontextmanager
async def endless_exit(_app):
    yield
    await asyncio.Event().wait()


# -- results -----------------------------------------------------------------------------------------------------------


@app.task
async def add(a, b):
    await asyncio.sleep(0)
    return a + b


@app.task
def plain_add(a, b):
    return a + b


@app.task
async def fail(message):
    await asyncio.sleep(0)
    raise KeyError(message)


@app.task
def plain_fail(message):
    raise KeyError(message)


@app.task
async def leave(kind):
    await asyncio.sleep(0)
    raise {"exit": SystemExit(3), "interrupt": KeyboardInterrupt(), "cancel": asyncio.CancelledError()}[kind]


@app.task(bind=True, max_retries=2)
async def retry(self):
    await asyncio.sleep(0)
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(bind=True, max_retries=2)
def plain_retry(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(bind=True, autoretry_for=(ValueError,), retry_kwargs={"max_retries": 2, "countdown": 0}, retry_backoff=False)
async def autoretry(self):
    await asyncio.sleep(0)
    if self.request.retries < 1:
        raise ValueError("again")
    return self.request.retries


@app.task(bind=True, acks_late=True)
async def reject(self, requeue):
    redelivered = self.request.delivery_info["redelivered"]
    note(self.request.id, f"redelivered {bool(redelivered)}")
    if redelivered:
        return "second time"
    raise Reject("not now", requeue=requeue)


# -- the current task --------------------------------------------------------------------------------------------------


@app.task(bind=True)
def plain_who(self):
    return [self.request.id, current_task.request.id, threading.current_thread().name]


@app.task(bind=True)
async def meet(self, meeting, party):
    """Returns once `party` of these are under way at the same time."""
    note("met", self.request.id)
    await everybody_is_here(meeting, party)
    return threading.current_thread().name


@app.task
async def call_another(a, b):
    """Sends a task from inside a body; the id of the one sent."""
    return add.apply_async((a, b)).id


class Counting(app.Task):
    name = "pool_app.counting"

    def before_start(self, task_id, args, kwargs):
        note(task_id, "before_start")

    def on_success(self, retval, task_id, args, kwargs):
        note(task_id, f"on_success {retval}")

    async def run(self, number):
        await asyncio.sleep(0)
        return number + 1


counting = app.register_task(Counting())


# -- interruptions -----------------------------------------------------------------------------------------------------


@app.task(bind=True, time_limit=0.2)
async def hard_limit(self):
    try:
        await asyncio.Event().wait()
    finally:
        note(self.request.id, "cleaned up")


@app.task(time_limit=0.2)
def plain_hard_limit():
    time.sleep(2)


@app.task(bind=True)
async def wait(self, key):
    note("started", self.request.id)
    try:
        await wait_for_key(key)
    except asyncio.CancelledError:
        note("cancelled", self.request.id)
        await asyncio.sleep(0.05)  # a second cancellation would land here
        note("cleaned up", self.request.id)
        raise
    return "waited"


@app.task(bind=True, acks_late=True)
async def wait_late(self, key):
    note("started", self.request.id)
    await wait_for_key(key)
    note("finished", self.request.id)
    return "waited"


@app.task(bind=True, acks_late=True)
def plain_wait_late(self, key):
    note("started", self.request.id)
    while not notes.exists(key):
        time.sleep(0.02)
    note("finished", self.request.id)
    return "waited"


@app.task(bind=True, acks_late=True)
async def stop_loop(self):
    note("started", self.request.id)
    asyncio.get_running_loop().stop()
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(app.start())

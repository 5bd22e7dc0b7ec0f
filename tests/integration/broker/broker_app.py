"""An app of somebody else's with the broker room and the pool, for tests that kill, cut and stop its workers.

    celery -A broker_app worker -P legit_async

`BROKER_APP_URL` is its broker; `BROKER_APP_TRANSPORT` is `legit` or `kombu`; `BROKER_APP_OPTIONS` and
`BROKER_APP_CONFIG` hold transport options and further settings as JSON. `BROKER_APP_NOTES` is a server that no test
kills: there stands which message ran, and how often.
"""

import asyncio
import json
import os
import time

import redis
import redis.asyncio
from celery import Celery

import legit_embedding.pool  # noqa: F401  makes `-P legit_async` known
from legit_embedding import broker

NOTES_URL = os.environ["BROKER_APP_NOTES"]
LOOK_S = 0.02

if os.environ["BROKER_APP_TRANSPORT"] == "legit":
    broker.install()

app = Celery(
    "broker_app",
    task_cls="legit_embedding.pool.task:AsyncTask",
    events="legit_embedding.pool.events:Events",
    broker=os.environ["BROKER_APP_URL"],
)
app.conf.update(
    broker_transport_options=json.loads(os.environ.get("BROKER_APP_OPTIONS", "{}")),
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    task_ignore_result=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_send_task_events=False,
)
app.conf.update(json.loads(os.environ.get("BROKER_APP_CONFIG", "{}")))

notes = redis.Redis.from_url(NOTES_URL, decode_responses=True)
_async_notes = []


def notes_of_the_loop():
    """One client for all tasks: they run on one loop."""
    if not _async_notes:
        _async_notes.append(redis.asyncio.Redis.from_url(NOTES_URL, decode_responses=True))
    return _async_notes[0]


@app.task
async def quick(number, pause_s=0.0):
    """Notes its message after a moment of work."""
    if pause_s:
        await asyncio.sleep(pause_s)
    await notes_of_the_loop().rpush("note:ran", number)


@app.task
def plain(number, pause_s=0.0):
    if pause_s:
        time.sleep(pause_s)
    notes.rpush("note:ran", number)


@app.task
async def stamped(number):
    """Notes when it began, by the test's clock: both processes are on one machine."""
    await notes_of_the_loop().rpush("note:stamps", f"{number} {time.time()}")


@app.task
async def hold(number, key="go"):
    """Waits until the test releases it."""
    await notes_of_the_loop().rpush("note:started", number)
    while not await notes_of_the_loop().exists(key):
        await asyncio.sleep(LOOK_S)
    await notes_of_the_loop().rpush("note:ran", number)


@app.task
def plain_hold(number, key="go"):
    notes.rpush("note:started", number)
    while not notes.exists(key):
        time.sleep(LOOK_S)
    notes.rpush("note:ran", number)


@app.task
async def long(number, seconds):
    """Notes its start, too, so that a second run is seen even where it does not end."""
    await notes_of_the_loop().rpush("note:started", number)
    await asyncio.sleep(seconds)
    await notes_of_the_loop().rpush("note:ran", number)


@app.task(bind=True, max_retries=2)
async def retried(self, number):
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    await notes_of_the_loop().rpush("note:ran", number)


@app.task
async def send_on(number):
    """Sends another task from inside of a body."""
    quick.apply_async((number,))

"""The app that the conformance suite runs on every pool: tasks as any team writes them, in pairs, `x` and `plain_x`.

    celery -A conformance_app worker -P <pool>

`CONFORMANCE_BROKER` is its broker, reached through `CONFORMANCE_TRANSPORT`, and `CONFORMANCE_QUEUE` its queue;
`CONFORMANCE_NOTES` is where it keeps results and notes for the tests, so that they survive the broker's death;
`CONFORMANCE_CONFIG` holds further settings as JSON.
"""

import asyncio
import json
import os
import time
from pathlib import Path

import redis
import redis.asyncio
from celery import Celery
from kombu import Queue

import legit_embedding.broker
import legit_embedding.pool  # makes `-P legit_async` known

NOTES_URL = os.environ["CONFORMANCE_NOTES"]
QUEUE = os.environ["CONFORMANCE_QUEUE"]

if os.environ.get("CONFORMANCE_TRANSPORT") == "legit":
    legit_embedding.broker.install()

app = Celery(
    "conformance_app",
    task_cls="legit_embedding.pool.task:AsyncTask",
    broker=os.environ["CONFORMANCE_BROKER"],
    backend=NOTES_URL,
    # One module a subject, each beside the tests that need it.
    include=[f"conformance_app.{path.stem}" for path in Path(__file__).parent.glob("[a-z]*.py")],
)
app.conf.update(
    task_queues=[Queue(QUEUE)],
    task_default_queue=QUEUE,
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
)
if app.conf.broker_url.startswith("redis"):
    app.conf.broker_transport_options = {
        "visibility_timeout": 3600,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
app.conf.update(json.loads(os.environ.get("CONFORMANCE_CONFIG", "{}")))

notes = redis.Redis.from_url(NOTES_URL, decode_responses=True)


def note(key, value):
    """Tells the test, in order, what happened."""
    notes.rpush(f"note:{key}", value)


async def released(key):
    """Returns once the test has released the key."""
    # With redis-py's own timeout each write is an `asyncio.wait_for`, which may swallow a cancellation in Python 3.11.
    async with redis.asyncio.Redis.from_url(NOTES_URL, socket_timeout=None) as client:
        while not await client.exists(f"go:{key}"):
            await asyncio.sleep(0.02)


def plain_released(key):
    """Returns once the test has released the key; blocks its thread."""
    while not notes.exists(f"go:{key}"):
        time.sleep(0.02)

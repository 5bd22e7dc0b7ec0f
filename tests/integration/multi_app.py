"""An app of somebody else's for `celery multi`; of ours, the pool alone. `MULTI_APP_URL` is its broker and backend."""

import asyncio
import os

import redis
import redis.asyncio
from celery import Celery

import legit_embedding.pool  # noqa: F401  makes `-P legit_async` known

URL = os.environ["MULTI_APP_URL"]

app = Celery("multi_app", task_cls="legit_embedding.pool.task:AsyncTask", broker=URL, backend=URL)
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    task_acks_late=True,
    control_queue_expires=60,
)


@app.task(bind=True)
async def meet(self, meeting, party):
    """The node it runs on, once `party` of these are under way, on whichever nodes."""
    async with redis.asyncio.Redis.from_url(URL, decode_responses=True) as client:
        await client.incr(meeting)
        while int(await client.get(meeting)) < party:
            await asyncio.sleep(0.02)
    return self.request.hostname


@app.task(bind=True)
async def wait(self, key):
    async with redis.asyncio.Redis.from_url(URL) as client:
        await client.rpush("started", self.request.hostname)
        while not await client.exists(key):
            await asyncio.sleep(0.02)
    return "waited"


@app.task
def plain_add(a, b):
    return a + b

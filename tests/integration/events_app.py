"""More tasks for the app of `pool_app.py`: what monitors are shown.

celery -A events_app worker -P legit_async -E
"""

import asyncio
import time

from celery import group
from celery.exceptions import Reject
from pool_app import add, app

__all__ = ["app"]


@app.task
async def rest(duration_s):
    """A body of known length."""
    await asyncio.sleep(duration_s)


@app.task
def plain_rest(duration_s):
    time.sleep(duration_s)


@app.task(bind=True, acks_late=True)
def plain_reject(self, requeue):
    if self.request.delivery_info["redelivered"]:
        return "second time"
    raise Reject("not now", requeue=requeue)


@app.task
def plain_call_another(a, b):
    """Sends a task from inside a plain body."""
    add.delay(a, b)


@app.task
async def call_group(size):
    """Sends several at once, with a producer that the group brings along."""
    group(add.s(number, number) for number in range(size)).apply_async()

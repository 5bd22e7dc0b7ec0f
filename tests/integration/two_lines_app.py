"""The two lines of docs/pool.md, two tasks, and no setting: what a team has on its first day.

    celery -A two_lines_app worker -P legit_async

`POOL_APP_URL` is its broker, `POOL_APP_NOTES` its backend.
"""

import asyncio
import os
import time

from celery import Celery

import legit_embedding.pool  # noqa: F401  makes `-P legit_async` known

app = Celery(
    "two_lines_app",
    task_cls="legit_embedding.pool.task:AsyncTask",
    broker=os.environ["POOL_APP_URL"],
    backend=os.environ["POOL_APP_NOTES"],
)


@app.task(bind=True)
async def rest(self, duration_s):
    """A body of known length; the node it runs on."""
    await asyncio.sleep(duration_s)
    return self.request.hostname


@app.task(bind=True)
def plain_rest(self, duration_s):
    time.sleep(duration_s)
    return self.request.hostname

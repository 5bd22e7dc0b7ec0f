"""Tasks for the app of `pool_app.py` that a test copies, and changes while a worker runs: their version is "first".

Celery's decorator never replaces a task: after a reload, a decorated body is the old one and finds the new globals. A
class that is registered again takes the place of the old one.
"""

import asyncio
import threading
import time

from pool_app import app, note, notes, wait_for_key

VERSION = "first"


def on_loop():
    return threading.current_thread().name == "legit-loop"


async def id_in_child(task):
    """The request's id where a body's child sees it."""

    async def child():
        return task.request.id

    (seen,) = await asyncio.gather(child())
    return seen


@app.task(name="pool_app.version")
async def version():
    return VERSION


@app.task(name="pool_app.plain_version")
def plain_version():
    return VERSION


class Versioned(app.Task):
    name = "pool_app.versioned"

    async def run(self, key=None):
        if key is not None:
            note("started", self.request.id)
            await wait_for_key(key)
        return ["first", await id_in_child(self), on_loop()]


class PlainVersioned(app.Task):
    name = "pool_app.plain_versioned"

    def run(self, key=None):
        if key is not None:
            note("started", self.request.id)
            while not notes.exists(key):
                time.sleep(0.02)
        return ["first", self.request.id, on_loop()]


app.register_task(Versioned())
app.register_task(PlainVersioned())

"""What callers see of a result."""

import asyncio
import os

from conformance_app import app, note, plain_released, released


@app.task
async def echo(value):
    await asyncio.sleep(0)
    return value


@app.task
def plain_echo(value):
    return value


class Lost(Exception):  # noqa: N818
    """Known to the worker alone."""


def _fail(code):
    try:
        {}["the cause"]
    except KeyError as error:
        raise Lost("nobody home", code) from error


@app.task
async def fail(code):
    await asyncio.sleep(0)
    _fail(code)


@app.task
def plain_fail(code):
    _fail(code)


@app.task(bind=True)
async def wait(self, key):
    note(key, self.request.id)
    await released(key)
    return "waited"


@app.task(bind=True)
def plain_wait(self, key):
    note(key, self.request.id)
    plain_released(key)
    return "waited"


@app.task(track_started=True)
async def track(key):
    await released(key)
    return os.getpid()


@app.task(track_started=True)
def plain_track(key):
    plain_released(key)
    return os.getpid()


@app.task(ignore_result=True)
async def keep_quiet(outcome):
    await asyncio.sleep(0)
    return _end(outcome)


@app.task(ignore_result=True)
def plain_keep_quiet(outcome):
    return _end(outcome)


@app.task(ignore_result=True, store_errors_even_if_ignored=True)
async def tell_errors(outcome):
    await asyncio.sleep(0)
    return _end(outcome)


@app.task(ignore_result=True, store_errors_even_if_ignored=True)
def plain_tell_errors(outcome):
    return _end(outcome)


def _end(outcome):
    if outcome == "failure":
        raise ValueError("quietly")
    return outcome


@app.task(bind=True)
async def report_steps(self, key, count):
    await released(key)
    for step in range(count):
        self.update_state(state="PROGRESS", meta={"step": step})
        await asyncio.sleep(0)
    return "done"


@app.task(bind=True)
def plain_report_steps(self, key, count):
    plain_released(key)
    for step in range(count):
        self.update_state(state="PROGRESS", meta={"step": step})
    return "done"


@app.task
async def wait_for_another():
    """Blocks, and would block the loop: Celery refuses it."""
    return echo.delay("another").get(timeout=10)


@app.task
def plain_wait_for_another():
    return echo.delay("another").get(timeout=10)


@app.task
async def wait_for_another_all_the_same():
    another = echo.delay("another")
    return await asyncio.to_thread(another.get, timeout=10, disable_sync_subtasks=False)


@app.task
def plain_wait_for_another_all_the_same():
    return echo.delay("another").get(timeout=10, disable_sync_subtasks=False)


@app.task
async def look_at(task_id):
    result = app.AsyncResult(task_id)
    return [result.state, result.result]


@app.task
def plain_look_at(task_id):
    result = app.AsyncResult(task_id)
    return [result.state, result.result]

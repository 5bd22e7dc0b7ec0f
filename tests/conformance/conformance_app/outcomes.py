"""What becomes of a task."""

import asyncio
import threading
import time

from celery.exceptions import Ignore, Reject

from conformance_app import app, note


@app.task
async def add(a, b):
    await asyncio.sleep(0)
    return a + b


@app.task
def plain_add(a, b):
    return a + b


# -- failures ----------------------------------------------------------------------------------------------------------


class LockedOut(Exception):  # noqa: N818
    """Neither it nor what it holds can be pickled."""

    def __init__(self, lock, code):
        super().__init__("locked out")
        self.lock, self.code = lock, code


@app.task
async def fail(message):
    await asyncio.sleep(0)
    raise KeyError(message)


@app.task
def plain_fail(message):
    raise KeyError(message)


@app.task(throws=(KeyError,))
async def fail_as_expected(message):
    await asyncio.sleep(0)
    raise KeyError(message)


@app.task(throws=(KeyError,))
def plain_fail_as_expected(message):
    raise KeyError(message)


@app.task
async def fail_unpicklably():
    await asyncio.sleep(0)
    raise LockedOut(threading.Lock(), 7)


@app.task
def plain_fail_unpicklably():
    raise LockedOut(threading.Lock(), 7)


@app.task
async def fail_in_a_child():
    async with asyncio.TaskGroup() as children:
        children.create_task(fail.async_run("of a child"))
        children.create_task(asyncio.Event().wait())


@app.task
async def return_what_no_serializer_knows():
    await asyncio.sleep(0)
    return threading.Lock()


@app.task
def plain_return_what_no_serializer_knows():
    return threading.Lock()


def _leave(way):
    raise {"exit": SystemExit(3), "interrupt": KeyboardInterrupt(), "cancel": asyncio.CancelledError()}[way]


@app.task
async def leave(way):
    await asyncio.sleep(0)
    _leave(way)


@app.task
def plain_leave(way):
    _leave(way)


@app.task
async def await_a_cancelled_child():
    child = asyncio.create_task(asyncio.Event().wait())
    child.cancel()
    await child


# -- retries -----------------------------------------------------------------------------------------------------------


@app.task(bind=True, max_retries=2)
async def retry(self, times):
    await asyncio.sleep(0)
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(bind=True, max_retries=2)
def plain_retry(self, times):
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(bind=True, max_retries=2)
async def retry_in_a_child(self, times):
    async def child():
        await asyncio.sleep(0)
        if self.request.retries < times:
            raise self.retry(countdown=0)

    await asyncio.create_task(child())
    return self.request.retries


@app.task(bind=True, max_retries=1)
async def retry_because(self, message):
    await asyncio.sleep(0)
    raise self.retry(exc=KeyError(message), countdown=0)


@app.task(bind=True, max_retries=1)
def plain_retry_because(self, message):
    raise self.retry(exc=KeyError(message), countdown=0)


@app.task(bind=True)
async def retry_with_other_arguments(self, number):
    await asyncio.sleep(0)
    if number < 3:
        raise self.retry(args=(number + 1,), countdown=0)
    return number


@app.task(bind=True)
def plain_retry_with_other_arguments(self, number):
    if number < 3:
        raise self.retry(args=(number + 1,), countdown=0)
    return number


ALWAYS = {"autoretry_for": (KeyError,), "dont_autoretry_for": (IndexError,), "max_retries": 3}


@app.task(bind=True, default_retry_delay=0, **ALWAYS)
async def autoretry(self, times):
    await asyncio.sleep(0)
    if self.request.retries < times:
        raise KeyError(times)
    return self.request.retries


@app.task(bind=True, default_retry_delay=0, **ALWAYS)
def plain_autoretry(self, times):
    if self.request.retries < times:
        raise KeyError(times)
    return self.request.retries


class WithoutDelay(app.Task):
    """Notes how long each retry would wait, and does not wait."""

    abstract = True

    def retry(self, *args, countdown=None, **options):
        note(self.request.id, countdown)
        return super().retry(*args, countdown=0, **options)


@app.task(base=WithoutDelay, retry_backoff=3, retry_backoff_max=10, retry_jitter=False, **ALWAYS)
async def back_off():
    await asyncio.sleep(0)
    raise KeyError


@app.task(base=WithoutDelay, retry_backoff=3, retry_backoff_max=10, retry_jitter=False, **ALWAYS)
def plain_back_off():
    raise KeyError


ONCE_MORE = {"bind": True, "autoretry_for": (KeyError,), "retry_backoff": 1, "retry_jitter": False, "max_retries": 1}


@app.task(**ONCE_MORE)
async def back_off_for_a_second(self):
    note(self.request.id, time.monotonic())
    raise KeyError


@app.task(**ONCE_MORE)
def plain_back_off_for_a_second(self):
    note(self.request.id, time.monotonic())
    raise KeyError


# -- no outcome --------------------------------------------------------------------------------------------------------


@app.task(bind=True)
async def ignore(self, state):
    await asyncio.sleep(0)
    if state:
        self.update_state(state=state, meta={"by": "hand"})
    raise Ignore


@app.task(bind=True)
def plain_ignore(self, state):
    if state:
        self.update_state(state=state, meta={"by": "hand"})
    raise Ignore


def _reject(task, requeue):
    redelivered = bool(task.request.delivery_info["redelivered"])
    note(task.request.id, f"redelivered {redelivered}")
    if redelivered:
        return "second time"
    raise Reject("not now", requeue=requeue)


@app.task(bind=True, acks_late=True)
async def reject(self, requeue):
    await asyncio.sleep(0)
    return _reject(self, requeue)


@app.task(bind=True, acks_late=True)
def plain_reject(self, requeue):
    return _reject(self, requeue)

"""Class-based tasks and their hooks."""

import asyncio
import json

from celery import current_task
from celery.exceptions import Ignore, Reject

from conformance_app import app, note


class Hooked(app.Task):
    """Notes each hook, what it was given, and whose request it found."""

    abstract = True
    max_retries = 1

    def _note(self, hook, task_id, *given):
        seen = [self.request.id, current_task.request.id] == [task_id, task_id]
        note(task_id, json.dumps([hook, *given, "its own request" if seen else self.request.id]))

    def before_start(self, task_id, args, kwargs):
        self._note("before_start", task_id, args, kwargs)

    def on_success(self, retval, task_id, args, kwargs):
        self._note("on_success", task_id, args, kwargs, retval)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        assert "Traceback" in str(einfo)
        self._note("on_failure", task_id, args, kwargs, repr(exc))

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        assert "Traceback" in str(einfo)
        self._note("on_retry", task_id, args, kwargs, repr(exc))

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        self._note("after_return", task_id, args, kwargs, status, repr(retval))


def _act(task, number, way):
    if way == "fail":
        raise KeyError(number)
    if way == "retry":
        raise task.retry(exc=ValueError(number), kwargs={"way": "return"}, countdown=0)
    if way == "ignore":
        raise Ignore
    if way == "reject":
        raise Reject("no", requeue=False)
    return number + 1


class Counting(Hooked):
    name = "conformance_app.hooks.counting"

    async def run(self, number, way="return"):
        await asyncio.sleep(0)
        return _act(self, number, way)


class PlainCounting(Hooked):
    name = "conformance_app.hooks.plain_counting"

    def run(self, number, way="return"):
        return _act(self, number, way)


class CountingOn(Counting):
    """Inherits its body, and whether it is async."""

    name = "conformance_app.hooks.counting_on"


class PlainCountingOn(PlainCounting):
    name = "conformance_app.hooks.plain_counting_on"


for cls in (Counting, PlainCounting, CountingOn, PlainCountingOn):
    app.register_task(cls())


@app.task(bind=True, base=Hooked)
async def decorated(self, number, way="return"):
    await asyncio.sleep(0)
    return _act(self, number, way)


@app.task(bind=True, base=Hooked)
def plain_decorated(self, number, way="return"):
    return _act(self, number, way)


class Guarded(app.Task):
    """A hook that refuses what it is given."""

    abstract = True

    def before_start(self, task_id, args, kwargs):
        raise PermissionError("not you")


@app.task(base=Guarded)
async def guarded(key):
    note(key, "ran")


@app.task(base=Guarded)
def plain_guarded(key):
    note(key, "ran")


class Surrounded(app.Task):
    """Surrounds each call of its body."""

    abstract = True

    def __call__(self, number, key):
        note(key, "before")
        try:
            return 10 * super().__call__(number, key)
        finally:
            note(key, "after")


@app.task(base=Surrounded)
async def surrounded(number, key):
    await asyncio.sleep(0)
    note(key, "body")
    return number


@app.task(base=Surrounded)
def plain_surrounded(number, key):
    note(key, "body")
    return number

"""The signals of tasks."""

import asyncio
import json

from celery import current_task, signals

from conformance_app import app, note, plain_released, released

PREFIX = "conformance_app.signals."


def _note(signal, *, name, task_id, sender, request_id=None, **details):
    """What a receiver sees: who sent it, whose task is current, and whose request that task has."""
    if name is None or not name.startswith(PREFIX):
        return
    current = current_task.request.id if current_task else None
    told = {"signal": signal, "sender": sender, "current": current, "request": request_id, **details}
    note(f"signals-{task_id}", json.dumps(told))


def _note_of_task(signal, task, task_id, request_id, **details):
    _note(signal, name=task.name, task_id=task_id, sender=task.name, request_id=request_id, **details)


@signals.before_task_publish.connect
def before_publish(sender, headers, routing_key, **_):
    _note("before_task_publish", name=sender, task_id=headers["id"], sender=sender, routing_key=routing_key)


@signals.after_task_publish.connect
def after_publish(sender, headers, routing_key, **_):
    _note("after_task_publish", name=sender, task_id=headers["id"], sender=sender, routing_key=routing_key)


@signals.task_received.connect
def received(sender, request, **_):
    _note("task_received", name=request.name, task_id=request.id, sender=type(sender).__name__)


@signals.task_prerun.connect
def prerun(sender, task_id, task, args, kwargs, **_):
    details = {"args": args, "kwargs": kwargs, "same": task is sender}
    _note_of_task("task_prerun", sender, task_id, task.request.id, **details)


@signals.task_postrun.connect
def postrun(sender, task_id, task, args, kwargs, retval, state, **_):
    details = {"args": args, "kwargs": kwargs, "retval": repr(retval), "state": state}
    _note_of_task("task_postrun", sender, task_id, task.request.id, **details)


@signals.task_success.connect
def success(sender, result, **_):
    request_id = sender.request.id
    _note_of_task("task_success", sender, request_id, request_id, result=result)


@signals.task_failure.connect
def failure(sender, task_id, exception, args, kwargs, traceback, einfo, **_):
    details = {"exception": repr(exception), "args": args, "traceback": bool(traceback), "einfo": str(einfo)[:9]}
    _note_of_task("task_failure", sender, task_id, sender.request.id, **details)


@signals.task_retry.connect
def retry(sender, request, reason, einfo, **_):
    details = {"reason": repr(reason.exc), "einfo": str(einfo)[:9]}
    _note_of_task("task_retry", sender, request.id, request.id, **details)


@signals.task_revoked.connect
def revoked(sender, request, terminated, signum, expired, **_):
    details = {"terminated": terminated, "expired": expired}
    _note_of_task("task_revoked", sender, request.id, request.id, **details)


@signals.task_unknown.connect
def unknown(sender, name, id, message, exc, **_):  # noqa: A002  Celery's name for it
    _note("task_unknown", name=name, task_id=id, sender=type(sender).__name__, exc=type(exc).__name__)


@signals.task_rejected.connect
def rejected(sender, message, exc, **_):
    marker = message.headers.get("marker")
    name = PREFIX if marker else None
    _note("task_rejected", name=name, task_id=marker, sender=type(sender).__name__, exc=type(exc).__name__)


@signals.task_internal_error.connect
def internal_error(sender, task_id, request, exception, einfo, **_):
    details = {"exception": repr(exception), "einfo": str(einfo)[:9]}
    _note_of_task("task_internal_error", sender, task_id, request["id"], **details)


def _act(task, number, way):
    if way == "fail":
        raise KeyError(number)
    if way == "exit":
        raise SystemExit(3)
    if way == "retry" and not task.request.retries:
        raise task.retry(exc=ValueError(number), countdown=0)
    return number + 1


@app.task(bind=True, max_retries=1)
async def act(self, number, way="return"):
    await asyncio.sleep(0)
    return _act(self, number, way)


@app.task(bind=True, max_retries=1)
def plain_act(self, number, way="return"):
    return _act(self, number, way)


@app.task
async def wait(key):
    note(key, "started")
    await released(key)


@app.task
def plain_wait(key):
    note(key, "started")
    plain_released(key)


@app.task
async def publish():
    """The id of a task that its body sends, of one that a gathered child sends, and of one that a group sends."""

    async def child():
        await asyncio.sleep(0)
        return act.delay(1).id

    (of_child,) = await asyncio.gather(child())
    return [act.delay(1).id, of_child, act.s(1).apply_async().id]


@app.task
def plain_publish():
    return [act.delay(1).id, act.apply_async((1,)).id, act.s(1).apply_async().id]

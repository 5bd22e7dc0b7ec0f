"""Tasks that are called off."""

import asyncio
import json

from celery.signals import task_revoked

from conformance_app import app, note, plain_released, released

PREFIX = "conformance_app.revoke."


@app.task(bind=True)
async def wait(self, key):
    return await _wait(self, key)


@app.task(bind=True)
def plain_wait(self, key):
    return _plain_wait(self, key)


@app.task(bind=True, acks_late=True)
async def wait_late(self, key):
    return await _wait(self, key)


@app.task(bind=True, acks_late=True)
def plain_wait_late(self, key):
    return _plain_wait(self, key)


async def _wait(task, key):
    note(f"{key}:started", task.request.id)
    try:
        await released(key)
    except asyncio.CancelledError:
        note(f"{key}:cancelled", task.request.id)
        await asyncio.sleep(0.05)  # a second cancellation would land here
        note(f"{key}:cleaned up", task.request.id)
        raise
    note(f"{key}:finished", task.request.id)
    return "waited"


def _plain_wait(task, key):
    note(f"{key}:started", task.request.id)
    plain_released(key)
    note(f"{key}:finished", task.request.id)
    return "waited"


@task_revoked.connect
def revoked(sender, request, terminated, signum, expired, **_):
    if sender.name.startswith(PREFIX):
        signal = None if signum is None else str(signum)
        told = {"sender": sender.name, "terminated": bool(terminated), "signal": signal, "expired": bool(expired)}
        note(f"{request.id}:revoked", json.dumps(told))

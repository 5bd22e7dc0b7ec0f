"""Tasks that wait for the test while the worker is stopped, resized or cut off."""

import asyncio
import os
import time

from conformance_app import app, note, notes, plain_released, released

kept = []


@app.task(bind=True, acks_late=True)
async def wait(self, key):
    note(f"{key}:started", self.request.id)
    await released(key)
    note(f"{key}:finished", self.request.id)
    return "waited"


@app.task(bind=True, acks_late=True)
def plain_wait(self, key):
    note(f"{key}:started", self.request.id)
    plain_released(key)
    note(f"{key}:finished", self.request.id)
    return "waited"


@app.task(bind=True, acks_late=True)
async def block(self, key):
    """Bad manners: blocks the loop."""
    note(f"{key}:started", self.request.id)
    plain_released(key)


@app.task(acks_late=True)
async def process_id():
    await asyncio.sleep(0)
    return os.getpid()


@app.task(acks_late=True)
def plain_process_id():
    return os.getpid()


@app.task(acks_late=True)
async def hoard(mib):
    return keep(mib)


@app.task(acks_late=True)
def plain_hoard(mib):
    return keep(mib)


def keep(mib):
    """Takes memory, and does not give it back."""
    block = bytearray(mib * 1024 * 1024)
    block[::4096] = b"x" * len(block[::4096])
    kept.append(block)
    return os.getpid()


@app.task(bind=True)
async def meet(self, key, party):
    """Returns once `party` of these run at the same time."""
    note(f"{key}:met", self.request.id)
    while len(_met(key)) < party:
        await asyncio.sleep(0.02)


@app.task(bind=True)
def plain_meet(self, key, party):
    note(f"{key}:met", self.request.id)
    while len(_met(key)) < party:
        time.sleep(0.02)


def _met(key):
    return notes.lrange(f"note:{key}:met", 0, -1)

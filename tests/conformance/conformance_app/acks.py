"""Tasks whose messages are acknowledged early, late, or not at all."""

from conformance_app import app, note, plain_released, released


@app.task
async def wait(key):
    return await _wait(key)


@app.task
def plain_wait(key):
    return _plain_wait(key)


@app.task(acks_late=True)
async def wait_late(key):
    return await _wait(key)


@app.task(acks_late=True)
def plain_wait_late(key):
    return _plain_wait(key)


async def _wait(key):
    note(f"{key}:started", "now")
    await released(key)
    return "waited"


def _plain_wait(key):
    note(f"{key}:started", "now")
    plain_released(key)
    return "waited"


def _again(task):
    """Whether the message has come back, which is noted."""
    again = bool(task.request.delivery_info["redelivered"])
    note(task.request.id, f"redelivered {again}")
    return again


async def _act(task, key, way):
    if _again(task):
        return "second time"
    if way == "wait":
        await released(key)
    return _fail(way)


def _plain_act(task, key, way):
    if _again(task):
        return "second time"
    if way == "wait":
        plain_released(key)
    return _fail(way)


def _fail(way):
    raise SystemExit(3) if way == "exit" else KeyError(way)


@app.task(bind=True, acks_late=True)
async def fail(self, key, way):
    return await _act(self, key, way)


@app.task(bind=True, acks_late=True)
def plain_fail(self, key, way):
    return _plain_act(self, key, way)


@app.task(bind=True, acks_late=True, acks_on_failure_or_timeout=False)
async def fail_unacknowledged(self, key, way):
    return await _act(self, key, way)


@app.task(bind=True, acks_late=True, acks_on_failure_or_timeout=False)
def plain_fail_unacknowledged(self, key, way):
    return _plain_act(self, key, way)


@app.task(bind=True, acks_late=True, acks_on_failure=True, acks_on_timeout=False)
async def fail_unacknowledged_on_timeout(self, key, way):
    return await _act(self, key, way)


@app.task(bind=True, acks_late=True, acks_on_failure=True, acks_on_timeout=False)
def plain_fail_unacknowledged_on_timeout(self, key, way):
    return _plain_act(self, key, way)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
async def fail_rejected_when_lost(self, key, way):
    return await _act(self, key, way)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def plain_fail_rejected_when_lost(self, key, way):
    return _plain_act(self, key, way)

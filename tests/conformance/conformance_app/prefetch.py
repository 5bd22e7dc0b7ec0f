"""Tasks that keep their slots while messages wait."""

from conformance_app import app, note, plain_released, released


@app.task
async def wait(key, number):
    return await _wait(key, number)


@app.task
def plain_wait(key, number):
    return _plain_wait(key, number)


@app.task(acks_late=True)
async def wait_late(key, number):
    return await _wait(key, number)


@app.task(acks_late=True)
def plain_wait_late(key, number):
    return _plain_wait(key, number)


async def _wait(key, number):
    note(f"{key}:started", number)
    await released(key)
    return number


def _plain_wait(key, number):
    note(f"{key}:started", number)
    plain_released(key)
    return number

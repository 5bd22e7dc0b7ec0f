"""Tasks that take longer than they may. Their limits come with the call where the task names none."""

import asyncio

from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import task_failure

from conformance_app import app, note, plain_released, released

PREFIX = "conformance_app.time_limits."


@app.task
async def wait(key):
    """Notes what interrupts it, and lets it do so."""
    note(key, "started")
    try:
        await released(key)
    except BaseException as error:
        await asyncio.sleep(0.05)  # a second interruption would land here
        note(key, type(error).__name__)
        raise
    note(key, "finished")
    return "waited"


@app.task
def plain_wait(key):
    note(key, "started")
    try:
        plain_released(key)
    except BaseException as error:
        note(key, type(error).__name__)
        raise
    note(key, "finished")
    return "waited"


@app.task(soft_time_limit=0.3)
async def wait_with_soft_limit(key):
    await released(key)


@app.task(soft_time_limit=0.3)
def plain_wait_with_soft_limit(key):
    plain_released(key)


@app.task(time_limit=0.3)
async def wait_with_hard_limit(key):
    await released(key)


@app.task(time_limit=0.3)
def plain_wait_with_hard_limit(key):
    plain_released(key)


@app.task
async def wait_with_remote_limit(key):
    """Its limits come from the remote command alone."""
    await released(key)


@app.task
def plain_wait_with_remote_limit(key):
    plain_released(key)


@app.task
async def clean_up(key):
    """Catches its soft limit."""
    try:
        await released(key)
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0)
        return "cleaned up"


@app.task
def plain_clean_up(key):
    try:
        plain_released(key)
    except SoftTimeLimitExceeded:
        return "cleaned up"


@app.task
async def clean_up_in_a_child(key):
    """The soft limit finds the body where it awaits others."""
    try:
        async with asyncio.TaskGroup() as children:
            children.create_task(released(key))
            children.create_task(asyncio.Event().wait())
    except SoftTimeLimitExceeded:
        return "cleaned up"


@app.task
async def clean_up_within_timeout(key):
    """How many cancellations asyncio still counts; the timeout's own would follow one that nobody took back."""
    try:
        async with asyncio.timeout(60):
            await released(key)
    except SoftTimeLimitExceeded:
        return asyncio.current_task().cancelling()


@app.task
async def go_on(key):
    """Goes on after its soft limit."""
    try:
        await released(key)
    except SoftTimeLimitExceeded:
        note(key, "soft")
    await released(key)


@app.task
def plain_go_on(key):
    try:
        plain_released(key)
    except SoftTimeLimitExceeded:
        note(key, "soft")
    plain_released(key)


@app.task
async def insist(key):
    """Returns in spite of its cancellation."""
    try:
        await released(key)
    except asyncio.CancelledError:
        return "all the same"


@app.task
async def ignore_cancellations(key):
    """Bad manners: does not end before the test says so."""
    while True:
        try:
            await released(key)
        except asyncio.CancelledError:
            note(key, "cancelled")
        else:
            note(key, "ended")
            return


class Hooked(app.Task):
    """Notes the hooks of what has failed."""

    abstract = True

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        note(f"{task_id}:hooks", f"on_failure {type(exc).__name__} {args[0]}")

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        note(f"{task_id}:hooks", f"after_return {status}")


@app.task(base=Hooked)
async def wait_with_hooks(key):
    await released(key)


@app.task(base=Hooked)
def plain_wait_with_hooks(key):
    plain_released(key)


@app.task
def tell_failure(request, error, traceback):
    """For `link_error`."""
    note(f"{request.id}:hooks", f"link_error {type(error).__name__}")


@task_failure.connect
def failed(sender, task_id, exception, **_):
    if sender.name.startswith(PREFIX):
        note(f"{task_id}:hooks", f"task_failure {type(exception).__name__}")

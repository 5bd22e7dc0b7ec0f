"""Whose request a body sees."""

import asyncio
import contextvars
import itertools

import redis
import redis.asyncio
from celery import current_task

from conformance_app import NOTES_URL, app

WAIT_S = 60
own = contextvars.ContextVar("own", default=None)


def _ids(task):
    """The request's id as the task and as Celery's current task have it."""
    return [task.request.id, current_task.request.id if current_task else None]


async def met(meeting, party):
    """Returns once `party` bodies wait here at the same time, in whichever processes and loops."""
    async with redis.asyncio.Redis.from_url(NOTES_URL, socket_timeout=2 * WAIT_S) as client:
        if await client.incr(f"met:{meeting}") == party:
            await client.rpush(f"leave:{meeting}", *range(party))
        assert await client.blpop([f"leave:{meeting}"], timeout=WAIT_S)


def plain_met(meeting, party):
    with redis.Redis.from_url(NOTES_URL, socket_timeout=2 * WAIT_S) as client:
        if client.incr(f"met:{meeting}") == party:
            client.rpush(f"leave:{meeting}", *range(party))
        assert client.blpop([f"leave:{meeting}"], timeout=WAIT_S)


@app.task(bind=True)
async def who(self, meeting, party):
    """What is seen in each place while `party` bodies are under way."""
    seen = {"body": _ids(self)}
    await met(meeting, party)

    async def child():
        before = _ids(self)
        await asyncio.sleep(0)
        return [*before, *_ids(self)]

    seen["body after an await"] = _ids(self)
    seen["gather"] = [*itertools.chain(*await asyncio.gather(child(), child()))]
    seen["create_task"] = await asyncio.create_task(child())
    async with asyncio.TaskGroup() as group:
        started = group.create_task(child())
    seen["task group"] = started.result()
    seen["wait_for"] = await asyncio.wait_for(child(), WAIT_S)
    async with asyncio.timeout(WAIT_S):
        seen["timeout"] = await child()
    called = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: called.set_result(_ids(self)))
    seen["callback of the loop"] = await called
    seen["body at its end"] = _ids(self)
    return seen


@app.task(bind=True)
def plain_who(self, meeting, party):
    seen = {"body": _ids(self)}
    plain_met(meeting, party)
    seen["body at its end"] = _ids(self)
    return seen


@app.task(bind=True)
async def who_in_a_thread(self, meeting, party):
    await met(meeting, party)
    return {"thread": await asyncio.to_thread(_ids, self), "body after it": _ids(self)}


@app.task(bind=True)
async def keep_a_variable(self, meeting, party):
    """A context variable as found, and after all others have set theirs: in the body, in a child, in a thread."""
    found = own.get()
    own.set(self.request.id)
    await met(meeting, party)

    async def child():
        return own.get()

    return [found, own.get(), await asyncio.create_task(child()), await asyncio.to_thread(own.get)]


FIELDS = (
    "id task args kwargs retries root_id parent_id group is_eager called_directly hostname origin "
    "timelimit eta expires correlation_id shadow argsrepr kwargsrepr stamps stamped_headers"
)


def _described(request):
    return {name: getattr(request, name) for name in FIELDS.split()} | {
        "own": request.get("own"),
        "routing_key": request.delivery_info["routing_key"],
        "priority": request.delivery_info["priority"],
        "redelivered": bool(request.delivery_info["redelivered"]),
    }


@app.task(bind=True)
async def describe(self, *args, **kwargs):
    await asyncio.sleep(0)
    return _described(self.request)


@app.task(bind=True)
def plain_describe(self, *args, **kwargs):
    return _described(self.request)


@app.task(bind=True)
async def inner(self):
    await asyncio.sleep(0)
    return [self.name.rpartition(".")[-1], self.request.id, self.request.called_directly]


@app.task(bind=True)
def plain_inner(self):
    return [self.name.rpartition(".")[-1], self.request.id, self.request.called_directly]


@app.task(bind=True)
async def call_directly(self):
    """Another task as a function: both kinds, and then one's own request again."""
    await asyncio.sleep(0)
    return [inner(), plain_inner(), _ids(self)]


@app.task(bind=True)
def plain_call_directly(self):
    return [inner(), plain_inner(), _ids(self)]


def _applied(task):
    result = task.apply()
    return [result.id, result.state, result.result]


@app.task(bind=True)
async def apply_eagerly(self):
    await asyncio.sleep(0)
    return [_applied(inner), _applied(plain_inner), _ids(self)]


@app.task(bind=True)
def plain_apply_eagerly(self):
    return [_applied(inner), _applied(plain_inner), _ids(self)]


@app.task(bind=True)
async def await_another(self):
    """Another async task's body, awaited: it is part of this task."""
    return [await inner.async_run(), _ids(self)]


@app.task(bind=True)
async def report_progress(self, key):
    """From the body, and from a child of it."""
    self.update_state(state="PROGRESS", meta={"done": 1})
    await met(f"{key} 1", 2)

    async def child():
        self.update_state(state="PROGRESS", meta={"done": 2})

    await asyncio.create_task(child())
    await met(f"{key} 2", 2)
    return "done"


@app.task(bind=True)
def plain_report_progress(self, key):
    self.update_state(state="PROGRESS", meta={"done": 1})
    plain_met(f"{key} 1", 2)
    self.update_state(state="PROGRESS", meta={"done": 2})
    plain_met(f"{key} 2", 2)
    return "done"

"""An app of somebody else's that reports to Sentry, set up as the SDK's documentation says; of ours, the pool alone.

`SENTRY_APP_URL` is its broker and backend, `SENTRY_APP_DSN` where it reports.
"""

import asyncio
import os
import threading
from collections import Counter, defaultdict
from contextlib import asynccontextmanager

import sentry_sdk
from celery import Celery
from celery.exceptions import Ignore, Reject
from sentry_sdk.integrations.asyncio import enable_asyncio_integration

import legit_embedding.pool  # noqa: F401  makes `-P legit_async` known

PLAIN_PARTY = 8

app = Celery(
    "sentry_app",
    task_cls="legit_embedding.pool.task:AsyncTask",
    broker=os.environ["SENTRY_APP_URL"],
    backend=os.environ["SENTRY_APP_URL"],
)
app.conf.update(
    broker_connection_retry_on_startup=True,
    legit_async_lifespan="sentry_app:lifespan",
    task_send_sent_event=False,
)

# All integrations that the SDK turns on by itself, with the flush at exit; its queue drops what exceeds its size.
sentry_sdk.init(dsn=os.environ["SENTRY_APP_DSN"], traces_sample_rate=1.0, transport_queue_size=1000)


@asynccontextmanager
async def lifespan(_app):
    enable_asyncio_integration()
    yield


_arrived = Counter()
_complete = defaultdict(asyncio.Event)
_barrier = threading.Barrier(PLAIN_PARTY)


async def everybody_is_here(meeting, party):
    """Returns once `party` tasks of this process wait here at the same time."""
    _arrived[meeting] += 1
    if _arrived[meeting] == party:
        _complete[meeting].set()
    await _complete[meeting].wait()


# -- one failure -------------------------------------------------------------------------------------------------------


async def charge(customer):
    await asyncio.sleep(0)
    raise ValueError(f"{customer} has no money")


@app.task
async def fail(customer):
    await charge(customer)


def plain_charge(customer):
    raise ValueError(f"{customer} has no money")


@app.task
def plain_fail(customer):
    plain_charge(customer)


@app.task
async def fail_in_child(customer):
    await asyncio.gather(charge(customer), asyncio.sleep(0))


@app.task
async def fail_in_thread(customer):
    await asyncio.to_thread(plain_charge, customer)


@app.task(bind=True, autoretry_for=(ValueError,), retry_kwargs={"max_retries": 2, "countdown": 0}, retry_backoff=False)
async def fail_after_retries(self, customer):
    await charge(customer)


@app.task(throws=(ValueError,))
async def fail_as_expected(customer):
    await charge(customer)


@app.task
async def ignore():
    await asyncio.sleep(0)
    raise Ignore


@app.task(acks_late=True)
async def reject():
    await asyncio.sleep(0)
    raise Reject("not now", requeue=False)


@app.task(soft_time_limit=0.2, time_limit=30)
async def exceed_soft_limit():
    await asyncio.Event().wait()


@app.task(time_limit=0.2)
async def exceed_hard_limit():
    await asyncio.Event().wait()


@app.task
async def leave():
    await asyncio.sleep(0)
    raise SystemExit(3)


@app.task
async def succeed():
    await asyncio.sleep(0)
    return "done"


# -- many at once ------------------------------------------------------------------------------------------------------


@app.task
async def fail_among_many(customer, meeting, party):
    """Tags and breadcrumbs before and after the meeting, in a child and in a thread; then a failure."""
    sentry_sdk.set_tag("customer", customer)
    sentry_sdk.add_breadcrumb(message=f"{customer} arrives")
    await everybody_is_here(meeting, party)

    async def look():
        await asyncio.sleep(0)
        sentry_sdk.add_breadcrumb(message=f"{customer} looks")  # in the child's own scope, a copy of this one
        return sentry_sdk.get_isolation_scope()._tags["customer"]

    seen = [sentry_sdk.get_isolation_scope()._tags["customer"], *await asyncio.gather(look(), look())]
    seen.append(await asyncio.to_thread(lambda: sentry_sdk.get_isolation_scope()._tags["customer"]))
    sentry_sdk.set_context("seen", {"customers": seen})
    sentry_sdk.add_breadcrumb(message=f"{customer} leaves")
    await everybody_is_here(f"{meeting}-end", party)
    await charge(customer)


@app.task
def plain_fail_among_many(customer):
    sentry_sdk.set_tag("customer", customer)
    sentry_sdk.add_breadcrumb(message=f"{customer} arrives")
    _barrier.wait(30)
    sentry_sdk.add_breadcrumb(message=f"{customer} leaves")
    _barrier.wait(30)
    plain_charge(customer)


# -- traces ------------------------------------------------------------------------------------------------------------


@app.task
async def trace_among_many(customer, meeting, party):
    """Spans before and after the meeting and in children, then a task that goes on with the trace."""
    with sentry_sdk.start_span(op="mine", name=f"outer {customer}"):
        await everybody_is_here(meeting, party)

        async def look():
            with sentry_sdk.start_span(op="mine", name=f"inner {customer}"):
                await asyncio.sleep(0)

        await asyncio.gather(look(), look())
    return succeed.delay().id

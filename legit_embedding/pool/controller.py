"""The worker around the pool, Celery's `WorkController`: how a shutdown waits, and what becomes of what still runs.

Celery's own soft shutdown sleeps in the signal's handler for all of `worker_soft_shutdown_timeout`, also where the last
task ends a moment later, or where `worker_enable_soft_shutdown_on_idle` is set and nothing runs at all.
"""

import logging
import weakref
from functools import partial
from typing import Any

from celery import Celery
from celery.concurrency import get_implementation
from celery.worker import state

from legit_embedding.pool import compat

logger = logging.getLogger(__name__)

ACKS = {"ack_log_error", "reject_log_error"}

_workers: "weakref.WeakKeyDictionary[Celery, weakref.ref[Any]]" = weakref.WeakKeyDictionary()


def adopt(sender: Any = None, **_: object) -> None:
    """On Celery's signal `worker_init`: a worker with a pool that can be waited for waits for it."""
    if hasattr(get_implementation(sender.pool_cls), "wait_until_idle"):
        _workers[sender.app] = weakref.ref(sender)
        sender.wait_for_soft_shutdown = partial(wait_for_soft_shutdown, sender)


def wait_for_soft_shutdown(worker: Any) -> None:
    """In the place of the worker's own: on the consumer's thread, in the handler of a signal."""
    conf = worker.app.conf
    timeout_s = conf.worker_soft_shutdown_timeout
    busy = bool(state.active_requests) or conf.worker_enable_soft_shutdown_on_idle
    if timeout_s > 0 and busy and worker.pool is not None:
        logger.warning("Initiating Soft Shutdown, terminating in %s seconds", timeout_s)
        worker.pool.wait_until_idle(timeout_s)
    compat.announce_cold_shutdown()


def serve_acks_and_timers(hub: Any) -> None:
    """What a hub that no longer runs must do all the same while a warm shutdown waits, for minutes perhaps.

    Acks: Celery queues them on the hub, and what is done and not acknowledged runs again should a supervisor lose its
    patience. Heartbeats: AMQP servers drop a connection that is silent for two of them, and all its acks with it.
    """
    for promise in hub._pop_ready():  # noqa: SLF001  kombu has no public name for it
        if getattr(promise.fun, "__name__", None) in ACKS:
            promise()
        else:
            hub.call_soon(promise)
    hub.fire_timers()


def cancel_requests(app: Celery) -> None:
    """Cancels what runs as a cold shutdown does, with its events and states; late acks are left to the broker."""
    reference = _workers.get(app)
    worker = reference() if reference is not None else None
    consumer = getattr(worker, "consumer", None)
    if consumer is not None:
        compat.cancel_requests(consumer)

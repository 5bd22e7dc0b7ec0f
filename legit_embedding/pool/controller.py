"""The worker around the pool, Celery's `WorkController`: how a shutdown waits, and what becomes of what still runs.

Celery's own soft shutdown sleeps in the signal's handler for all of `worker_soft_shutdown_timeout`, also where the last
task ends a moment later, or where `worker_enable_soft_shutdown_on_idle` is set and nothing runs at all.
"""

import logging
import threading
import weakref
from functools import partial
from typing import Any

from celery.concurrency import get_implementation
from celery.worker import state

from legit_embedding.pool import compat

logger = logging.getLogger(__name__)

ACKS = {"ack_log_error", "reject_log_error"}

_workers: "weakref.WeakSet[Any]" = weakref.WeakSet()


def adopt(sender: Any = None, **_: object) -> None:
    """On Celery's signal `worker_init`: a worker with a pool that can be waited for waits for it."""
    if hasattr(get_implementation(sender.pool_cls), "wait_until_idle"):
        _workers.add(sender)
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


def allow_reentry(hub: Any) -> None:
    """Each ack takes this lock of the hub's on the consumer's thread; so does a signal's handler that interrupts it."""
    if isinstance(getattr(hub, "_ready_lock", None), type(threading.Lock())):
        hub._ready_lock = threading.RLock()  # noqa: SLF001  kombu has no public name for it


def serve_acks_and_timers(hub: Any) -> None:
    """What a hub that no longer runs must do all the same while a warm shutdown waits, for minutes perhaps.

    Acks: Celery queues them on the hub, and what is done and not acknowledged runs again should a supervisor lose its
    patience. Heartbeats: AMQP servers drop a connection that is silent for two of them, and all its acks with it.
    """
    for promise in hub._pop_ready():  # noqa: SLF001  as above
        # Before Celery 5.7 what sends its events stands there as it is, without a promise around it.
        if getattr(getattr(promise, "fun", promise), "__name__", None) not in ACKS:
            hub.call_soon(promise)
            continue
        try:
            promise()
        except Exception:
            # The connection is gone, and the broker hands the message out again. What still runs goes on.
            logger.exception("an ack failed while the worker waits for its tasks")
    try:
        hub.fire_timers()
    except Exception:
        logger.exception("a timer failed while the worker waits for its tasks")


def cancel_requests(pool: Any) -> None:
    """Cancels what runs as a cold shutdown does, with its events and states; late acks are left to the broker."""
    for worker in list(_workers):
        consumer = getattr(worker, "consumer", None)
        if worker.pool is pool and consumer is not None:
            compat.cancel_requests(consumer)

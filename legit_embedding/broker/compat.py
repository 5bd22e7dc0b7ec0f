"""What differs between kombu 5.5, 5.6 and 5.7, redis-py's versions and Celery's. No other module asks for one."""

import sys
from typing import Any

import redis

RESTORE_DEFAULTS = {"unacked_restore_interval": 10, "unacked_restore_throttle": 10}
"""Kombu's own, which before 5.7 are no options of its."""


def topics_of(channel: Any, exchange: str, routing_key: str) -> list[str]:
    """Where a message of a fanout exchange is published; one topic before kombu 5.7."""
    several = getattr(channel, "_get_publish_topics", None)
    if several is None:
        return [channel._get_publish_topic(exchange, routing_key)]  # noqa: SLF001  as below
    topics: list[str] = several(exchange, routing_key)
    return topics


def update_polling(poller: Any) -> None:
    """At the end of a poller's turn; from kombu 5.7 on it has something to do then."""
    update = getattr(poller, "_update_brpop_polling", None)
    if update is not None:
        update()


def let_go_of_forgotten() -> None:
    """After a connection was lost: what Celery has forgotten with it may be freed, and then goes back to its queue.

    Celery 5.5 leaves the requests that waited in its table of all requests, for ever, and so keeps their messages:
    https://github.com/celery/celery/blob/v5.5.3/celery/worker/consumer/consumer.py, `on_close`.
    """
    state = sys.modules.get("celery.worker.state")
    if state is None:  # another consumer than Celery's
        return
    for task_id, request in list(state.requests.items()):
        if request not in state.reserved_requests and request not in state.active_requests:
            state.requests.pop(task_id, None)  # a thread of the pool may have been here


def connection_of(pool: Any) -> Any:
    """A connection out of a pool of redis-py's, which before 5.3 asked for the name of a command."""
    return pool.get_connection() if redis.VERSION >= (5, 3) else pool.get_connection("_")

"""What differs between kombu 5.5, 5.6 and 5.7, and redis-py's versions. No other module asks for one."""

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


def connection_of(pool: Any) -> Any:
    """A connection out of a pool of redis-py's, which before 5.3 asked for the name of a command."""
    return pool.get_connection() if redis.VERSION >= (5, 3) else pool.get_connection("_")

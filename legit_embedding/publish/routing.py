"""Which stream a task's results go to. Pure.

`reply_to` is a name that a message brings along, on a server that often is the broker's too: XADD to a queue that is
empty just now, to `_kombu.binding.*` or to `unacked` creates a key of the wrong type there and stops the broker for
everybody. Key names: kombu/transport/redis.py, celery/backends/base.py, celery/events/event.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self

from legit_embedding.config import Settings

MAX_NAME_BYTES = 512
PRIORITY_SEPARATOR = "\x06\x16"
"""Stands between a queue's name and a priority in the keys of kombu's Redis transport."""

BROKER_KEYS = frozenset(
    {"unacked", "unacked_index", "unacked_mutex", "unacked_leases", "unacked_deliveries", "celeryev"}
)
BROKER_PREFIXES = ("unacked_lease.", "_kombu.", "celeryev.", "celery-task-meta-", "celery-taskset-meta-")
BROKER_SUFFIXES = (".pidbox",)
OWN_PREFIX = "legit:"
"""What this package itself keeps on the result server: the routing switch, the workers' figures."""


@dataclass(frozen=True, slots=True)
class RoutingRules:
    """What a `reply_to` is held against.

    `allow` are glob patterns (case matters); `queues` the broker's queues that are known by name; `key_prefix` is what
    the broker puts before each of its keys (kombu's `global_keyprefix`).
    """

    global_stream: str
    dead_letter_stream: str = "embeddings:dead"
    allow: tuple[str, ...] = ("*",)
    queues: frozenset[str] = frozenset()
    key_prefix: str = ""

    @classmethod
    def create(cls, settings: Settings, *, queues: Iterable[str] = (), key_prefix: str = "") -> Self:
        """The rules that `settings` ask for; `queues` are those that the worker knows."""
        return cls(
            global_stream=settings.results_stream,
            dead_letter_stream=settings.dead_letter_stream,
            allow=settings.reply_to_allow,
            queues=frozenset(queues),
            key_prefix=key_prefix,
        )


@dataclass(frozen=True, slots=True)
class Route:
    """Where an entry goes; `rejected` is the `reply_to` that may not be used, None where nothing was refused.

    Of a name that is too long it is the first `MAX_NAME_BYTES` characters.
    """

    stream: str
    rejected: str | None = None


def route(reply_to: str | None, *, rules: RoutingRules, enabled: bool) -> Route:
    """The stream for `reply_to`: the global one where it is absent or empty, routing is off, or it may not be used."""
    if not reply_to or not enabled or reply_to == rules.global_stream:
        return Route(rules.global_stream)
    if refusal(reply_to, rules=rules) is not None:
        return Route(rules.global_stream, rejected=reply_to[:MAX_NAME_BYTES])
    return Route(reply_to)


def refusal(name: str, *, rules: RoutingRules) -> str | None:
    """Why `name` may not be used as a `reply_to`, in words; None where the rules have nothing against it."""
    if len(name) > MAX_NAME_BYTES or len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    if not name.isprintable():
        return "it holds control characters"
    if not any(fnmatchcase(name, pattern) for pattern in rules.allow):
        return "no pattern of LEGIT_REPLY_TO_ALLOW matches it"
    bare = name.removeprefix(rules.key_prefix)
    return _owner(name, rules) or (None if bare == name else _owner(bare, rules))


def _owner(name: str, rules: RoutingRules) -> str | None:
    if name in rules.queues or name in BROKER_KEYS:
        return "it is a key of the broker"
    if name.startswith(BROKER_PREFIXES) or name.endswith(BROKER_SUFFIXES):
        return "it is a key of the broker"
    if name.startswith(OWN_PREFIX) or name == rules.dead_letter_stream:
        return "it is a key of this worker"
    return None

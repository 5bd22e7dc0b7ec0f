"""What an error of the result server means for the entry that met it. Pure.

Decided by the class of redis-py's exception: it takes the code off the messages of the errors that it knows (OOM,
READONLY, NOPERM, ...). Codes that it does not know stand at the front of the message.
"""

from dataclasses import dataclass
from enum import IntEnum

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError


class Scope(IntEnum):
    """How much must work again before a trouble is over, from little to much."""

    LINE = 1
    """Any answer of the server proves it gone."""

    WRITES = 2
    """Gone when any entry is confirmed."""

    GLOBAL_STREAM = 3
    """Gone when an entry on the global stream is confirmed."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is waited out: the entry is kept and tried again, for ever.

    `kind` names it in metrics and reports; `reconnect` asks for new connections, because another server may answer
    there now.
    """

    kind: str
    scope: Scope
    reconnect: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """This stream will not take this entry, whenever it is tried: the entry goes to the global stream."""

    kind: str


Verdict = Trouble | Refused

# The order matters: redis-py's authentication and loading errors are connection errors, its errors of a cluster and of
# permission are response errors.
_TROUBLES: tuple[tuple[type[BaseException], Trouble], ...] = (
    (AuthenticationError, Trouble("authentication", Scope.LINE, reconnect=True)),
    (AuthorizationError, Trouble("authentication", Scope.LINE, reconnect=True)),
    (AuthenticationWrongNumberOfArgsError, Trouble("authentication", Scope.LINE, reconnect=True)),
    (BusyLoadingError, Trouble("loading", Scope.LINE)),
    (OutOfMemoryError, Trouble("out_of_memory", Scope.WRITES)),
    (ReadOnlyError, Trouble("read_only", Scope.WRITES, reconnect=True)),
    (ClusterDownError, Trouble("cluster_down", Scope.WRITES)),
    (TryAgainError, Trouble("cluster_down", Scope.WRITES)),
    # The outcome is unknown: tried again, so that a duplicate is possible and a loss is not.
    (RedisTimeoutError, Trouble("timeout", Scope.LINE, reconnect=True)),
    (TimeoutError, Trouble("timeout", Scope.LINE, reconnect=True)),
    (RedisConnectionError, Trouble("unreachable", Scope.LINE)),
    (OSError, Trouble("unreachable", Scope.LINE)),
)

_REFUSALS: tuple[tuple[type[BaseException], str], ...] = (
    (NoPermissionError, "no_permission"),
    (AskError, "other_node"),
    (MovedError, "other_node"),
    (ClusterCrossSlotError, "other_node"),
)


def classify(error: BaseException, *, on_global_stream: bool) -> Verdict:
    """What becomes of an entry that met `error`; nothing is refused on the global stream, there is no further one."""
    for kind, trouble in _TROUBLES:
        if isinstance(error, kind):
            return trouble
    refused = _refusal_kind(error)
    if refused is None:
        return _other(error)
    return Trouble(refused, Scope.GLOBAL_STREAM) if on_global_stream else Refused(refused)


def _refusal_kind(error: BaseException) -> str | None:
    """Why the stream itself cannot take the entry; None where that is not what the error says."""
    for kind, name in _REFUSALS:
        if isinstance(error, kind):
            return name
    if not isinstance(error, ResponseError):
        return None
    code = error_code(error)
    if code == "WRONGTYPE":
        return "wrong_type"
    # Without a code it is a plain ERR, an answer to this command alone: an exhausted ID, a syntax the key refuses.
    return "error" if code is None else None


def _other(error: BaseException) -> Trouble:
    code = error_code(error) if isinstance(error, ResponseError) else None
    if code is not None:  # MISCONF, NOREPLICAS, BUSY, UNKILLABLE and whatever comes: the server's own condition
        return Trouble(code.lower(), Scope.WRITES)
    return Trouble("internal", Scope.LINE, reconnect=True)


def error_code(error: BaseException) -> str | None:
    """The code at the front of a server's error message; None for a plain ERR, whose code redis-py takes off."""
    first = str(error).split(" ", 1)[0].rstrip(":")
    return first if len(first) > 1 and first.isascii() and first.isalpha() and first.isupper() else None

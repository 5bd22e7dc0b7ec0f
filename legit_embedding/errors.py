"""One tree of errors. Each is translated at the boundary where it arises, and decided on once.

`EmbeddingError` and its subclasses become error entries on a result stream: `code` is the entry's `error_type` and the
message is its `error`, so a message is one readable sentence that names the field or the setting and the remedy.
`transient` says whether the worker tries again by itself before it writes that entry.
"""

from typing import ClassVar


class LegitError(Exception):
    """Anything this package raises on purpose."""


class ConfigurationError(LegitError):
    """A setting, `models.toml` or the rename tables cannot be used; the message names the field and the remedy."""


class WrongPoolError(LegitError):
    """The embedding tasks run only under `-P legit_async`, whose loop holds the models and the publisher."""


class ShuttingDownError(LegitError):
    """The worker is stopping; the task goes back to its queue."""


class EmbeddingError(LegitError):
    """Something that becomes an error entry. Raise a subclass."""

    code: ClassVar[str] = "internal"
    transient: ClassVar[bool] = False


class InvalidEnvelopeError(EmbeddingError):
    """The task's envelope cannot be understood."""

    code = "invalid_envelope"


class InvalidItemError(EmbeddingError):
    """One item breaks the contract; its neighbours are unaffected."""

    code = "invalid_item"


class SourceNotAllowedError(EmbeddingError):
    """A path, host or shm root that the settings do not allow."""

    code = "source_not_allowed"


class SourceNotFoundError(EmbeddingError):
    """No such file, or HTTP 404 or 410."""

    code = "source_not_found"


class SourceUnavailableError(EmbeddingError):
    """Time-out, connection error, HTTP 5xx or 429."""

    code = "source_unavailable"
    transient = True


class SourceTooLargeError(EmbeddingError):
    """Over a limit of bytes, pixels or (with `truncate` false) tokens."""

    code = "source_too_large"


class UndecodableError(EmbeddingError):
    """Not an image of an allowed format, broken, or not text."""

    code = "undecodable"


class UnknownModelError(EmbeddingError):
    """The model is not declared in `models.toml`."""

    code = "unknown_model"


class ModelUnavailableError(EmbeddingError):
    """The model cannot be loaded now; before `retry_after_s` seconds have passed the answer will be the same.

    `permanent`: it stays the same until the worker starts with another configuration.
    """

    code = "model_unavailable"
    transient = True

    def __init__(self, message: str, *, retry_after_s: float = 0.0, permanent: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.permanent = permanent


class DeviceOutOfMemoryError(EmbeddingError):
    """The device has not enough memory for this batch; for a batch of one, not for this item at all."""

    code = "out_of_memory"


class InvalidVectorError(EmbeddingError):
    """The model gave NaN, infinity, or a vector of zero norm."""

    code = "invalid_vector"


class ExpiredError(EmbeddingError):
    """The task's `expires` passed before its turn."""

    code = "expired"


class GivenUpError(EmbeddingError):
    """The task was delivered many times and never finished: most likely it kills its workers."""

    code = "given_up"


class InternalError(EmbeddingError):
    """A bug of ours, reported to Sentry."""

    code = "internal"


ERROR_TYPES: frozenset[str] = frozenset(
    {
        "invalid_envelope",
        "invalid_item",
        "source_not_allowed",
        "source_not_found",
        "source_unavailable",
        "source_too_large",
        "undecodable",
        "unknown_model",
        "model_unavailable",
        "out_of_memory",
        "invalid_vector",
        "expired",
        "given_up",
        "internal",
    }
)
"""Every `error_type` that the wire knows."""

"""What a model is to the rest of the worker: prepare on any thread, forward on the device's one thread, finish on any.

A plugin registers an `Adapter` class under the entry-point group `legit_embedding.models`; `load` gives it one entry of
`models.toml` and gets an `EmbeddingModel` back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from legit_embedding.errors import EmbeddingError
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.values import InputKind, ModelInfo, Options, Outcome, Payload, Prepared


@dataclass(frozen=True, slots=True)
class InputLimits:
    """What one input may be: `max_pixels` of a decoded image."""

    max_pixels: int


class EmbeddingModel(Protocol):
    """A loaded model."""

    @property
    def info(self) -> ModelInfo:
        """What this model is."""
        ...

    @property
    def accepts(self) -> frozenset[InputKind]:
        """Which payloads `prepare` takes."""
        ...

    @property
    def prepare_chunk(self) -> int:
        """How many payloads one call of `prepare` should get: 1 where one takes milliseconds, else more."""
        ...

    @property
    def prepared_nbytes(self) -> int:
        """No single `Prepared` holds more bytes than this; memory is reserved by it before the work begins."""
        ...

    def fingerprint(self, options: Options) -> str:
        """Identifies weights, revision, preprocessing, pooling, prompt and options: equal ones may be compared."""
        ...

    def prepare(self, payloads: Sequence[Payload], options: Options) -> list[Prepared | EmbeddingError]:
        """Decodes and preprocesses, or tokenises. Any thread, several at once. One result a payload, in order.

        A payload's own fault (`UndecodableError`, `SourceTooLargeError`, `InvalidItemError`) is returned in its place,
        never raised.
        """
        ...

    def forward(self, batch: Sequence[Prepared]) -> Any:
        """Computes one batch, on the device's thread. What it returns only `finish` reads.

        Raises:
            DeviceOutOfMemoryError: the batch is too large; the model stays usable.
        """
        ...

    def finish(self, raw: Any, options: Sequence[Options]) -> list[Outcome]:
        """Vectors, each of shape (dim,) or (options.dimensions,), float32, for each item of the batch, in order.

        Any thread. An item whose vector is NaN, infinite or zero gets `InvalidVectorError` in its place.
        """
        ...

    def close(self) -> None:
        """Frees the weights. Called once, when nobody uses the model."""
        ...


class Adapter(Protocol):
    """A family of models: what an entry point of the group `legit_embedding.models` names."""

    modality: ClassVar[str]

    def load(self, spec: ModelSpec, limits: InputLimits) -> EmbeddingModel:
        """Loads the weights; takes seconds or minutes, on a thread of its own.

        Raises:
            ModelUnavailableError: weights cannot be read or reached; the message says where from and what to do.
            ConfigurationError: the entry of `models.toml` cannot be used.
        """
        ...

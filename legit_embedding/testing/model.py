"""A model without weights, and the adapter that loads it: both do what a test tells them, and keep what they saw."""

import hashlib
import threading
from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

import numpy as np

from legit_embedding.errors import (
    DeviceOutOfMemoryError,
    EmbeddingError,
    InvalidItemError,
    SourceTooLargeError,
    UndecodableError,
)
from legit_embedding.models.base import InputLimits
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.models.vectors import finalize, fingerprint
from legit_embedding.testing.gate import Gate
from legit_embedding.values import (
    BatchLimits,
    FloatMatrix,
    FloatVector,
    InputKind,
    ModelInfo,
    Options,
    Outcome,
    Payload,
    Prepared,
)

ACCEPTED_BY_MODALITY: dict[str, frozenset[InputKind]] = {
    "text": frozenset({"text"}),
    "image": frozenset({"bytes", "tensor"}),
}


class FakeModel:
    """An `EmbeddingModel` whose vectors follow from the payload alone; every method may be called from any thread.

    A payload's *key* is the text, the bytes as Latin-1, or a tensor's digest. `undecodable` keys are refused by
    `prepare`, `broken` ones get a vector with NaN in it, more than `out_of_memory_above` items are too much for
    `forward`, and `fail` is asked before each forward: the exception that it returns for the batch's keys is raised.
    All four may be changed at any time. `gate` holds forwards, `prepare_gate`, `finish_gate` and `close_gate` the other
    stages; `batches` are the keys of each forward, in the order in which they began.
    """

    def __init__(
        self,
        *,
        name: str = "fake",
        modality: str = "text",
        accepts: Collection[InputKind] | None = None,
        dim: int = 8,
        device: str = "cpu",
        nbytes: int = 1000,
        limits: BatchLimits = BatchLimits(max_items=8),  # noqa: B008  frozen
        prepare_chunk: int = 1,
        prepared_nbytes: int = 1024,
        max_tokens_an_item: int = 256,
        undecodable: Collection[str] = (),
        broken: Collection[str] = (),
        out_of_memory_above: int | None = None,
    ) -> None:
        self.undecodable = undecodable
        self.broken = broken
        self.out_of_memory_above = out_of_memory_above
        self.fail: Callable[[Sequence[str]], BaseException | None] = lambda _: None
        self.gate = Gate()
        self.prepare_gate = Gate()
        self.finish_gate = Gate()
        self.close_gate = Gate()
        self.batches: list[list[str]] = []
        self.prepared: list[int] = []
        self.forward_threads: set[str] = set()
        self.closes = 0
        self._info = ModelInfo(
            name=name,
            adapter="fake",
            modality=modality,
            dim=dim,
            device=device,
            dtype="float32",
            nbytes=nbytes,
            limits=limits,
            untrained=True,
        )
        self._accepts = ACCEPTED_BY_MODALITY[modality] if accepts is None else frozenset(accepts)
        self._prepare_chunk = prepare_chunk
        self._prepared_nbytes = prepared_nbytes
        self._max_tokens_an_item = max_tokens_an_item
        self._lock = threading.Lock()

    @property
    def info(self) -> ModelInfo:
        """See `EmbeddingModel`."""
        return self._info

    @property
    def accepts(self) -> frozenset[InputKind]:
        """See `EmbeddingModel`."""
        return self._accepts

    @property
    def prepare_chunk(self) -> int:
        """See `EmbeddingModel`."""
        return self._prepare_chunk

    @property
    def prepared_nbytes(self) -> int:
        """See `EmbeddingModel`; every `Prepared` holds exactly so many."""
        return self._prepared_nbytes

    def fingerprint(self, options: Options) -> str:
        """See `EmbeddingModel`; `truncate` is no part of it, because it changes no vector."""
        return fingerprint(
            model=self._info.name,
            prompt=options.prompt,
            normalize=options.normalize,
            dimensions=options.dimensions or self._info.dim,
        )

    def prepare(self, payloads: Sequence[Payload], options: Options) -> list[Prepared | EmbeddingError]:
        """See `EmbeddingModel`; a text has a token a word, anything else has one."""
        with self._lock:
            self.prepared.append(len(payloads))
        self.prepare_gate.enter()
        return [self._prepare_one(payload, options) for payload in payloads]

    def forward(self, batch: Sequence[Prepared]) -> FloatMatrix:
        """See `EmbeddingModel`; what is returned has shape (n, dim)."""
        keys = [str(one.data) for one in batch]
        with self._lock:
            self.batches.append(keys)
            self.forward_threads.add(threading.current_thread().name)
        self.gate.enter()
        if self.out_of_memory_above is not None and len(batch) > self.out_of_memory_above:
            raise DeviceOutOfMemoryError(f"{len(batch)} items are more than {self.out_of_memory_above}")
        error = self.fail(keys)
        if error is not None:
            raise error
        matrix = _matrix(keys, self._info.dim)
        for row, key in enumerate(keys):
            if key in self.broken:
                matrix[row, 0] = np.nan
        return matrix

    def finish(self, raw: FloatMatrix, options: Sequence[Options]) -> list[Outcome]:
        """See `EmbeddingModel`."""
        self.finish_gate.enter()
        return finalize(raw, options)

    def close(self) -> None:
        """See `EmbeddingModel`; `closes` counts the calls."""
        with self._lock:
            self.closes += 1
        self.close_gate.enter()

    def vector(self, payload: Payload, options: Options | None = None) -> FloatVector:
        """What a good payload's vector is, shape (dim,) or (options.dimensions,), float32.

        Raises:
            EmbeddingError: it has none under these options.
        """
        wanted = options or Options()
        (outcome,) = finalize(_matrix([_key(payload, wanted)], self._info.dim), [wanted])
        if isinstance(outcome, EmbeddingError):
            raise outcome
        return outcome

    def __repr__(self) -> str:
        return f"<FakeModel {self._info.name!r} on {self._info.device}, {len(self.batches)} batches>"

    def _prepare_one(self, payload: Payload, options: Options) -> Prepared | EmbeddingError:
        kind = _kind(payload)
        if kind not in self._accepts:
            return InvalidItemError(f"the model {self._info.name!r} takes no {kind} input")
        if _key(payload, Options()) in self.undecodable:
            return UndecodableError("not an image of an allowed format" if kind != "text" else "not a text")
        tokens = max(1, len(payload.split())) if isinstance(payload, str) else 1
        if tokens > self._max_tokens_an_item and not options.truncate:
            return SourceTooLargeError(f"{tokens} tokens are more than {self._max_tokens_an_item}")
        return Prepared(
            data=_key(payload, options), tokens=min(tokens, self._max_tokens_an_item), nbytes=self._prepared_nbytes
        )


class FakeAdapter:
    """An `Adapter` of `FakeModel`s. `options` of a spec are further arguments of the model's constructor.

    `loads` are the keys that were asked for, in order, failed ones too, and `models` what was loaded, in order. `fail`
    is asked before each load: the exception that it returns is raised. `gate` holds loads. `make` makes the models.
    """

    modality: ClassVar[str] = "text"

    def __init__(self) -> None:
        self.fail: Callable[[ModelSpec], BaseException | None] = lambda _: None
        self.gate = Gate()
        self.loads: list[str] = []
        self.models: list[FakeModel] = []
        self.make: Callable[..., FakeModel] = FakeModel

    def load(self, spec: ModelSpec, limits: InputLimits) -> FakeModel:  # noqa: ARG002  a fake decodes nothing
        """See `Adapter`."""
        self.loads.append(spec.key)
        self.gate.enter()
        error = self.fail(spec)
        if error is not None:
            raise error
        model = self.make(
            name=spec.key,
            device="cpu" if spec.device == "auto" else spec.device,
            limits=BatchLimits(max_items=spec.max_items or 8, max_tokens=spec.max_tokens),
            **spec.options,
        )
        self.models.append(model)
        return model

    def __repr__(self) -> str:
        return f"<FakeAdapter {len(self.loads)} loads>"


def _kind(payload: Payload) -> InputKind:
    if isinstance(payload, str):
        return "text"
    return "bytes" if isinstance(payload, bytes) else "tensor"


def _key(payload: Payload, options: Options) -> str:
    """What the vector follows from; `forward` sees nothing else."""
    if isinstance(payload, str):
        return f"{options.prompt}: {payload}" if options.prompt else payload
    if isinstance(payload, bytes):
        return payload.decode("latin-1")
    return hashlib.sha256(payload.tobytes()).hexdigest()


def _matrix(keys: Sequence[str], dim: int) -> FloatMatrix:
    """Shape (n, dim): each row a hash of its key, every component a half-integer, so that no row is zero."""
    digests = b"".join(hashlib.shake_128(key.encode("utf-8", "surrogatepass")).digest(dim) for key in keys)
    return np.frombuffer(digests, np.uint8).reshape(len(keys), dim).astype(np.float32) - np.float32(127.5)

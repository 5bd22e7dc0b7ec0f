"""What the cache knows of one model, and which model goes when memory is short (pure)."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from legit_embedding.clock import Clock
from legit_embedding.errors import ModelUnavailableError
from legit_embedding.models.base import EmbeddingModel
from legit_embedding.models.catalog import ModelSpec


@dataclass(frozen=True, slots=True)
class ModelState:
    """One declared model as an operator sees it.

    `state` is `unloaded`, `loading`, `ready`, `unloading` or `failed`; `in_use` counts the tasks that use it or wait
    for it, `batches` those that it computes now, and `last_used_s` the seconds back from now.
    """

    key: str
    state: str
    device: str | None
    nbytes: int
    in_use: int
    batches: int
    loads: int
    last_used_s: float | None
    error: str | None


@dataclass(slots=True, eq=False)
class Slot:
    """A declared model's place in the cache.

    `wanted` counts those who wait for its load, `in_use` its leases, and `held` the batches that it computes. A model
    that goes is `leaving` until its close begins, and `unloading` is the task that waits for the close's end.
    """

    spec: ModelSpec
    model: EmbeddingModel | None = None
    loading: "asyncio.Task[None] | None" = field(default=None, repr=False)
    leaving: EmbeddingModel | None = None
    unloading: "asyncio.Task[None] | None" = field(default=None, repr=False)
    device: str | None = None
    nbytes: int = 0
    in_use: int = 0
    held: int = 0
    wanted: int = 0
    loads: int = 0
    last_used_s: float | None = None
    failed_s: float | None = None
    error: ModelUnavailableError | None = None

    @property
    def idle(self) -> bool:
        """Whether it is loaded and nobody uses it or is about to."""
        return self.model is not None and not (self.in_use or self.held or self.wanted)

    def describe(self, now_s: float) -> ModelState:
        """See `ModelState`. Any thread."""
        model, error, last_used_s = self.model, self.error, self.last_used_s  # read once: they change on the loop
        return ModelState(
            key=self.spec.key,
            state=self._state(model, error),
            device=self.device,
            nbytes=0 if model is None and self.unloading is None else self.nbytes,
            in_use=self.in_use + self.wanted,
            batches=self.held,
            loads=self.loads,
            last_used_s=None if last_used_s is None else round(now_s - last_used_s, 1),
            error=str(error) if error is not None and model is None else None,
        )

    def close_leaving(self) -> None:
        """Closes the model that goes, if nobody has begun to. On the loader's thread, which may take seconds."""
        model, self.leaving = self.leaving, None
        if model is not None:
            model.close()

    def _state(self, model: EmbeddingModel | None, error: ModelUnavailableError | None) -> str:
        if model is not None:
            return "ready"
        if self.loading is not None:
            return "loading"
        if self.unloading is not None:
            return "unloading"
        return "failed" if error is not None else "unloaded"


class Lease:
    """A model that stays loaded while the context is entered: at once, before anything else has a turn on the loop."""

    __slots__ = ("_clock", "_model", "_slot")

    def __init__(self, slot: Slot, model: EmbeddingModel, clock: Clock) -> None:
        self._slot = slot
        self._model = model
        self._clock = clock

    def __enter__(self) -> EmbeddingModel:
        self._slot.in_use += 1
        return self._model

    def __exit__(self, *_: object) -> None:
        self._slot.in_use -= 1
        self._slot.last_used_s = self._clock.monotonic()


def resident_nbytes(slots: Iterable[Slot], device: str | None) -> int:
    """Bytes of weights that are on `device` now."""
    return sum(slot.nbytes for slot in slots if slot.model is not None and slot.device == device)


def least_recently_used(slots: Iterable[Slot], device: str | None) -> Slot | None:
    """The idle model on `device` that has been unused the longest; None where every one is in use."""
    idle = [slot for slot in slots if slot.idle and slot.device == device]
    return min(idle, key=lambda slot: slot.last_used_s or 0.0, default=None)


def unused_for(slot: Slot, now_s: float) -> float:
    """Seconds since its last use; 0 where it is not idle."""
    return now_s - slot.last_used_s if slot.idle and slot.last_used_s is not None else 0.0

"""The values that travel between the rooms: frozen, slotted, without behaviour of their own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from legit_embedding.errors import EmbeddingError

FloatVector: TypeAlias = NDArray[np.float32]
"""shape (dim,), float32."""

FloatMatrix: TypeAlias = NDArray[np.float32]
"""shape (n, dim), float32."""

JsonObject: TypeAlias = Mapping[str, Any]

TaskKind: TypeAlias = Literal["images", "prepared_images", "texts"]
"""What a task's items may be: encoded images, images that another process has prepared, or texts."""

InputKind: TypeAlias = Literal["bytes", "tensor", "text"]
"""What an adapter takes: an encoded file, a prepared tensor, or a string."""


# -- what a task asks for ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextSource:
    """The text itself."""

    text: str


@dataclass(frozen=True, slots=True)
class InlineSource:
    """base64 of an encoded image, or a `data:` URL; decoded where the work is done, not where it is parsed."""

    data: str


@dataclass(frozen=True, slots=True)
class FileSource:
    """A path under one of the allowed roots."""

    path: str


@dataclass(frozen=True, slots=True)
class UrlSource:
    """An http(s) URL on an allowed host."""

    url: str


@dataclass(frozen=True, slots=True)
class ShmSource:
    """A prepared CHW tensor that another process left in shared memory."""

    path: str
    dtype: str
    shape: tuple[int, ...]


Source: TypeAlias = TextSource | InlineSource | FileSource | UrlSource | ShmSource


@dataclass(frozen=True, slots=True)
class Options:
    """How the vectors of one task are to be made."""

    dimensions: int | None = None
    normalize: bool = True
    prompt: str | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to embed; `index` is its place in its task, `id` the producer's own name for it."""

    index: int
    id: str
    source: Source
    metadata: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RejectedItem:
    """An item that breaks the contract: it becomes an error entry and its neighbours go on."""

    index: int
    id: str
    error: EmbeddingError
    metadata: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A task's work, parsed. `metadata` is what is copied to each result; `model` None means the modality's default."""

    kind: TaskKind
    items: tuple[Item | RejectedItem, ...]
    batch_id: str | None = None
    reply_to: str | None = None
    source: str | None = None
    model: str | None = None
    metadata: JsonObject = field(default_factory=dict)
    options: Options = field(default_factory=Options)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the broker says of this task: its id, which delivery this is (from 1), and when it expires.

    `expires_at_s` is in seconds since the epoch.
    """

    task_id: str
    attempt: int = 1
    expires_at_s: float | None = None


# -- what flows through the worker -------------------------------------------------------------------------------------

Payload: TypeAlias = str | bytes | NDArray[Any]
"""A fetched item: a text, an encoded file, or a prepared tensor of shape (channels, height, width)."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An item ready for the model. `data` belongs to the adapter; `tokens` is its length (1 for an image)."""

    data: Any
    tokens: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large a batch a model takes: items, and tokens once every item is padded to the batch's longest."""

    max_items: int
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model is. `device` (`cpu`, `cuda:0`) computes in `dtype`; the output is always float32."""

    name: str
    adapter: str
    modality: str
    dim: int
    device: str
    dtype: str
    nbytes: int
    limits: BatchLimits
    untrained: bool = False


Outcome: TypeAlias = FloatVector | EmbeddingError
"""What became of an item: exactly one of these, always."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A confirmed entry: the stream it is on and the id the server gave it."""

    stream: str
    entry_id: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What a task returns to a Celery result backend."""

    batch_id: str
    stream: str
    count: int
    ok: int
    errors: int
    first_entry: str | None
    last_entry: str | None

"""From outcomes to stream entries, and back for whoever reads them."""

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from typing import Any, NamedTuple

from legit_embedding.contract.names import Names
from legit_embedding.encoding import ENCODING, decode_embedding, encode_embedding
from legit_embedding.errors import EmbeddingError
from legit_embedding.values import (
    Delivery,
    Envelope,
    FloatVector,
    Item,
    JsonObject,
    ModelInfo,
    Outcome,
    RejectedItem,
    Summary,
    TaskKind,
)

VERSION = "1"
MAX_ERROR_CHARS = 1000
MOST_SHOWN_CHARS = 64
"""Of a name that a producer chose, in the log's line of a task."""

SUMMARY_FIELDS = tuple(Summary.__dataclass_fields__)


class EntryTemplate(NamedTuple):  # three for each task: a frozen dataclass takes three times as long to make
    """What all entries of a task share, already under its deployed names; made once a task, filled once an item."""

    names: Mapping[str, str]
    constant: Mapping[str, str]
    metadata: JsonObject
    metadata_json: str

    @classmethod
    def create(cls, names: Names, delivery: Delivery, *, worker: str, modality: str) -> "EntryTemplate":
        """For a task of which only its delivery is known."""
        called = names.result
        constant = {
            called["v"]: VERSION,
            called["task_id"]: delivery.task_id,
            called["batch_id"]: delivery.task_id,
            called["attempt"]: str(delivery.attempt),
            called["modality"]: modality,
            called["worker"]: worker,
        }
        return cls(names=called, constant=constant, metadata={}, metadata_json="")

    def with_envelope(self, envelope: Envelope, *, declared: str | None = None) -> "EntryTemplate":
        """With what the envelope says of all its items.

        `declared` is the key of the model that is to compute them; None: only what the envelope calls it is known.
        """
        called = self.names
        constant = {**self.constant, called["count"]: str(len(envelope.items))}
        if envelope.batch_id:
            constant[called["batch_id"]] = envelope.batch_id
        if envelope.source:
            constant[called["source"]] = envelope.source
        model = declared or envelope.model
        if model:
            constant[called["model"]] = model
        return EntryTemplate(called, constant, envelope.metadata, _compact(envelope.metadata))

    def with_model(self, info: ModelInfo, fingerprint: str) -> "EntryTemplate":
        """With the model that computes them."""
        called = self.names
        constant = {
            **self.constant,
            called["model"]: info.name,
            called["modality"]: info.modality,
            called["fingerprint"]: fingerprint,
            called["dtype"]: info.dtype,
            called["encoding"]: ENCODING,
        }
        return EntryTemplate(called, constant, self.metadata, self.metadata_json)

    def entry(self, item: Item | RejectedItem, outcome: Outcome, *, at_ms: int) -> dict[str, str]:
        """The fields of one item's entry: its vector, or its error."""
        names = self.names
        fields = dict(self.constant)
        fields[names["item_id"]] = item.id
        fields[names["index"]] = str(item.index)
        metadata = _compact({**self.metadata, **item.metadata}) if item.metadata else self.metadata_json
        if metadata:
            fields[names["metadata"]] = metadata
        fields[names["at_ms"]] = str(at_ms)
        if isinstance(outcome, EmbeddingError):
            self._put_error(fields, outcome)
        else:
            fields[names["status"]] = "ok"
            fields[names["dim"]] = str(len(outcome))
            fields[names["embedding"]] = encode_embedding(outcome)
        return fields

    def refusal(self, error: EmbeddingError, *, at_ms: int) -> dict[str, str]:
        """The one entry of a task whose envelope cannot be understood: index -1, count 0."""
        fields = dict(self.constant)
        fields[self.names["index"]] = "-1"
        fields[self.names["count"]] = "0"
        fields[self.names["at_ms"]] = str(at_ms)
        self._put_error(fields, error)
        return fields

    def _put_error(self, fields: dict[str, str], error: EmbeddingError) -> None:
        fields.pop(self.names["encoding"], None)  # there is nothing encoded
        fields[self.names["status"]] = "error"
        fields[self.names["error_type"]] = error.code
        fields[self.names["error"]] = _readable(error)


@dataclass(frozen=True, slots=True)
class ResultEntry:
    """An entry as its reader sees it; a field that the entry lacks is None. `embedding` has shape (dim,), float32."""

    status: str
    task_id: str
    index: int
    count: int | None = None
    batch_id: str | None = None
    item_id: str | None = None
    attempt: int | None = None
    source: str | None = None
    modality: str | None = None
    model: str | None = None
    fingerprint: str | None = None
    dtype: str | None = None
    dim: int | None = None
    encoding: str | None = None
    embedding: FloatVector | None = None
    metadata: JsonObject | None = None
    worker: str | None = None
    at_ms: int | None = None
    error_type: str | None = None
    error: str | None = None
    rejected_reply_to: str | None = None


_NUMBERS = frozenset({"index", "count", "attempt", "dim", "at_ms"})


def parse_entry(fields: Mapping[str, str], *, names: Names) -> ResultEntry:
    """An entry that some worker wrote; fields that this version does not know are passed over.

    Raises:
        ValueError: no entry of this contract: `status`, `task_id` or `index` is missing, or a value is malformed.
    """
    known: dict[str, Any] = {}
    for canonical in ResultEntry.__dataclass_fields__:
        value = fields.get(names.result[canonical])
        if value is not None:
            known[canonical] = int(value) if canonical in _NUMBERS else value
    missing = [name for name in ("status", "task_id", "index") if name not in known]
    if missing:
        raise ValueError(f"not a result entry: it lacks {', '.join(missing)}")
    if "embedding" in known:
        known["embedding"] = decode_embedding(known["embedding"])
    if "metadata" in known:
        known["metadata"] = json.loads(known["metadata"])
        if not isinstance(known["metadata"], dict):
            raise ValueError("not a result entry: its metadata is no object")
    return ResultEntry(**known)


def dead_letter(
    args: Sequence[Any], kwargs: Mapping[str, Any], *, kind: TaskKind, delivery: Delivery, worker: str, at_ms: int
) -> dict[str, str]:
    """What is kept of a task that is given up, enough to send it again: `args` and `kwargs` are its own, as JSON."""
    return {
        "task_id": delivery.task_id,
        "kind": kind,
        "attempt": str(delivery.attempt),
        "worker": worker,
        "at_ms": str(at_ms),
        "args": _compact(args) or "[]",
        "kwargs": _compact(kwargs) or "{}",
    }


class TaskResult(Mapping[str, Any]):
    """What a task returns: in a result backend, and to the next task of a chain, an object of plain JSON.

    Celery makes a text of it for its log and its events, whoever reads them: what this says of itself takes a tenth of
    the time that the whole object would.
    """

    __slots__ = ("_summary",)

    def __init__(self, summary: Summary) -> None:
        self._summary = summary

    def __getitem__(self, name: str) -> Any:
        if name not in SUMMARY_FIELDS:
            raise KeyError(name)
        return getattr(self._summary, name)

    def __iter__(self) -> Iterator[str]:
        return iter(SUMMARY_FIELDS)

    def __len__(self) -> int:
        return len(SUMMARY_FIELDS)

    def __json__(self) -> dict[str, Any]:
        """For kombu's JSON."""
        return dict(self)

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        """For pickle: who reads it need not have this package."""
        return dict, (dict(self),)

    def __repr__(self) -> str:
        summary = self._summary
        batch_id, stream = summary.batch_id[:MOST_SHOWN_CHARS], summary.stream[:MOST_SHOWN_CHARS]
        return f"{summary.ok} of {summary.count} ok, batch {batch_id!r}, on {stream!r}"


def _readable(error: EmbeddingError) -> str:
    """The error's message, short enough for an entry and in what UTF-8 can hold: servers and files have a say in it."""
    return (str(error) or error.code)[:MAX_ERROR_CHARS].encode("utf-8", "backslashreplace").decode()


def _compact(value: JsonObject | Sequence[Any]) -> str:
    if not value:
        return ""
    try:
        text = _dump(value, ensure_ascii=False)
    except ValueError:  # NaN or infinity, which Python's JSON writes and reads, and JSON does not have
        return _compact(_with_nulls(value))
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot hold: spell it again
        return _dump(value, ensure_ascii=True)
    return text


def _dump(value: Any, *, ensure_ascii: bool) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, separators=(",", ":"), default=_plain, allow_nan=False)


def _with_nulls(value: Any) -> Any:
    """`value` with null in the place of each number that JSON cannot spell."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _with_nulls(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(inner) for inner in value]
    return value


def _plain(value: Any) -> str:
    """What kombu's JSON reads back as an object (a date, UUID, decimal, bytes), in JSON's own types."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value.isoformat() if isinstance(value, date | time) else value)

"""The names on the wire, and how a site renames them."""

import difflib
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from legit_embedding.errors import ConfigurationError
from legit_embedding.values import TaskKind

PREPARE_IMAGES = "tasks.preparation.prepare_images"
EMBED_IMAGES = "tasks.embedding.embed_images"
EMBED_TEXTS = "tasks.text_embedding.embed_texts"

TASK_KINDS: Mapping[str, TaskKind] = {PREPARE_IMAGES: "images", EMBED_IMAGES: "prepared_images", EMBED_TEXTS: "texts"}
"""What the items of each task may be."""

TASK_QUEUES: Mapping[str, str] = {
    PREPARE_IMAGES: "image_preparation",
    EMBED_IMAGES: "image_embedding",
    EMBED_TEXTS: "text_embedding",
}
"""The canonical queue of each task."""

ENVELOPE_FIELDS = (
    "items", "reply_to", "source", "batch_id", "model", "metadata", "options", "texts", "ids", "envelope",
)  # fmt: skip
"""The last one is the keyword argument that may hold all the others; it has to differ from them."""

ITEM_FIELDS = ("id", "text", "data", "path", "url", "shm")
SHM_FIELDS = ("path", "dtype", "shape")
OPTION_FIELDS = ("dimensions", "normalize", "prompt", "truncate")

RESULT_FIELDS = (
    "v", "status", "task_id", "batch_id", "item_id", "index", "count", "attempt", "source", "modality", "model",
    "fingerprint", "dtype", "dim", "encoding", "embedding", "metadata", "worker", "at_ms", "error_type", "error",
    "rejected_reply_to",
)  # fmt: skip


def _identity(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}


@dataclass(frozen=True, slots=True)
class Names:
    """Canonical name → deployed name, for everything on the wire. A task may be deployed under several names.

    The `envelope` table covers the fields of the envelope, of its items, of their `shm` objects and of its options; a
    name that stands in several of them (`metadata`, `path`) is renamed in all.
    """

    tasks: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {name: (name,) for name in TASK_KINDS})
    queues: Mapping[str, str] = field(default_factory=lambda: _identity(TASK_QUEUES.values()))
    envelope: Mapping[str, str] = field(
        default_factory=lambda: _identity((*ENVELOPE_FIELDS, *ITEM_FIELDS, *SHM_FIELDS, *OPTION_FIELDS))
    )
    result: Mapping[str, str] = field(default_factory=lambda: _identity(RESULT_FIELDS))

    @staticmethod
    @cache
    def load(path: Path | None) -> "Names":
        """The names of a site: the tables in the TOML file at `path`, over the defaults. Read once a path.

        Raises:
            ConfigurationError: no such file, no TOML, or a table that cannot be used; names the file and the entry.
        """
        if path is None:
            return Names()
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # ValueError: no TOML, or not in UTF-8
            raise ConfigurationError(f"LEGIT_CONTRACT={path}: {error}") from error
        try:
            return Names.from_tables(tables)
        except ConfigurationError as error:
            raise ConfigurationError(f"LEGIT_CONTRACT={path}: {error}") from error

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any]) -> "Names":
        """The defaults, overlaid by `[tasks]`, `[queues]`, `[envelope]` and `[result]`.

        Raises:
            ConfigurationError: an unknown table or canonical name, a value of another type, or one deployed name for
                two canonical ones.
        """
        defaults = cls()
        _require_known("table", tables, ("tasks", "queues", "envelope", "result"))
        for name, table in tables.items():
            if not isinstance(table, dict):
                raise ConfigurationError(f'[{name}] must be a table of canonical = "deployed name"')
        renamed = {
            name: _rename(name, getattr(defaults, name), tables.get(name, {}))
            for name in ("queues", "envelope", "result")
        }
        # A field of an item may be called as one of the envelope's is: they stand in different objects.
        for group in (ENVELOPE_FIELDS, (*ITEM_FIELDS, "metadata"), SHM_FIELDS, OPTION_FIELDS):
            _require_distinct("envelope", [renamed["envelope"][field] for field in group])
        for table in ("queues", "result"):
            _require_distinct(table, renamed[table].values())
        return cls(tasks=_rename_tasks(defaults.tasks, tables.get("tasks", {})), **renamed)

    def queue_of(self, task: str) -> str:
        """The deployed queue of a canonical task."""
        return self.queues[TASK_QUEUES[task]]


def _rename(table: str, defaults: Mapping[str, str], given: Mapping[str, Any]) -> Mapping[str, str]:
    _require_known(f"name in [{table}]", given, defaults)
    for canonical, deployed in given.items():
        if not isinstance(deployed, str) or not deployed:
            raise ConfigurationError(f"[{table}] {canonical} must be a non-empty string, not {deployed!r}")
    return {**defaults, **given}


def _rename_tasks(defaults: Mapping[str, tuple[str, ...]], given: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
    _require_known("name in [tasks]", given, defaults)
    renamed = dict(defaults)
    for canonical, deployed in given.items():
        names = [deployed] if isinstance(deployed, str) else deployed
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise ConfigurationError(f"[tasks] {canonical} must be a name or a list of names, not {deployed!r}")
        renamed[canonical] = tuple(names)
    _require_distinct("tasks", [name for names in renamed.values() for name in names])
    return renamed


def _require_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
            raise ConfigurationError(f"unknown {what}: {name!r}; there are {', '.join(close)}")


def _require_distinct(table: str, deployed: Iterable[str]) -> None:
    twice = [name for name, count in Counter(deployed).items() if count > 1]
    if twice:
        raise ConfigurationError(f"[{table}] gives the name {twice[0]!r} to two things")

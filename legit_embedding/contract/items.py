"""From one object of a task's list to an `Item`, or to a `RejectedItem` that says what is wrong with it."""

from collections.abc import Callable, Mapping
from typing import Any

from legit_embedding.contract.fields import MAX_DEPTH, is_deeper, is_int, is_unicode, kind_of
from legit_embedding.contract.names import Names
from legit_embedding.errors import InvalidItemError
from legit_embedding.values import (
    FileSource,
    InlineSource,
    Item,
    JsonObject,
    RejectedItem,
    ShmSource,
    Source,
    TaskKind,
    TextSource,
    UrlSource,
)

SOURCES_OF: Mapping[TaskKind, tuple[str, ...]] = {
    "texts": ("text",),
    "images": ("data", "path", "url", "shm"),
    "prepared_images": ("shm", "data", "path", "url"),
}
"""Which sources a task's items may name. Each task of images takes all of theirs: producers in the field mix them."""

ALL_SOURCES = ("text", "data", "path", "url", "shm")
SHM_DIMENSIONS = 3
"""Channels, height, width."""


def parse_item(index: int, given: Any, *, kind: TaskKind, names: Names, where: str) -> Item | RejectedItem:
    """The item at `index`; `where` is what errors call it, `items[3]`."""
    if isinstance(given, str):
        given = {names.envelope["text"]: given}
    item_id = str(index)
    metadata: JsonObject = {}
    try:
        if not isinstance(given, (dict, Mapping)):  # dict by itself: the look for it takes a tenth of the other's time
            raise InvalidItemError(f"{where} must be an object or a string, not {kind_of(given)}")  # noqa: TRY301
        item_id = _parse_id(given, index, where, names)
        metadata = _parse_metadata(given, where, names)
        return Item(index=index, id=item_id, source=_parse_source(given, kind, where, names), metadata=metadata)
    except InvalidItemError as error:
        return RejectedItem(index=index, id=item_id, error=error, metadata=metadata)


def _parse_id(item: JsonObject, index: int, where: str, names: Names) -> str:
    name = names.envelope["id"]
    given = item.get(name)
    if given is None or given == "":
        return str(index)
    if not is_int(given) and not isinstance(given, str):
        raise InvalidItemError(f"{where}.{name} must be a string or an integer, not {kind_of(given)}")
    if isinstance(given, str) and not is_unicode(given):
        raise InvalidItemError(f"{where}.{name} holds half a surrogate pair, which no encoding can carry")
    return str(given)


def _parse_metadata(item: JsonObject, where: str, names: Names) -> JsonObject:
    name = names.envelope["metadata"]
    given = item.get(name)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InvalidItemError(f"{where}.{name} must be an object, not {kind_of(given)}")
    if is_deeper(given, MAX_DEPTH):
        raise InvalidItemError(f"{where}.{name} is nested more than {MAX_DEPTH} levels deep")
    return given


def _parse_source(item: JsonObject, kind: TaskKind, where: str, names: Names) -> Source:
    found = [name for name in ALL_SOURCES if item.get(names.envelope[name]) is not None]
    if len(found) != 1:
        have = " and ".join(f"`{names.envelope[name]}`" for name in found) or "none"
        raise InvalidItemError(f"{where} must have exactly one of {_allowed(kind, names)}; it has {have}")
    name = found[0]
    deployed = names.envelope[name]
    if name not in SOURCES_OF[kind]:
        raise InvalidItemError(f"{where}.{deployed} does not fit this task, which takes {_allowed(kind, names)}")
    if name == "shm":
        return _parse_shm(item[deployed], f"{where}.{deployed}", names)
    return _SIMPLE_SOURCES[name](_require_text(item[deployed], f"{where}.{deployed}"))


def _allowed(kind: TaskKind, names: Names) -> str:
    return ", ".join(f"`{names.envelope[name]}`" for name in SOURCES_OF[kind])


_SIMPLE_SOURCES: Mapping[str, Callable[[str], Source]] = {
    "text": TextSource,
    "data": InlineSource,
    "path": FileSource,
    "url": UrlSource,
}


def _parse_shm(given: Any, where: str, names: Names) -> ShmSource:
    path, dtype, shape = (names.envelope[name] for name in ("path", "dtype", "shape"))
    if not isinstance(given, Mapping):
        raise InvalidItemError(f"{where} must be an object with {path}, {dtype} and {shape}, not {kind_of(given)}")
    sizes = given.get(shape)
    if not isinstance(sizes, list) or len(sizes) != SHM_DIMENSIONS or not all(is_int(s) and s > 0 for s in sizes):
        raise InvalidItemError(f"{where}.{shape} must be three positive integers: channels, height and width")
    return ShmSource(
        path=_require_text(given.get(path), f"{where}.{path}"),
        dtype=_require_text(given.get(dtype), f"{where}.{dtype}"),
        shape=tuple(sizes),
    )


def _require_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidItemError(f"{where} must be a string, not {kind_of(value)}")
    if not value.strip():
        raise InvalidItemError(f"{where} is empty")
    if not is_unicode(value):
        raise InvalidItemError(f"{where} holds half a surrogate pair: it is no Unicode text")
    return value

"""From a task's arguments to an `Envelope`: strict on types, tolerant of unknown fields, precise in its errors.

What is wrong with the envelope fails the task as a whole (`InvalidEnvelopeError`); what is wrong with one item becomes
a `RejectedItem`, and its neighbours go on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from legit_embedding.contract.fields import Fields, kind_of, text_of
from legit_embedding.contract.items import parse_item
from legit_embedding.contract.names import Names
from legit_embedding.errors import InvalidEnvelopeError
from legit_embedding.values import Envelope, Item, Options, RejectedItem, TaskKind

DEFAULT_OPTIONS = Options()


def parse_envelope(
    args: Sequence[Any], kwargs: Mapping[str, Any], *, kind: TaskKind, names: Names, max_items: int
) -> Envelope:
    """The envelope in a task's arguments: the only positional one, the keyword `envelope`, or the keywords themselves.

    Raises:
        InvalidEnvelopeError: it cannot be understood; names the field and what was found there.
    """
    fields = Fields(_locate(args, kwargs, names), names.envelope)
    metadata = fields.metadata("metadata")
    return Envelope(
        kind=kind,
        items=_parse_items(fields, kind=kind, names=names, max_items=max_items),
        batch_id=fields.text("batch_id"),
        reply_to=fields.text("reply_to") or text_of(metadata, names.envelope["reply_to"]),
        source=fields.text("source") or text_of(metadata, names.envelope["source"]),
        model=fields.text("model"),
        metadata=metadata,
        options=_parse_options(fields, names),
    )


def salvage_reply_to(args: Sequence[Any], kwargs: Mapping[str, Any], names: Names) -> str | None:
    """The `reply_to` of an envelope that cannot be understood, where that much of it can be read."""
    try:
        given = _locate(args, kwargs, names)
    except InvalidEnvelopeError:
        return None
    metadata = given.get(names.envelope["metadata"])
    nested = text_of(metadata, names.envelope["reply_to"]) if isinstance(metadata, dict) else None
    return text_of(given, names.envelope["reply_to"]) or nested


def _locate(args: Sequence[Any], kwargs: Mapping[str, Any], names: Names) -> Mapping[str, Any]:
    keyword = names.envelope["envelope"]
    if len(args) > 1:
        raise InvalidEnvelopeError(f"the envelope must be the only positional argument, but there are {len(args)}")
    if args and keyword in kwargs:
        raise InvalidEnvelopeError(f"the envelope is given twice: as positional argument and as keyword `{keyword}`")
    found = args[0] if args else kwargs.get(keyword, kwargs)
    if not isinstance(found, Mapping):
        raise InvalidEnvelopeError(f"the envelope must be an object, not {kind_of(found)}")
    return found


def _parse_items(fields: Fields, *, kind: TaskKind, names: Names, max_items: int) -> tuple[Item | RejectedItem, ...]:
    items, texts = fields.sequence("items"), fields.sequence("texts")
    given = texts if items is None else items
    if given is None or (items is not None and texts is not None):
        which = "neither is given" if given is None else "both are given"
        items_name, texts_name = names.envelope["items"], names.envelope["texts"]
        raise InvalidEnvelopeError(f"`{items_name}` or `{texts_name}` must hold what is to be embedded; {which}")
    called = names.envelope["texts" if items is None else "items"]
    if not given:
        raise InvalidEnvelopeError(f"`{called}` must hold at least one item")
    if len(given) > max_items:
        raise InvalidEnvelopeError(f"`{called}` holds {len(given)} items; at most {max_items} are allowed")
    if items is None:
        given = _spell_out(given, fields.sequence("ids"), names)
    return tuple(
        [
            parse_item(index, item, kind=kind, names=names, where=f"{called}[{index}]")
            for index, item in enumerate(given)
        ]
    )


def _spell_out(texts: Sequence[Any], ids: Sequence[Any] | None, names: Names) -> list[Any]:
    """The shorthand `texts` (and `ids`) as items."""
    text_name, id_name = names.envelope["text"], names.envelope["id"]
    if ids is None:
        return [{text_name: text} for text in texts]
    if len(ids) != len(texts):
        raise InvalidEnvelopeError(
            f"`{names.envelope['ids']}` has {len(ids)} entries and `{names.envelope['texts']}` has {len(texts)}"
        )
    return [{id_name: item_id, text_name: text} for item_id, text in zip(ids, texts, strict=True)]


def _parse_options(envelope: Fields, names: Names) -> Options:
    given = envelope.object("options")
    if not given:
        return DEFAULT_OPTIONS
    fields = Fields(given, names.envelope, prefix=f"{names.envelope['options']}.")
    return Options(
        dimensions=fields.positive("dimensions"),
        normalize=fields.flag("normalize"),
        prompt=fields.text("prompt"),
        truncate=fields.flag("truncate"),
    )

"""The wire against files: messages as Celery really sends them, and entries as they really stand on a stream.

`tests/golden/messages` is written by `produce.py` there; `parsed` and `entries` are written by hand.
"""

import json
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from celery.worker.strategy import proto1_to_proto2
from kombu.serialization import loads

from legit_embedding import errors
from legit_embedding.contract import EntryTemplate, Names, parse_entry, parse_envelope, salvage_reply_to
from legit_embedding.contract.names import TASK_KINDS
from legit_embedding.errors import EmbeddingError, InvalidEnvelopeError
from legit_embedding.publish.routing import RoutingRules
from legit_embedding.testing.publisher import MemoryPublisher
from legit_embedding.values import BatchLimits, Delivery, Item, ModelInfo, RejectedItem, ShmSource

GOLDEN = Path(__file__).parents[2] / "golden"
ERRORS = {
    kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EmbeddingError)
}


def golden(folder):
    """Each file's name and content."""
    files = sorted((GOLDEN / folder).glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


MESSAGES, PARSED, ENTRIES = golden("messages"), golden("parsed"), golden("entries")


def received(message):
    """The task's name, args and kwargs, as Celery's worker takes them from a message of either protocol."""
    body = loads(message["body"], message["content_type"], message["content_encoding"], accept=["application/json"])
    if isinstance(body, dict):  # protocol 1
        task = body["task"]
        (args, kwargs, _), *_ = proto1_to_proto2(SimpleNamespace(**message), body)
    else:
        task = message["headers"]["task"]
        args, kwargs, _ = body
    return task, args, kwargs


def parse(message, names, max_items=10_000):
    task, args, kwargs = received(message)
    (canonical,) = [canonical for canonical, deployed in names.tasks.items() if task in deployed]
    return parse_envelope(args, kwargs, kind=TASK_KINDS[canonical], names=names, max_items=max_items)


def as_json(value):
    """What is not at its default, as the files spell it."""
    return {
        field.name: getattr(value, field.name)
        for field in fields(value)
        if getattr(value, field.name) != default(field)
    }


def default(field):
    return field.default if field.default_factory is MISSING else field.default_factory()


def envelope_as_json(envelope):
    plain = as_json(envelope) | {"items": [item_as_json(item) for item in envelope.items]}
    if "options" in plain:
        plain["options"] = as_json(envelope.options)
    del plain["kind"]
    return json.loads(json.dumps(plain, default=str))


def item_as_json(item):
    plain = {"id": item.id}
    if isinstance(item, RejectedItem):
        assert item.error.code == "invalid_item"
        plain["error"] = str(item.error)
    elif isinstance(item.source, ShmSource):
        plain["shm"] = as_json(item.source)
    else:
        kind = {"TextSource": "text", "InlineSource": "data", "FileSource": "path", "UrlSource": "url"}
        name = kind[type(item.source).__name__]
        plain[name] = getattr(item.source, name)
    return plain | ({"metadata": item.metadata} if item.metadata else {})


def test_every_message_has_one_outcome():
    """No file is left out, none is read twice."""
    told = [message for expected in PARSED.values() for message in expected["messages"]]
    assert sorted(told) == sorted(MESSAGES)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        pytest.param(expected, message, id=message)
        for expected in PARSED.values()
        for message in expected["messages"]
        if "envelope" in expected
    ],
)
def test_a_message_is_understood(expected, message):
    envelope = parse(MESSAGES[message], Names.from_tables(expected.get("names", {})))
    assert envelope_as_json(envelope) == expected["envelope"]
    assert envelope.kind == expected["kind"]
    assert [item.index for item in envelope.items] == list(range(len(envelope.items)))


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        pytest.param(expected, message, id=message)
        for expected in PARSED.values()
        for message in expected["messages"]
        if "refused" in expected
    ],
)
def test_a_message_is_refused(expected, message):
    """The error names the field, and the stream for the answer is found as far as it can be."""
    names = Names.from_tables(expected.get("names", {}))
    with pytest.raises(InvalidEnvelopeError) as caught:
        parse(MESSAGES[message], names)
    assert str(caught.value) == expected["refused"]
    _, args, kwargs = received(MESSAGES[message])
    assert salvage_reply_to(args, kwargs, names) == expected["reply_to"]


async def on_the_stream(case):
    """The entries of a golden case, made by the template and written by a publisher."""
    names = Names.from_tables(case.get("names", {}))
    template = EntryTemplate.create(
        names, Delivery(**case["delivery"]), worker=case["worker"], modality=case["modality"]
    )
    publisher = MemoryPublisher(
        rules=RoutingRules("embeddings:results"), rejected_field=names.result["rejected_reply_to"]
    )
    try:
        envelope = parse(MESSAGES[case["message"]], names)
    except InvalidEnvelopeError as error:
        _, args, kwargs = received(MESSAGES[case["message"]])
        entry = template.refusal(error, at_ms=case["at_ms"])
        await publisher.submit(salvage_reply_to(args, kwargs, names), [entry])
        return dict(publisher.streams)
    template = template.with_envelope(envelope)
    if "model" in case:
        template = template.with_model(model_info(case["model"]), case["model"]["fingerprint"])
    outcomes = iter(case.get("outcomes", []))
    entries = [
        template.entry(item, outcome(next(outcomes)) if isinstance(item, Item) else item.error, at_ms=case["at_ms"])
        for item in envelope.items
    ]
    await publisher.submit(case.get("reply_to", envelope.reply_to), entries)
    return dict(publisher.streams)


def model_info(model):
    known = {key: model[key] for key in ("name", "modality", "dtype", "dim")}
    return ModelInfo(**known, adapter="any", device="cpu", nbytes=0, limits=BatchLimits(8))


def outcome(given):
    if "vector" in given:
        return np.asarray(given["vector"], dtype=np.float32)
    return ERRORS[given["error_type"]](given["error"])


@pytest.mark.parametrize("case", ENTRIES.values(), ids=ENTRIES)
async def test_entries_stand_on_the_stream_field_by_field(case):
    assert await on_the_stream(case) == case["streams"]


@pytest.mark.parametrize("case", ENTRIES.values(), ids=ENTRIES)
def test_a_reader_gets_back_what_was_written(case):
    """Vectors to the last bit, numbers as numbers, metadata as an object."""
    names = Names.from_tables(case.get("names", {}))
    (written,) = case["streams"].values()
    read = [parse_entry(fields, names=names) for fields in written]
    for entry, stands in zip(read, written, strict=True):
        assert {name for name in names.result if getattr(entry, name, None) is not None} == {
            name for name, deployed in names.result.items() if deployed in stands and name != "v"
        }
        assert (str(entry.index), str(entry.at_ms)) == (stands[names.result["index"]], stands[names.result["at_ms"]])
    vectors = [given["vector"] for given in case.get("outcomes", []) if "vector" in given]
    assert [entry.embedding.tolist() for entry in read if entry.status == "ok"] == vectors

"""Entries: what stands in them, what is left out, and that a reader gets back what was written."""

import base64
import json
import pickle
import uuid
from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import Decimal

import numpy as np
import pytest
from celery.utils.saferepr import saferepr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from kombu.utils.json import dumps, loads

from legit_embedding import errors
from legit_embedding.contract import EntryTemplate, Names, TaskResult, parse_entry
from legit_embedding.errors import ERROR_TYPES, EmbeddingError, InternalError, InvalidItemError, UndecodableError
from legit_embedding.values import BatchLimits, Delivery, Envelope, Item, ModelInfo, RejectedItem, Summary, TextSource

NAMES = Names()
INFO = ModelInfo(
    name="minilm", adapter="a", modality="text", dim=3, device="cpu", dtype="float32", nbytes=0, limits=BatchLimits(8)
)
VECTOR = np.asarray([0.5, -0.5, 0.25], dtype=np.float32)


def template(envelope=None, *, names=NAMES, modelled=True):
    made = EntryTemplate.create(names, Delivery("task-1", attempt=2), worker="w@h", modality="image")
    made = made.with_envelope(envelope or Envelope(kind="texts", items=(item(),)))
    return made.with_model(INFO, "abc") if modelled else made


def item(**more):
    return Item(**{"index": 0, "id": "a", "source": TextSource("x")} | more)


def metadata_of(envelope_metadata, item_metadata=None):
    """The metadata field of an entry, None where there is none."""
    envelope = Envelope(kind="texts", items=(item(),), metadata=envelope_metadata)
    return template(envelope).entry(item(metadata=item_metadata or {}), VECTOR, at_ms=1).get("metadata")


def test_an_entry_of_a_vector_has_no_error_and_one_of_an_error_no_vector():
    ok = template().entry(item(), VECTOR, at_ms=1)
    failed = template().entry(item(), UndecodableError("broken"), at_ms=1)
    assert ok.keys() - failed.keys() == {"dim", "encoding", "embedding"}
    assert failed.keys() - ok.keys() == {"error_type", "error"}
    assert (ok["status"], failed["status"]) == ("ok", "error")


def test_before_a_model_is_known_nothing_of_it_is_told():
    fields = template(modelled=False).entry(item(), InternalError("x"), at_ms=1)
    assert fields.keys().isdisjoint({"model", "fingerprint", "dtype", "dim", "encoding"})
    assert fields["modality"] == "image"


def test_the_model_says_what_it_is():
    """Whatever the task asked for: a default has a name, and a task of images may use a model of both."""
    envelope = Envelope(kind="images", items=(item(),), model="default-of-the-site")
    fields = template(envelope).entry(item(), VECTOR, at_ms=1)
    assert (fields["model"], fields["modality"]) == ("minilm", "text")


def test_the_batch_is_the_producers_or_else_the_task():
    given_id = Envelope(kind="texts", items=(item(),), batch_id="b")
    assert template().entry(item(), VECTOR, at_ms=1)["batch_id"] == "task-1"
    assert template(given_id).entry(item(), VECTOR, at_ms=1)["batch_id"] == "b"


def test_a_template_stays_as_it_is():
    """It is filled once an item; nothing of one entry shows in the next."""
    shared = template()
    failed = shared.entry(item(index=1, id="b", metadata={"k": 1}), UndecodableError("broken"), at_ms=1)
    assert shared.entry(item(), VECTOR, at_ms=2) == template().entry(item(), VECTOR, at_ms=2)
    assert (failed["item_id"], failed["index"], failed["metadata"]) == ("b", "1", '{"k":1}')


def test_an_items_metadata_lies_over_its_envelopes():
    assert metadata_of({"a": 1, "b": {"c": 1}}, {"b": 2, "d": 3}) == '{"a":1,"b":2,"d":3}'
    assert metadata_of({"a": 1}) == '{"a":1}'
    assert metadata_of({}, {"d": 3}) == '{"d":3}'
    assert metadata_of({}) is None


def test_numbers_that_json_cannot_spell_become_null():
    """Python's JSON writes and reads them; a consumer's would refuse the whole field."""
    found = metadata_of({"scores": [1.5, float("nan")], "best": {"at": float("inf")}, "when": date(2030, 1, 2)})
    assert json.loads(found, parse_constant=pytest.fail) == {
        "scores": [1.5, None],
        "best": {"at": None},
        "when": "2030-01-02",
    }


def test_metadata_is_text_as_far_as_utf8_can_hold_it():
    assert metadata_of({"t": "Señal 🌫"}) == '{"t":"Señal 🌫"}'
    assert metadata_of({"t": "é\ud800"}) == '{"t":"\\u00e9\\ud800"}'


def test_what_kombu_reads_as_python_objects_becomes_plain_json():
    given_metadata = {
        "at": datetime(2026, 3, 1, 12, tzinfo=UTC),
        "day": date(2026, 3, 1),
        "time": time(12, 30),
        "id": uuid.UUID(int=1),
        "price": Decimal("9.90"),
        "digest": b"\x00\xff",
    }
    assert json.loads(metadata_of(given_metadata)) == {
        "at": "2026-03-01T12:00:00+00:00",
        "day": "2026-03-01",
        "time": "12:30:00",
        "id": "00000000-0000-0000-0000-000000000001",
        "price": "9.90",
        "digest": base64.b64encode(b"\x00\xff").decode(),
    }


@pytest.mark.parametrize(
    ("message", "written"),
    [
        ("the server said \udcff", "the server said \\udcff"),
        ("", "invalid_item"),
        ("x" * 5000, "x" * 1000),
        ("Señal", "Señal"),
    ],
)
def test_an_error_is_one_readable_sentence_whatever_had_a_say_in_it(message, written):
    assert template().entry(item(), InvalidItemError(message), at_ms=1)["error"] == written


def test_a_refusal_tells_of_no_item():
    made = EntryTemplate.create(NAMES, Delivery("task-1"), worker="w@h", modality="text")
    assert made.refusal(errors.InvalidEnvelopeError("why"), at_ms=7) == {
        "v": "1", "status": "error", "task_id": "task-1", "batch_id": "task-1", "index": "-1", "count": "0",
        "attempt": "1", "modality": "text", "worker": "w@h", "at_ms": "7", "error_type": "invalid_envelope",
        "error": "why",
    }  # fmt: skip


def test_every_error_has_a_code_that_the_wire_knows():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EmbeddingError)]
    assert {kind.code for kind in kinds} == ERROR_TYPES


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": None}, "lacks status"),
        ({"task_id": None, "index": None}, "lacks task_id, index"),
        ({"index": "first"}, "first"),
        ({"dim": "3.0"}, "3.0"),
        ({"embedding": "not base64!"}, "base64"),
        ({"embedding": "QUI="}, "buffer size"),
        ({"metadata": "{"}, "property name"),
        ({"metadata": "[1]"}, "its metadata is no object"),
    ],
)
def test_what_is_no_entry_is_refused(change, said):
    fields = template(Envelope(kind="texts", items=(item(),), metadata={"k": 1})).entry(item(), VECTOR, at_ms=1)
    changed = {name: value for name, value in {**fields, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=r"(?i)" + said):
        parse_entry(changed, names=NAMES)


def test_a_reader_passes_over_fields_of_a_later_version():
    fields = template().entry(item(), VECTOR, at_ms=1)
    assert parse_entry({**fields, "v": "2", "colour": "blue"}, names=NAMES).item_id == "a"


def test_a_field_that_an_entry_lacks_is_none():
    entry = parse_entry({"status": "error", "task_id": "t", "index": "-1"}, names=NAMES)
    assert all(
        getattr(entry, name) is None
        for name in entry.__dataclass_fields__
        if name not in {"status", "task_id", "index"}
    )


SUMMARY = Summary(batch_id="b", stream="s", count=3, ok=2, errors=1, first_entry="1-0", last_entry=None)


@pytest.mark.parametrize(
    "travel",
    [lambda result: loads(dumps(result)), lambda result: pickle.loads(pickle.dumps(result))],
    ids=["json", "pickle"],
)
def test_a_result_arrives_as_a_plain_object_with_the_fields_of_the_contract(travel):
    arrived = travel(TaskResult(SUMMARY))
    assert type(arrived) is dict
    assert arrived == {
        "batch_id": "b", "stream": "s", "count": 3, "ok": 2, "errors": 1, "first_entry": "1-0", "last_entry": None,
    }  # fmt: skip


def test_a_result_is_shown_in_a_few_words():
    assert saferepr(TaskResult(SUMMARY), 1024) == "2 of 3 ok, batch 'b', on 's'"


def test_what_a_producer_chose_is_one_short_line_in_the_log():
    shown = saferepr(TaskResult(replace(SUMMARY, batch_id="b\nforged" + "x" * 9999, stream="s\r" * 9999)), 1024)
    assert len(shown.splitlines()) == 1
    assert "forged" in shown
    assert "on 's" in shown


def test_who_gets_a_result_in_this_process_reads_it_like_an_object():
    result = TaskResult(SUMMARY)
    assert (result["ok"], result.get("nothing"), len(result)) == (2, None, 7)
    assert dict(result) == loads(dumps(result))
    with pytest.raises(KeyError):
        result["__class__"]


# -- any entry ---------------------------------------------------------------------------------------------------------

some_text = st.text(st.characters(codec="utf-8"), min_size=1)
maybe_text = st.none() | some_text
json_objects = st.dictionaries(
    some_text,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | some_text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(some_text, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)
vectors = npst.arrays(np.float32, st.integers(1, 8), elements=st.floats(width=32))
all_errors = st.sampled_from(sorted(ERROR_TYPES)).flatmap(
    lambda code: some_text.map(
        next(
            kind for kind in vars(errors).values() if getattr(kind, "code", None) == code and kind is not EmbeddingError
        )
    )
)
sites = st.just(NAMES) | st.permutations(list(NAMES.result)).map(
    lambda deployed: Names.from_tables({"result": dict(zip(NAMES.result, deployed, strict=True))})
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a loaded machine is no failure
@given(
    names=sites,
    batch_id=maybe_text,
    source=maybe_text,
    model=maybe_text,
    of_envelope=json_objects,
    of_item=json_objects,
    outcome=vectors | all_errors,
    modelled=st.booleans(),
    rejected=st.booleans(),
)
def test_every_entry_comes_back_as_it_was_written(
    names, batch_id, source, model, of_envelope, of_item, outcome, modelled, rejected
):
    """Under any site's names; no field is ever empty."""
    one = (
        RejectedItem(3, "id", InvalidItemError("x"), of_item) if rejected else item(index=3, id="id", metadata=of_item)
    )
    envelope = Envelope(
        kind="texts", items=(one,) * 5, batch_id=batch_id, source=source, model=model, metadata=of_envelope
    )
    fields = template(envelope, names=names, modelled=modelled).entry(one, outcome, at_ms=123)
    assert all(isinstance(value, str) and value.encode() for value in fields.values())
    entry = parse_entry(fields, names=names)
    assert (entry.task_id, entry.index, entry.count, entry.attempt) == ("task-1", 3, 5, 2)
    assert (entry.batch_id, entry.source) == (batch_id or "task-1", source)
    assert entry.model == ("minilm" if modelled else model)
    assert (entry.metadata or {}) == {**of_envelope, **of_item}
    if isinstance(outcome, EmbeddingError):
        assert (entry.status, entry.error_type, entry.embedding) == ("error", outcome.code, None)
    else:
        assert (entry.status, entry.dim, entry.error) == ("ok", len(outcome), None)
        assert entry.embedding.tobytes() == outcome.tobytes()

"""What a task's arguments become: strict on types, tolerant of unknown fields, one bad item costs only itself."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from legit_embedding.contract import EntryTemplate, Names, parse_entry, parse_envelope, salvage_reply_to
from legit_embedding.errors import InternalError, InvalidEnvelopeError
from legit_embedding.values import (
    Delivery,
    Envelope,
    FileSource,
    InlineSource,
    Item,
    Options,
    RejectedItem,
    ShmSource,
    TextSource,
    UrlSource,
)

NAMES = Names()
KINDS = ("texts", "images", "prepared_images")
SHM = {"path": "/dev/shm/a", "dtype": "float32", "shape": [3, 2, 2]}


def parse(envelope, *, kind="texts", max_items=100, names=NAMES):
    return parse_envelope([envelope], {}, kind=kind, names=names, max_items=max_items)


def refusal(envelope, **more):
    """What an envelope is refused with."""
    with pytest.raises(InvalidEnvelopeError) as caught:
        parse(envelope, **more)
    return str(caught.value)


def only(item, *, kind="texts"):
    """What one item becomes."""
    (parsed,) = parse({"items": [item]}, kind=kind).items
    return parsed


def error_of(item, **more):
    """What one item is rejected with."""
    parsed = only(item, **more)
    assert isinstance(parsed, RejectedItem)
    return str(parsed.error)


# -- the envelope ------------------------------------------------------------------------------------------------------


def test_the_smallest_envelope_has_every_default():
    assert parse({"items": ["a"]}) == Envelope(kind="texts", items=(Item(0, "0", TextSource("a")),))


@pytest.mark.parametrize("given", [None, 5, "text", [], True])
def test_an_envelope_is_an_object(given):
    assert refusal(given).startswith("the envelope must be an object, not ")
    with pytest.raises(InvalidEnvelopeError, match="must be an object"):
        parse_envelope([], {"envelope": given}, kind="texts", names=NAMES, max_items=1)


def test_an_envelope_given_twice_is_refused():
    with pytest.raises(InvalidEnvelopeError, match=r"given twice.*`envelope`"):
        parse_envelope([{"items": ["a"]}], {"envelope": {}}, kind="texts", names=NAMES, max_items=1)


def test_keywords_beside_a_positional_envelope_are_unknown_fields():
    envelope = parse_envelope([{"items": ["a"]}], {"model": "x"}, kind="texts", names=NAMES, max_items=1)
    assert envelope.model is None


@pytest.mark.parametrize("field", ["reply_to", "source", "batch_id", "model"])
@pytest.mark.parametrize("value", [5, 1.5, True, ["a"], {"a": 1}])
def test_a_field_that_is_no_string_is_named(field, value):
    assert refusal({"items": ["a"], field: value}).startswith(f"`{field}` must be a string, not ")


@pytest.mark.parametrize("field", ["reply_to", "source", "batch_id", "model"])
def test_half_a_surrogate_pair_is_refused_where_an_entry_would_carry_it(field):
    assert f"`{field}` holds half a surrogate pair" in refusal({"items": ["a"], field: "\udc00"})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("fast", "`options` must be an object, not a string"),
        ({"dimensions": 0}, "`options.dimensions` must be a positive integer, not 0"),
        ({"dimensions": -3}, "`options.dimensions` must be a positive integer, not -3"),
        ({"dimensions": -(10**4000)}, "`options.dimensions` must be a positive integer, not a number"),
        ({"dimensions": 1.0}, "`options.dimensions` must be a positive integer, not a number"),
        ({"dimensions": True}, "`options.dimensions` must be a positive integer, not a boolean"),
        ({"normalize": 1}, "`options.normalize` must be true or false, not a number"),
        ({"truncate": "no"}, "`options.truncate` must be true or false, not a string"),
        ({"prompt": 5}, "`options.prompt` must be a string, not a number"),
    ],
)
def test_an_option_of_another_type_is_named(options, named):
    assert refusal({"items": ["a"], "options": options}) == named


def test_null_options_are_the_defaults():
    given = {"dimensions": None, "normalize": None, "prompt": "", "truncate": None}
    assert parse({"items": ["a"], "options": given}).options == Options()


def test_as_many_items_as_allowed_and_not_one_more():
    assert len(parse({"items": ["a"] * 100}).items) == 100
    assert refusal({"items": ["a"] * 101}) == "`items` holds 101 items; at most 100 are allowed"
    assert refusal({"texts": ["a"] * 101}) == "`texts` holds 101 items; at most 100 are allowed"


def test_an_empty_list_is_called_by_its_own_name():
    assert refusal({"items": []}) == "`items` must hold at least one item"
    assert refusal({"texts": []}) == "`texts` must hold at least one item"


def test_null_items_leave_the_word_to_texts():
    assert len(parse({"items": None, "texts": ["a", "b"]}).items) == 2


@pytest.mark.parametrize("field", ["items", "texts"])
def test_a_list_that_is_none_is_named(field):
    assert refusal({field: {"0": "a"}}) == f"`{field}` must be a list, not an object"


def test_a_bad_text_of_the_shorthand_is_called_by_its_place():
    first, second, third = parse({"texts": ["a", 5, None], "ids": ["x", "y", "z"]}).items
    assert first == Item(0, "x", TextSource("a"))
    assert (second.id, str(second.error)) == ("y", "texts[1].text must be a string, not a number")
    assert (third.id, str(third.error)) == ("z", "texts[2] must have exactly one of `text`; it has none")


def test_metadata_that_names_no_usable_stream_is_only_metadata():
    for value in (5, "", None, ["a"], "\ud800"):
        envelope = parse({"items": ["a"], "metadata": {"reply_to": value, "source": value}})
        assert (envelope.reply_to, envelope.source) == (None, None)
        assert envelope.metadata == {"reply_to": value, "source": value}


def test_null_fields_leave_the_word_to_the_metadata():
    given = {"items": ["a"], "reply_to": None, "source": None, "metadata": {"reply_to": "s", "source": "app"}}
    envelope = parse(given)
    assert (envelope.reply_to, envelope.source) == ("s", "app")


def test_metadata_may_be_nested_but_not_without_end():
    """json reads what it cannot write again from a deeper stack: a task like that would get no entry at all."""
    deep = {}
    for _ in range(900):
        deep = {"a": deep}
    assert refusal({"items": ["a"], "metadata": deep}) == "`metadata` is nested more than 100 levels deep"
    assert error_of({"text": "a", "metadata": deep}) == "items[0].metadata is nested more than 100 levels deep"
    shallow = {"a": [{"b": [1]}] * 3}
    assert parse({"items": ["a"], "metadata": shallow}).metadata == shallow


def test_a_deep_option_is_refused_without_being_spelt_out():
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert refusal({"items": ["a"], "options": {"dimensions": deep}}).endswith("not a list")


# -- items -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [("a", "a"), ("", "0"), (None, "0"), (0, "0"), (17, "17"), (-1, "-1"), (" ", " "), ("ünïcode", "ünïcode")],
)
def test_an_id_is_a_string_and_a_missing_one_is_the_index(given, expected):
    assert only({"id": given, "text": "a"}) == Item(0, expected, TextSource("a"))


@pytest.mark.parametrize("given", [1.5, True, ["a"], {"a": 1}])
def test_an_id_of_another_type_rejects_its_item(given):
    assert error_of({"id": given, "text": "a"}).startswith("items[0].id must be a string or an integer, not ")


def test_an_id_with_half_a_surrogate_pair_is_replaced_by_the_index():
    rejected = only({"id": "\ud800", "text": "a"})
    assert (rejected.id, rejected.index) == ("0", 0)
    assert str(rejected.error).startswith("items[0].id holds half a surrogate pair")


@pytest.mark.parametrize(
    ("item", "source"),
    [
        ({"data": "QUJD"}, InlineSource("QUJD")),
        ({"path": "/srv/a.jpg"}, FileSource("/srv/a.jpg")),
        ({"url": "https://a.example/"}, UrlSource("https://a.example/")),
        ({"shm": SHM}, ShmSource("/dev/shm/a", "float32", (3, 2, 2))),
    ],
)
@pytest.mark.parametrize("kind", ["images", "prepared_images"])
def test_both_tasks_of_images_take_every_source_of_images(item, source, kind):
    assert only(item, kind=kind).source == source


@pytest.mark.parametrize("field", ["data", "path", "url", "shm"])
def test_a_task_of_texts_takes_no_images(field):
    assert error_of({field: "x"}) == f"items[0].{field} does not fit this task, which takes `text`"


@pytest.mark.parametrize("item", ["bare", {"text": "a"}])
def test_a_task_of_images_takes_no_texts(item):
    assert "does not fit this task, which takes `data`, `path`, `url`, `shm`" in error_of(item, kind="images")


def test_two_sources_are_one_too_many_and_null_is_none():
    assert error_of({"data": "QUJD", "path": "/a"}, kind="images").endswith("it has `data` and `path`")
    assert only({"data": "QUJD", "path": None}, kind="images").source == InlineSource("QUJD")


@pytest.mark.parametrize("field", ["data", "path", "url"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (5, "must be a string, not a number"),
        ("", "is empty"),
        (" \n", "is empty"),
        ("\ud800", "holds half a surrogate"),
    ],
)
def test_a_source_that_is_no_text_is_named(field, value, problem):
    assert error_of({field: value}, kind="images").startswith(f"items[0].{field} {problem}")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"path": 5}, "path must be a string, not a number"),
        ({"path": ""}, "path is empty"),
        ({"path": "/dev/shm/\ud800"}, "path holds half a surrogate pair"),
        ({"dtype": ["float32"]}, "dtype must be a string, not a list"),
        ({"shape": "3,2,2"}, "shape must be three positive integers"),
        ({"shape": [3, 2]}, "shape must be three positive integers"),
        ({"shape": [3, 2, 2, 1]}, "shape must be three positive integers"),
        ({"shape": [3, 2, 0]}, "shape must be three positive integers"),
        ({"shape": [3, 2, 2.0]}, "shape must be three positive integers"),
        ({"shape": [3, 2, True]}, "shape must be three positive integers"),
        ({"shape": [2**31] * 1_000_000}, "shape must be three positive integers"),
    ],
)
def test_a_tensor_is_described_in_full(change, problem):
    assert error_of({"shm": SHM | change}, kind="images").startswith(f"items[0].shm.{problem}")


def test_a_rejected_item_keeps_its_id_and_metadata():
    rejected = only({"id": "a", "metadata": {"k": 1}, "text": 5})
    assert (rejected.id, rejected.metadata) == ("a", {"k": 1})


def test_one_bad_item_does_not_fail_its_neighbours():
    items = parse({"items": ["a", 5, {"text": "b"}, {}, None, "c"]}).items
    assert [type(item) for item in items] == [Item, RejectedItem, Item, RejectedItem, RejectedItem, Item]
    assert [item.index for item in items] == list(range(6))


def test_errors_speak_the_names_of_the_site():
    names = Names.from_tables({"envelope": {"items": "docs", "id": "uid", "text": "body", "options": "opts"}})
    (item,) = parse({"docs": [{"uid": 1.5, "body": "a"}]}, names=names).items
    assert str(item.error) == "docs[0].uid must be a string or an integer, not a number"
    assert refusal({"docs": ["a"], "opts": 5}, names=names) == "`opts` must be an object, not a number"
    assert refusal({"items": ["a"]}, names=names).startswith("`docs` or `texts` must hold")


def test_a_tensor_is_described_in_the_names_of_the_site():
    names = Names.from_tables({"envelope": {"shm": "memory", "path": "file", "dtype": "type", "shape": "sizes"}})
    given = {"items": [{"memory": {"file": "/dev/shm/a", "type": "uint8", "sizes": [3, 2, 2]}}, {"memory": {}}]}
    good, bad = parse(given, kind="images", names=names).items
    assert good.source == ShmSource("/dev/shm/a", "uint8", (3, 2, 2))
    assert str(bad.error).startswith("items[1].memory.sizes must be")


# -- anything at all ---------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8)
words = st.sampled_from([*NAMES.envelope, "other"])
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(words | st.text(max_size=3), json_values, max_size=4)
envelopes = st.fixed_dictionaries(
    {"items": st.lists(objects | json_values, min_size=1, max_size=4)},
    optional={"reply_to": json_values, "metadata": json_values, "options": json_values, "model": json_values},
)
patient = settings(suppress_health_check=[HealthCheck.too_slow])  # a loaded machine is no failure
arguments = st.tuples(st.lists(envelopes | json_values, max_size=2), objects)


@patient
@given(arguments, st.sampled_from(KINDS), st.integers(1, 5))
def test_nothing_but_an_invalid_envelope_is_ever_raised(arguments, kind, max_items):
    args, kwargs = json.loads(json.dumps(arguments))
    try:
        envelope = parse_envelope(args, kwargs, kind=kind, names=NAMES, max_items=max_items)
    except InvalidEnvelopeError:
        return
    assert 1 <= len(envelope.items) <= max_items
    assert [item.index for item in envelope.items] == list(range(len(envelope.items)))


@patient
@given(st.lists(objects | json_values, min_size=1, max_size=4), objects, st.sampled_from(KINDS))
def test_what_is_understood_can_be_written(items, metadata, kind):
    """Each item of whatever shape gets an entry that UTF-8 and JSON can hold, with no field empty."""
    given_items, given_metadata = json.loads(json.dumps([items, metadata]))
    envelope = parse({"items": given_items, "metadata": given_metadata}, kind=kind)
    template = EntryTemplate.create(NAMES, Delivery("t"), worker="w", modality="text").with_envelope(envelope)
    for item in envelope.items:
        fields = template.entry(item, getattr(item, "error", InternalError("x")), at_ms=1)
        assert all(value.encode("utf-8") != b"" for value in fields.values())
        assert parse_entry(fields, names=NAMES).item_id == item.id


@patient
@given(arguments)
def test_a_salvaged_stream_is_one_that_can_be_written_to(arguments):
    args, kwargs = json.loads(json.dumps(arguments))
    salvaged = salvage_reply_to(args, kwargs, NAMES)
    assert salvaged is None or salvaged.encode()


@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1, max_size=20), st.data()
)
def test_texts_and_ids_are_items_spelt_short(texts, data):
    """The shorthand and the long form parse to the same envelope."""
    id_lists = st.lists(st.none() | st.integers() | st.just("id"), min_size=len(texts), max_size=len(texts))
    ids = data.draw(id_lists)
    long = [{"id": item_id, "text": text} for item_id, text in zip(ids, texts, strict=True)]
    assert parse({"texts": texts, "ids": ids}) == parse({"items": long})
    assert parse({"texts": texts}) == parse({"items": texts})

"""A body's JSON, and what is left to kombu."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import dumps, loads

from legit_embedding.broker import bodies
from legit_embedding.broker.bodies import OTHER, plain_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def message(body, *, kind="application/json", encoding="utf-8", accept=None):
    return SimpleNamespace(body=body, content_type=kind, content_encoding=encoding, accept=accept)


@given(values, st.booleans())
def test_plain_values_are_what_kombu_would_make_of_them(value, as_bytes):
    text = dumps(value)
    found = plain_json(message(text.encode() if as_bytes else text))
    assert found is OTHER or found == loads(text)
    assert (found is OTHER) == ('"__type__"' in text)


@pytest.mark.parametrize(
    "left",
    [
        message('{"__type__": "uuid", "__value__": "x"}'),
        message("[1]", kind="application/x-yaml"),
        message("[1]", encoding="latin-1"),
        message("[1]", accept={"application/x-yaml"}),
        message("{no json"),
        message(b"\xff"),
        message("[" * 100_000),
        message({"already": "decoded"}),
        message(memoryview(b"[1]")),
    ],
)
def test_all_else_is_left_to_kombu(left):
    assert plain_json(left) is OTHER


@pytest.mark.parametrize("accept", [None, {"application/json"}])
@pytest.mark.parametrize("encoding", [None, "", "utf-8"])
def test_what_is_accepted_is_decoded(accept, encoding):
    assert plain_json(message("[1]", accept=accept, encoding=encoding)) == [1]


def test_a_large_body_is_left_to_kombu(monkeypatch):
    monkeypatch.setattr(bodies, "LARGE_CHARS", 10)
    assert plain_json(message(json.dumps([1, 2]))) == [1, 2]
    assert plain_json(message(json.dumps([1, 2, 3, 4]))) is OTHER

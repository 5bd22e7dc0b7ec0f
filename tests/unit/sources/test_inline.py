"""base64 in every dress that producers give it, and the limit that holds before anything is decoded."""

import base64
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legit_embedding.errors import EmbeddingError, InvalidItemError, SourceTooLargeError
from legit_embedding.sources.inline import checked_text, decode_inline, decoded_nbytes

MANY = 1_000_000


def encoded(content):
    return base64.b64encode(content).decode()


@pytest.mark.parametrize(
    "data",
    [
        "AP9BQg==",
        " AP9B\r\nQg==\n",
        "AP9\tBQg==",
        "data:image/png;base64,AP9BQg==",
        "DATA:image/png;charset=utf-8;BASE64 ,AP9BQg==",
        "data:;base64,AP9B%0AQg%3D%3D",
        "data:image/png,%00%FFAB",
        "data:,%00%ffAB",
    ],
)
def test_every_spelling_gives_the_same_bytes(data):
    assert decode_inline(data, max_bytes=MANY) == b"\x00\xffAB"


@pytest.mark.parametrize(
    "data", ["AP9BQg", "AP9BQg=", "AP9BQg==AAAA", "A", "AP9B*g==", "data:image/png;base64,?", "ÄP9B", "=", "Zürich"]
)
def test_what_is_no_base64_is_an_invalid_item(data):
    with pytest.raises(InvalidItemError, match="not valid base64"):
        decode_inline(data, max_bytes=MANY)


def test_the_url_safe_alphabet_is_recognised_and_refused():
    with pytest.raises(InvalidItemError, match="URL-safe alphabet"):
        decode_inline(base64.urlsafe_b64encode(b"\xff\xfe\xfd").decode(), max_bytes=MANY)


def test_a_data_url_without_a_comma_is_told_so():
    with pytest.raises(InvalidItemError, match="comma"):
        decode_inline("data:image/png;base64", max_bytes=MANY)


@pytest.mark.parametrize(
    "dress", [encoded, lambda c: f"data:;base64,{encoded(c)}", lambda c: "data:," + "%41" * len(c)]
)
@pytest.mark.parametrize("nbytes", [97, 98, 99, 100])
def test_the_limit_is_exact(dress, nbytes):
    content = b"A" * nbytes
    assert decode_inline(dress(content), max_bytes=nbytes) == content
    with pytest.raises(SourceTooLargeError, match="LEGIT_MAX_SOURCE_BYTES"):
        decode_inline(dress(content), max_bytes=nbytes - 1)


def test_line_breaks_do_not_count_against_the_limit():
    """A MIME encoder puts one after each 76 characters."""
    content = bytes(range(256)) * 40
    mime = base64.encodebytes(content).decode().replace("\n", "\r\n")
    assert decode_inline(mime, max_bytes=len(content)) == content


def test_too_much_is_refused_before_it_is_decoded():
    """Only the packed text is ever held beside the message, never what it would become."""
    data = "A" * 4_000_000
    tracemalloc.start()
    try:
        with pytest.raises(SourceTooLargeError):
            decode_inline(data, max_bytes=1000)
        assert tracemalloc.get_traced_memory()[1] < len(data) * 1.5
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=300))
def test_whatever_was_encoded_comes_out(content):
    for data in (encoded(content), f"data:image/webp;base64,{encoded(content)}"):
        assert decode_inline(data, max_bytes=300) == content


@given(
    st.sampled_from(["", "data:,", "data:;base64,", "data:image/png", "DATA:x;base64,"]),
    st.text(st.characters(codec="utf-8")) | st.text("ABab01+/= \n%-_,;€"),
)
def test_no_more_comes_out_than_was_foretold(prefix, text):
    """And whatever goes in, an error is one of ours."""
    data = prefix + text
    try:
        decoded = decode_inline(data, max_bytes=MANY)
    except EmbeddingError:
        return
    assert len(decoded) <= decoded_nbytes(data)


@pytest.mark.parametrize(("text", "fits"), [("a" * 12, True), ("a" * 13, False), ("漢" * 4, True), ("漢" * 5, False)])
def test_a_text_is_bounded_by_its_utf_8(text, fits):
    if fits:
        assert checked_text(text, max_bytes=12) is text
    else:
        with pytest.raises(SourceTooLargeError, match="LEGIT_MAX_SOURCE_BYTES"):
            checked_text(text, max_bytes=12)

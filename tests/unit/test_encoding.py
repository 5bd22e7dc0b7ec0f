"""Vectors on the wire."""

import base64
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legit_embedding.encoding import decode_embedding, encode_embedding


def test_the_encoding_is_base64_of_little_endian_float32():
    assert base64.b64decode(encode_embedding([1.0, -2.5])) == struct.pack("<2f", 1.0, -2.5)


def test_other_dtypes_and_strided_views_are_written_as_float32():
    matrix = np.arange(6, dtype=np.float64).reshape(2, 3)
    assert decode_embedding(encode_embedding(matrix[:, 1])).tolist() == [1.0, 4.0]


def test_a_matrix_is_refused():
    with pytest.raises(ValueError, match=r"shape \(dim,\)"):
        encode_embedding(np.zeros((2, 2)))


@pytest.mark.parametrize("broken", ["not base64!", "AAA="])
def test_what_is_no_vector_is_refused(broken):
    with pytest.raises(ValueError):
        decode_embedding(broken)


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=64))
def test_decoding_gives_back_what_was_encoded(values):
    decoded = decode_embedding(encode_embedding(values))
    assert decoded.dtype == np.float32
    assert decoded.tolist() == values

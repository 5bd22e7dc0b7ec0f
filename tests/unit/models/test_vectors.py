"""What goes on the wire: cut, of unit length, and never a vector that means nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from legit_embedding.errors import InvalidItemError, InvalidVectorError
from legit_embedding.models.vectors import finalize, fingerprint
from legit_embedding.values import Options

any_float32 = st.floats(width=32, allow_nan=True, allow_infinity=True)
matrices = npst.arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 6)), elements=any_float32)


@given(matrices, st.data())
def test_every_row_becomes_a_unit_vector_or_an_error_that_says_why(matrix, data):
    """Also where squares overflow float32, and where a norm is too small for it."""
    choice = st.builds(Options, dimensions=st.none() | st.integers(1, 8), normalize=st.booleans())
    options = data.draw(st.lists(choice, min_size=len(matrix), max_size=len(matrix)))
    outcomes = finalize(matrix, options)
    assert len(outcomes) == len(matrix)
    for row, wanted, outcome in zip(matrix, options, outcomes, strict=True):
        kept = row[: wanted.dimensions]
        if (wanted.dimensions or 0) > len(row):
            assert isinstance(outcome, InvalidItemError)
        elif not np.isfinite(kept).all() or not kept.any():
            assert isinstance(outcome, InvalidVectorError)
        else:
            assert (outcome.dtype, outcome.shape) == (np.float32, kept.shape)
            if wanted.normalize:
                assert np.linalg.norm(outcome.astype(np.float64)) == pytest.approx(1.0, abs=1e-5)
                assert (np.sign(outcome) * np.sign(kept) >= 0).all()
            else:
                np.testing.assert_array_equal(outcome, kept)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1, np.nan], "the model gave a vector with NaN in it"),
        ([1, -np.inf], "the model gave a vector with an infinite value in it"),
        ([0, 0], "the model gave a vector of zero norm, which has no direction"),
    ],
)
def test_an_invalid_row_is_told_apart_and_its_neighbours_are_fine(row, words):
    good, bad = finalize(np.array([[3, 4], row], np.float32), [Options(), Options()])
    np.testing.assert_allclose(good, [0.6, 0.8], rtol=1e-6)
    assert (type(bad), str(bad)) == (InvalidVectorError, words)


def test_a_vector_is_cut_before_it_is_normalised():
    (outcome,) = finalize(np.array([[3, 4, 12]], np.float32), [Options(dimensions=2)])
    np.testing.assert_allclose(outcome, [0.6, 0.8], rtol=1e-6)


def test_a_cut_can_leave_nothing():
    (outcome,) = finalize(np.array([[0, 1]], np.float32), [Options(dimensions=1)])
    assert isinstance(outcome, InvalidVectorError)


def test_more_dimensions_than_there_are_cannot_be_had():
    (outcome,) = finalize(np.ones((1, 2), np.float32), [Options(dimensions=3)])
    assert str(outcome) == "options.dimensions is 3, but the model's vectors have 2"


def test_the_raw_matrix_is_neither_changed_nor_kept():
    matrix = np.full((2, 2), 2, np.float32)
    outcomes = finalize(matrix, [Options(), Options(normalize=False)])
    assert not any(np.shares_memory(outcome, matrix) for outcome in outcomes)
    assert (matrix == 2).all()


parts = st.dictionaries(st.text(min_size=1), st.none() | st.integers() | st.text() | st.booleans(), max_size=4)


@given(parts, parts)
def test_fingerprints_are_equal_exactly_where_their_parts_are(one, other):
    same = fingerprint(parts=one) == fingerprint(parts=other)
    assert same == (repr(sorted(one.items())) == repr(sorted(other.items())))


def test_a_fingerprint_is_the_same_in_every_process_and_version():
    """It is stored beside vectors: a change here means that none of them can be compared any more."""
    assert fingerprint(model="fake", dim=8, options={"normalize": True}) == "bcf6868c99f8e630"
    assert fingerprint(options={"normalize": True}, dim=8, model="fake") == "bcf6868c99f8e630"

"""Pauses between attempts."""

from hypothesis import given
from hypothesis import strategies as st

from legit_embedding.backoff import Backoff


def test_the_ceiling_doubles_up_to_the_maximum():
    backoff = Backoff(base_s=0.5, max_s=3.0, tries=5, uniform=lambda low, high: high)
    assert list(backoff.pauses_s()) == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_no_tries_means_no_pauses():
    assert list(Backoff(base_s=1, max_s=1, tries=0).pauses_s()) == []


@given(st.integers(0, 10_000), st.floats(0.001, 100), st.floats(0.001, 1000))
def test_a_pause_is_never_negative_nor_above_the_maximum(attempt, base_s, max_s):
    assert 0 <= Backoff(base_s=base_s, max_s=max_s).pause_s(attempt) <= max_s

"""Calls are held back where more threads gain nothing, and not where they would wait in vain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legit_embedding.pool.patience import (
    LONGEST_PAUSE_S,
    LOOK_S,
    PARALLEL,
    PAUSE_S,
    PROOF_S,
    SCARCE,
    SPELL_S,
    Patience,
)


def look(patience, *, busy=1.0, late=False, idle=False, elapsed_s=None):
    elapsed_s = patience.next_look_s if elapsed_s is None else elapsed_s
    return patience.look(elapsed_s=elapsed_s, cpu_s=busy * elapsed_s, late=late, idle=idle)


@pytest.fixture
def patient():
    own = Patience()
    assert look(own)
    return own


def test_at_first_nothing_is_held_back():
    patience = Patience()
    assert not patience.holds
    assert patience.next_look_s == PAUSE_S


@pytest.mark.parametrize(
    ("busy", "holds"),
    [(0.0, False), (SCARCE - 0.01, False), (SCARCE + 0.01, True), (PARALLEL - 0.01, True), (PARALLEL + 0.01, False)],
)
def test_it_holds_back_while_the_threads_use_up_a_core_and_no_more(busy, holds):
    patience = Patience()
    assert look(patience, busy=busy) is holds
    assert patience.next_look_s == (LOOK_S if holds else PAUSE_S)
    assert look(patience, busy=busy) is holds


def test_once_they_no_longer_do_nothing_is_held_back(patient):
    assert not look(patient, busy=0.5)
    assert patient.next_look_s == PAUSE_S
    assert look(patient)


def test_an_idle_moment_is_no_failure(patient):
    for _ in range(100):
        assert not look(patient, busy=0.5)
        assert look(patient)
    assert not look(patient, late=True)
    assert patient.next_look_s == PAUSE_S


def test_where_nothing_is_offered_nothing_is_held_back(patient):
    assert not look(patient, idle=True)
    assert patient.next_look_s == PAUSE_S
    assert look(patient)
    assert not look(patient, late=True)
    assert patient.next_look_s == PAUSE_S  # it was no failure


def test_a_late_call_without_patience_is_no_failure():
    patience = Patience()
    for _ in range(5):
        assert not look(patience, late=True)
    assert patience.next_look_s == PAUSE_S
    assert look(patience)
    assert not look(patience, late=True)
    assert patience.next_look_s == PAUSE_S


def test_after_a_late_call_nothing_is_held_back_for_a_while(patient):
    assert not look(patient, late=True)
    assert patient.next_look_s == PAUSE_S
    assert look(patient)


def test_the_while_doubles_where_it_fails_again_soon_up_to_a_bound(patient):
    pauses = []
    for _ in range(10):
        assert not look(patient, late=True)
        pauses.append(patient.next_look_s)
        assert look(patient)
    assert pauses[:3] == [PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    assert not look(patient, busy=0.5)
    assert patient.next_look_s == PAUSE_S


def test_where_it_has_done_well_for_long_the_next_failure_counts_as_the_first(patient):
    for _ in range(3):
        look(patient, late=True)
        look(patient)
    assert look(patient, elapsed_s=PROOF_S / 2)
    assert not look(patient, idle=True)
    assert look(patient)
    assert not look(patient, late=True, elapsed_s=PROOF_S / 2)
    assert patient.next_look_s == PAUSE_S


def test_each_spell_has_an_end_to_see_how_it_is_without(patient):
    for _ in range(3):
        assert look(patient, elapsed_s=0.6 * SPELL_S)
        assert not look(patient, elapsed_s=0.6 * SPELL_S)
        assert patient.next_look_s == PAUSE_S
        assert look(patient)
    assert not look(patient, elapsed_s=1.2 * SPELL_S)
    assert not look(patient, busy=PARALLEL + 0.1)
    assert patient.next_look_s == PAUSE_S


@given(st.lists(st.tuples(st.floats(0, 2), st.booleans(), st.floats(0, 20))))
def test_never_with_a_late_call_nor_with_a_core_to_spare(looks):
    patience = Patience()
    for busy, late, over_s in looks:
        elapsed_s = patience.next_look_s + over_s
        holds = look(patience, busy=busy, late=late, elapsed_s=elapsed_s)
        assert holds is patience.holds
        if late or not SCARCE * elapsed_s <= busy * elapsed_s <= PARALLEL * elapsed_s:
            assert not holds
        assert patience.next_look_s == LOOK_S if holds else PAUSE_S <= patience.next_look_s <= LONGEST_PAUSE_S


@given(st.integers(2, 400))
def test_of_long_failing_a_hundredth_of_the_time_is_spent_on_it_at_the_most(failures):
    patience, held_s, total_s = Patience(), 0.0, 0.0
    for _ in range(failures):
        for late in (False, True):
            pause_s = patience.next_look_s
            held_s += pause_s if patience.holds else 0.0
            total_s += pause_s
            look(patience, late=late)
    assert held_s / total_s < 0.1
    assert failures < 100 or held_s / total_s < 0.01

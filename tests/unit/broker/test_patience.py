"""Who looks first, of many that are told; what comes of it is in the tests of `takes`."""

import pytest

from legit_embedding.broker.patience import (
    AT_ONCE_S,
    COUNT_PAUSE_S,
    FEW_LINES,
    LONGEST_SPREAD_S,
    PATIENCE,
    Patience,
)


def loser(losses, lot=1.0):
    own = Patience(lambda: lot)
    for _ in range(losses):
        own.lose()
    return own


@pytest.mark.parametrize("losses", [0, PATIENCE])
def test_who_has_not_lost_for_long_does_not_wait(losses):
    assert loser(losses).wait_s() == 0


def test_who_loses_on_waits_longer_each_time_up_to_a_bound():
    waits_s = [loser(PATIENCE + more).wait_s() for more in range(1, 8)]
    assert waits_s == pytest.approx([min(AT_ONCE_S * 2**more, LONGEST_SPREAD_S) for more in range(1, 8)])


def test_a_small_lot_is_no_wait():
    assert loser(1000, AT_ONCE_S / LONGEST_SPREAD_S).wait_s() == 0
    assert loser(1000, AT_ONCE_S / LONGEST_SPREAD_S + 0.001).wait_s() > 0


def test_who_wins_does_not_wait_any_more():
    own = loser(1000)
    own.win()
    assert own.wait_s() == 0


def test_where_there_are_few_in_all_nobody_waits():
    own = loser(1000)
    own.counted(FEW_LINES)
    assert own.wait_s() == 0
    own.counted(FEW_LINES + 1)
    assert own.wait_s() == LONGEST_SPREAD_S


def test_how_many_there_are_is_asked_by_those_who_lose_for_long_and_seldom():
    assert not loser(PATIENCE - 1).to_count(5.0)
    own = loser(PATIENCE)
    assert own.to_count(5.0)
    assert not own.to_count(5.0 + COUNT_PAUSE_S / 2)
    assert own.to_count(5.0 + COUNT_PAUSE_S)

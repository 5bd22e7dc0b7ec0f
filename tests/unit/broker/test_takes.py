"""When messages are taken, and how many."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from legit_embedding.broker.takes import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    REFUSED_PAUSE_S,
    SAFETY_PAUSE_S,
    SMALL_TAKE_PAUSE_S,
    Decision,
    State,
    Takes,
)

NOTHING = Decision(0)
ROUNDING_S = 1e-9


def takes(*, messages=10, in_flight=2, pushes=True):
    return Takes(messages=messages, in_flight=in_flight, pushes=pushes)


def send(takes, now_s, *, room, prefetch=0):
    """Decides and sends; how many it asked for."""
    asked = takes.decide(now_s, room=room, prefetch=prefetch).messages
    takes.sent(now_s, asked)
    return asked


def idle(*, pushes=True, now_s=0.0):
    """Takes that have just found all queues empty."""
    own = takes(pushes=pushes)
    asked = send(own, now_s, room=10)
    if own.answered(now_s, asked, 0, full=False):
        own.armed(now_s, empty=True)
    return own


# -- how many ----------------------------------------------------------------------------------------------------------


@given(room=st.integers(-5, 500), prefetch=st.integers(0, 500), most=st.integers(1, 300))
def test_a_first_take_asks_for_all_the_room_up_to_its_most(room, prefetch, most):
    decision = takes(messages=most).decide(0.0, room=room, prefetch=prefetch)
    assert decision.messages == max(0, min(room, most))


def test_without_room_nothing_is_asked_for_and_room_comes_by_itself():
    assert takes().decide(0.0, room=0, prefetch=10) == NOTHING


def test_no_more_takes_are_in_flight_than_allowed():
    own = takes(in_flight=2)
    send(own, 0.0, room=100)
    send(own, 0.0, room=90)
    assert own.decide(0.0, room=80, prefetch=0) == NOTHING
    own.answered(0.0, 10, 10, full=False)
    assert own.decide(0.0, room=80, prefetch=0) == Decision(10)


def test_what_was_asked_for_is_spoken_for_until_its_reply():
    own = takes()
    send(own, 0.0, room=10)
    send(own, 0.0, room=7)
    assert (own.in_flight, own.reserved) == (2, 17)
    own.answered(0.1, 10, 3, full=False)
    assert (own.in_flight, own.reserved) == (1, 7)
    own.refused(0.1, 7)
    assert (own.in_flight, own.reserved) == (0, 0)


# -- small takes -------------------------------------------------------------------------------------------------------


def test_a_take_with_less_than_a_quarter_of_the_prefetch_waits_for_those_that_are_in_flight():
    own = takes(messages=100, in_flight=4)
    send(own, 0.0, room=10, prefetch=40)
    assert own.decide(1.0, room=9, prefetch=40) == NOTHING
    assert own.decide(1.0, room=10, prefetch=40) == Decision(10)


def test_a_small_take_waits_until_the_last_one_is_long_enough_ago():
    own = takes(messages=100)
    asked = send(own, 1.0, room=10, prefetch=40)
    own.answered(1.001, asked, asked, full=False)
    decision = own.decide(1.001, room=1, prefetch=40)
    assert decision.messages == 0
    assert decision.again_s == pytest.approx(SMALL_TAKE_PAUSE_S - 0.001)
    assert own.decide(1.0 + SMALL_TAKE_PAUSE_S, room=1, prefetch=40) == Decision(1)


def test_a_take_of_the_most_is_never_small():
    own = takes(messages=4)
    send(own, 0.0, room=4, prefetch=1000)
    assert own.decide(0.0, room=4, prefetch=1000) == Decision(4)


@pytest.mark.parametrize("prefetch", [0, 1, 2, 3, 4, 7])
def test_with_a_prefetch_of_a_few_or_without_bound_no_take_is_small(prefetch):
    own = takes(messages=100)
    asked = send(own, 0.0, room=1, prefetch=prefetch)
    own.answered(0.0, asked, asked, full=False)
    assert own.decide(0.0, room=1, prefetch=prefetch) == Decision(1)


# -- empty queues ------------------------------------------------------------------------------------------------------


def test_a_full_take_is_followed_by_the_next():
    own = takes()
    asked = send(own, 0.0, room=10)
    assert not own.answered(0.0, asked, asked, full=False)
    assert own.decide(0.0, room=10, prefetch=0) == Decision(10)


def test_a_take_that_stopped_at_its_bytes_is_followed_by_the_next():
    own = takes()
    asked = send(own, 0.0, room=10)
    assert not own.answered(0.0, asked, 1, full=True)
    assert own.decide(0.0, room=10, prefetch=0) == Decision(10)


@pytest.mark.parametrize("got", [0, 3])
def test_the_last_take_that_brought_less_than_asked_for_asks_the_server_to_tell(got):
    own = takes(in_flight=2)
    send(own, 0.0, room=20)
    send(own, 0.0, room=10)
    assert not own.answered(0.0, 10, got, full=False)
    assert own.answered(0.0, 10, got, full=False)
    assert own.state is State.ARMING
    assert own.decide(100.0, room=10, prefetch=0) == NOTHING


def test_what_came_before_the_server_watched_is_taken_at_once():
    own = takes()
    own.answered(0.0, send(own, 0.0, room=10), 0, full=False)
    own.armed(0.1, empty=False)
    assert own.decide(0.1, room=10, prefetch=0) == Decision(10)


def test_where_the_server_tells_nothing_is_asked_for_until_it_does():
    own = idle()
    assert own.decide(0.5, room=10, prefetch=0) == Decision(0, SAFETY_PAUSE_S - 0.5)
    own.woken()
    assert own.decide(0.5, room=10, prefetch=0) == Decision(10)


def test_a_wake_up_that_is_lost_costs_no_more_than_the_safety_pause():
    assert idle().decide(SAFETY_PAUSE_S, room=10, prefetch=0) == Decision(10)


def test_a_wake_up_is_spent_by_the_take_that_it_causes():
    own = idle()
    own.woken()
    asked = send(own, 0.0, room=10)
    own.answered(0.0, asked, 0, full=False)
    own.armed(0.0, empty=True)
    assert own.decide(0.0, room=10, prefetch=0).messages == 0


def test_a_wake_up_while_there_is_no_room_is_remembered():
    own = idle()
    own.woken()
    assert own.decide(0.1, room=0, prefetch=4) == NOTHING
    assert own.decide(0.2, room=3, prefetch=4) == Decision(3)


def test_a_wake_up_before_the_server_has_said_that_it_watches_is_remembered():
    own = takes()
    own.answered(0.0, send(own, 0.0, room=10), 0, full=False)
    own.woken()
    own.armed(0.0, empty=True)
    assert own.decide(0.0, room=10, prefetch=0) == Decision(10)


def test_where_the_server_cannot_tell_the_pauses_between_looks_double_up_to_the_longest():
    own = takes(pushes=False)
    now_s, pauses_s = 0.0, []
    for _ in range(8):
        assert not own.answered(now_s, send(own, now_s, room=10), 0, full=False)
        pauses_s.append(own.decide(now_s, room=10, prefetch=0).again_s)
        now_s += pauses_s[-1] + ROUNDING_S
    assert pauses_s == pytest.approx([min(FIRST_PAUSE_S * 2**n, LONGEST_PAUSE_S) for n in range(8)])


def test_a_message_makes_the_pauses_short_again():
    own = takes(pushes=False)
    for now_s in (0.0, 1.0, 2.0):
        own.answered(now_s, send(own, now_s, room=10), 0, full=False)
    own.answered(3.0, send(own, 3.0, room=10), 1, full=False)
    own.answered(3.0, send(own, 3.0, room=10), 0, full=False)
    assert own.decide(3.0, room=10, prefetch=0).again_s == pytest.approx(FIRST_PAUSE_S)


def test_a_refusal_is_followed_by_a_pause():
    own = takes()
    own.refused(5.0, send(own, 5.0, room=10))
    assert own.decide(5.0, room=10, prefetch=0) == Decision(0, REFUSED_PAUSE_S)
    assert own.decide(5.0 + REFUSED_PAUSE_S, room=10, prefetch=0) == Decision(10)


def test_repr_shows_what_it_waits_for():
    own = takes()
    send(own, 0.0, room=7)
    assert repr(own) == "<Takes taking, 1 in flight for 7 messages>"


# -- whatever happens --------------------------------------------------------------------------------------------------


class TakesMachine(RuleBasedStateMachine):
    """A server and a worker that do what they like, and a clock."""

    @initialize(
        messages=st.integers(1, 50), in_flight=st.integers(1, 4), pushes=st.booleans(), prefetch=st.integers(0, 200)
    )
    def start(self, messages, in_flight, pushes, prefetch):
        self.takes = Takes(messages=messages, in_flight=in_flight, pushes=pushes)
        self.most, self.most_in_flight, self.prefetch = messages, in_flight, prefetch
        self.small = max(1, min(messages, prefetch // 4))
        self.now_s = 100.0
        self.under_way = []
        self.last_sent_s = float("-inf")
        self.watching = False

    def decide(self, room):
        decision = self.takes.decide(self.now_s, room=room, prefetch=self.prefetch)
        assert decision.messages <= max(0, min(room, self.most))
        if decision.messages:
            assert len(self.under_way) < self.most_in_flight
            if decision.messages < self.small:
                assert not self.under_way
                assert self.now_s - self.last_sent_s >= SMALL_TAKE_PAUSE_S - ROUNDING_S
            self.takes.sent(self.now_s, decision.messages)
            self.under_way.append(decision.messages)
            self.last_sent_s = self.now_s
        return decision

    @rule(room=st.integers(-3, 200))
    def a_turn(self, room):
        self.decide(room)

    @rule(seconds=st.floats(0, 2, allow_subnormal=False))
    def time_goes_by(self, seconds):
        self.now_s += seconds

    @precondition(lambda self: self.under_way)
    @rule(share=st.floats(0, 1), full=st.booleans())
    def a_reply(self, share, full):
        asked = self.under_way.pop(0)
        if self.takes.answered(self.now_s, asked, int(asked * share), full=full):
            assert not self.under_way
            self.watching = True

    @precondition(lambda self: self.under_way)
    @rule()
    def a_refusal(self):
        self.takes.refused(self.now_s, self.under_way.pop(0))

    @precondition(lambda self: self.watching)
    @rule(empty=st.booleans())
    def the_server_watches(self, empty):
        self.watching = False
        self.takes.armed(self.now_s, empty=empty)

    @rule()
    def a_push(self):
        self.takes.woken()

    @precondition(lambda self: not self.under_way and not self.watching)
    @rule(room=st.integers(1, 200))
    def with_room_and_nothing_to_wait_for_it_comes_back_by_itself_and_takes(self, room):
        waited_s = 0.0
        while not (decision := self.decide(room)).messages:
            assert decision.again_s is not None
            waited_s += decision.again_s
            assert waited_s <= SAFETY_PAUSE_S + SMALL_TAKE_PAUSE_S + ROUNDING_S
            self.now_s += decision.again_s + ROUNDING_S

    @invariant()
    def what_is_spoken_for_is_what_is_under_way(self):
        assert self.takes.in_flight == len(self.under_way) <= self.most_in_flight
        assert self.takes.reserved == sum(self.under_way)


TestWhateverHappens = TakesMachine.TestCase

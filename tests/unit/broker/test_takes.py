"""When messages are taken, and how many."""

import heapq
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from legit_embedding.broker.patience import AT_ONCE_S, FEW_LINES, LONGEST_SPREAD_S, PATIENCE, Patience
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
LOOK = Decision(0, look=True)
ROUNDING_S = 1e-9


def takes(*, messages=10, in_flight=2, pushes=True, draw=lambda: 0.5):
    return Takes(messages=messages, in_flight=in_flight, pushes=pushes, patience=Patience(draw))


def send(takes, now_s, *, room, prefetch=0):
    """Decides and sends; how many it asked for."""
    asked = takes.decide(now_s, room=room, prefetch=prefetch).messages
    takes.sent(now_s, asked)
    return asked


def idle(*, pushes=True, now_s=0.0, **options):
    """Takes that have just found all queues empty."""
    own = takes(pushes=pushes, **options)
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
    own.told()
    assert own.decide(0.5, room=10, prefetch=0) == Decision(10)


def test_a_wake_up_that_is_lost_costs_no_more_than_the_safety_pause():
    assert idle().decide(SAFETY_PAUSE_S, room=10, prefetch=0) == Decision(10)


def test_a_wake_up_is_spent_by_the_take_that_it_causes():
    own = idle()
    own.told()
    asked = send(own, 0.0, room=10)
    own.answered(0.0, asked, 0, full=False)
    own.armed(0.0, empty=True)
    assert own.decide(0.0, room=10, prefetch=0) == Decision(0, SAFETY_PAUSE_S)


def test_a_wake_up_is_spent_by_the_look_that_follows_it():
    """The key that is told of may have changed by what another worker took before we looked."""
    own = takes()
    asked = send(own, 0.0, room=10)
    own.told()
    own.answered(0.0, asked, 1, full=False)
    own.armed(0.0, empty=True)
    assert own.decide(0.0, room=10, prefetch=0) == Decision(0, SAFETY_PAUSE_S)


def test_a_wake_up_while_there_is_no_room_is_remembered():
    own = idle()
    own.told()
    assert own.decide(0.1, room=0, prefetch=4).messages == 0
    assert own.decide(0.2, room=3, prefetch=4) == Decision(3)


def test_a_wake_up_before_the_server_has_said_that_it_watches_is_remembered():
    own = takes()
    own.answered(0.0, send(own, 0.0, room=10), 0, full=False)
    own.told()
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


# -- many idle workers -------------------------------------------------------------------------------------------------


def lose(own, times, *, now_s=0.0):
    """Told of a message each time, which another worker has taken by the time that ours looks; what time it is then."""
    for _ in range(times):
        own.told()
        decision = own.decide(now_s, room=10, prefetch=0)
        if decision.again_s is not None:
            now_s += decision.again_s + ROUNDING_S
            decision = own.decide(now_s, room=10, prefetch=0)
        if decision.messages:
            own.sent(now_s, decision.messages)
            assert own.answered(now_s, decision.messages, 0, full=False)
        else:
            assert decision.look
        own.armed(now_s, empty=True)
        assert own.state is State.IDLE
    return now_s


def delay_s(own, now_s, *, room=10):
    """How long after it is told the worker looks; 0 where it takes at once."""
    own.told()
    decision = own.decide(now_s, room=room, prefetch=0)
    return 0.0 if decision.messages else decision.again_s


def test_who_is_told_for_nothing_a_few_times_takes_at_once_all_the_same():
    own = idle(draw=lambda: 1.0)
    now_s = lose(own, PATIENCE)
    assert delay_s(own, now_s) == 0


def test_who_is_told_for_nothing_for_long_looks_later_and_the_longer_the_later_up_to_a_bound():
    own = idle(draw=lambda: 1.0)
    now_s, delays_s = lose(own, PATIENCE), []
    for _ in range(1200):
        now_s = lose(own, 1, now_s=now_s)
        own.told()
        delays_s.append(own.decide(now_s, room=10, prefetch=0).again_s)
    assert delays_s[:5] == pytest.approx([min(AT_ONCE_S * 2**n, LONGEST_SPREAD_S) for n in range(1, 6)])
    assert delays_s[5:] == pytest.approx([LONGEST_SPREAD_S] * 1195)


@pytest.mark.parametrize(("lot", "messages"), [(0.0, 10), (AT_ONCE_S / LONGEST_SPREAD_S, 10), (0.051, 0), (0.999, 0)])
def test_of_those_who_lose_for_long_one_in_twenty_takes_at_once(lot, messages):
    lots = itertools.chain([1.0] * 90, itertools.repeat(lot))
    own = idle(draw=lambda: next(lots))
    now_s = lose(own, 90)
    own.told()
    assert own.decide(now_s, room=10, prefetch=0).messages == messages


def test_the_later_look_reads_only_and_ends_where_there_is_nothing_any_more():
    own = idle()
    now_s = lose(own, 50)
    now_s += delay_s(own, now_s) + ROUNDING_S
    assert own.decide(now_s, room=10, prefetch=0) == LOOK
    assert own.state is State.ARMING
    own.armed(now_s, empty=True)
    assert own.decide(now_s, room=10, prefetch=0) == Decision(0, SAFETY_PAUSE_S)


def test_what_the_later_look_sees_is_taken_at_once():
    own = idle()
    now_s = lose(own, 50)
    now_s += delay_s(own, now_s) + ROUNDING_S
    assert own.decide(now_s, room=10, prefetch=0) == LOOK
    own.armed(now_s, empty=False)
    assert own.decide(now_s, room=10, prefetch=0) == Decision(10)


def test_what_is_told_while_a_look_is_waited_for_changes_nothing():
    own = idle()
    now_s = lose(own, 50)
    waits_s = delay_s(own, now_s)
    assert delay_s(own, now_s + waits_s / 2) == pytest.approx(waits_s / 2)


def test_who_wins_takes_at_once_again():
    own = idle()
    now_s = lose(own, 50)
    now_s += delay_s(own, now_s) + ROUNDING_S
    own.decide(now_s, room=10, prefetch=0)
    own.armed(now_s, empty=False)
    own.answered(now_s, send(own, now_s, room=10), 1, full=False)
    own.armed(now_s, empty=True)
    assert delay_s(own, now_s) == 0


def test_what_is_seen_and_lost_all_the_same_is_one_loss():
    own = idle(draw=lambda: 1.0)
    now_s = lose(own, PATIENCE)
    own.told()
    own.answered(now_s, send(own, now_s, room=10), 0, full=False)
    own.armed(now_s, empty=False)
    own.answered(now_s, send(own, now_s, room=10), 0, full=False)
    own.armed(now_s, empty=True)
    assert delay_s(own, now_s) == pytest.approx(2 * AT_ONCE_S)


def test_what_this_worker_gave_back_is_taken_at_once_however_often_it_has_lost():
    """Nobody else may look for it: the server does not tell who did it."""
    own = idle()
    now_s = lose(own, 50)
    assert delay_s(own, now_s) > 0
    own.woken()
    assert own.decide(now_s, room=10, prefetch=0) == Decision(10)


def test_looks_that_nobody_asked_for_are_no_losses():
    """The one each second, what one's own messages that went back cause, and the last takes of a burst."""
    own = idle(draw=lambda: 1.0)
    now_s = 0.0
    for number in range(100):
        if number % 2:
            own.woken()
        else:
            now_s += SAFETY_PAUSE_S
        own.answered(now_s, send(own, now_s, room=10), 0, full=False)
        own.armed(now_s, empty=True)
    assert delay_s(own, now_s) == 0


def test_where_there_are_few_workers_in_all_who_always_loses_takes_at_once_all_the_same():
    own = idle()
    now_s = lose(own, 50)
    own.patience.counted(FEW_LINES)
    assert delay_s(own, now_s) == 0
    lose(own, 1, now_s=now_s)
    own.patience.counted(FEW_LINES + 1)
    assert delay_s(own, now_s) > 0


def test_a_worker_without_room_does_not_look():
    own = idle()
    now_s = lose(own, 50)
    assert delay_s(own, now_s) > 0
    decision = own.decide(now_s + LONGEST_SPREAD_S, room=0, prefetch=10)
    assert decision == NOTHING
    assert own.decide(now_s + LONGEST_SPREAD_S, room=1, prefetch=10) == LOOK


class Fleet:
    """Workers at one queue of a server that tells each of them once of a change, until it looks again.

    `way_s` is how far each is from the server, `prefetch` its room for messages of which each takes `work_s`.
    """

    def __init__(self, ways_s, *, prefetch, work_s, seed):
        draw = random.Random(seed).random
        self.ways_s, self.prefetch, self.work_s = ways_s, prefetch, work_s
        self.workers = [Takes(messages=prefetch, in_flight=4, pushes=True, patience=Patience(draw)) for _ in ways_s]
        self.room = [prefetch for _ in ways_s]
        self.now_s = 0.0
        self.queue = []
        self.watchers = set()
        self.waits_s = []
        self.winners = []
        self.takes = self.looks = 0
        self._events = []
        self._numbers = itertools.count()
        for worker in range(len(ways_s)):
            self._turn(worker)

    def push(self):
        self.queue.append(self.now_s)
        self._changed(by=None)

    def run(self, until_s):
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, happens, worker = heapq.heappop(self._events)
            happens(worker)
        self.now_s = until_s

    def _later(self, after_s, happens, worker):
        heapq.heappush(self._events, (self.now_s + after_s, next(self._numbers), happens, worker))

    def _changed(self, by):
        for worker in sorted(self.watchers - {by}):
            self._later(self.ways_s[worker], self._told, worker)
        self.watchers.clear()

    def _turn(self, worker):
        own = self.workers[worker]
        room = self.room[worker] - own.reserved
        while (decision := own.decide(self.now_s, room=room, prefetch=self.prefetch)).messages:
            own.sent(self.now_s, decision.messages)
            room -= decision.messages
            self._later(self.ways_s[worker], lambda at, asked=decision.messages: self._take(at, asked), worker)
        if decision.look:
            self._later(self.ways_s[worker], self._look, worker)
        elif decision.again_s is not None:
            self._later(decision.again_s + ROUNDING_S, self._turn, worker)

    def _told(self, worker):
        self.workers[worker].told()
        self._turn(worker)

    def _take(self, worker, asked):
        self.takes += 1
        taken, self.queue = self.queue[:asked], self.queue[asked:]
        if taken:
            self.winners.append(worker)
            self.waits_s += [self.now_s - pushed_s for pushed_s in taken]
            self._changed(by=worker)
        self._later(self.ways_s[worker], lambda at: self._answered(at, asked, len(taken)), worker)

    def _answered(self, worker, asked, got):
        self.room[worker] -= got
        for _ in range(got):
            self._later(self.work_s, self._free, worker)
        if self.workers[worker].answered(self.now_s, asked, got, full=False):
            self._later(self.ways_s[worker], self._look, worker)
        self._turn(worker)

    def _look(self, worker):
        self.looks += 1
        self.watchers.add(worker)
        self._later(self.ways_s[worker], lambda at, empty=not self.queue: self._armed(at, empty), worker)

    def _armed(self, worker, empty):
        self.workers[worker].armed(self.now_s, empty=empty)
        if self.workers[worker].patience.to_count(self.now_s):
            self.workers[worker].patience.counted(len(self.workers))
        self._turn(worker)

    def _free(self, worker):
        self.room[worker] += 1
        self._turn(worker)


FAR_S = 0.01
WAYS_S = st.floats(0.0001, FAR_S)
IN_TIME_S = 5 * FAR_S + LONGEST_SPREAD_S + SMALL_TAKE_PAUSE_S
"""Told, seen, taken: five ways, after the longest lot."""


def trickle(fleet, pushes, *, every_s):
    """Takes and looks a message, and the waits, of a message every now and then."""
    fleet.takes, fleet.looks, fleet.waits_s, fleet.winners = 0, 0, [], []
    for _ in range(pushes):
        fleet.push()
        fleet.run(fleet.now_s + every_s)
    return fleet.takes / pushes, fleet.looks / pushes, fleet.waits_s


@settings(max_examples=20, deadline=None)
@given(ways_s=st.lists(WAYS_S, min_size=30, max_size=100), seed=st.integers(0, 1 << 32))
def test_of_many_idle_workers_few_take_and_each_other_one_looks_at_most_about_once(ways_s, seed):
    fleet = Fleet(ways_s, prefetch=10, work_s=0.001, seed=seed)
    fleet.run(0.5)
    trickle(fleet, 30, every_s=0.15)
    takes, looks, waits_s = trickle(fleet, 40, every_s=0.15)
    assert len(waits_s) == 40
    assert max(waits_s) <= IN_TIME_S
    assert takes <= 1 + 0.2 * len(ways_s)
    assert looks <= 1.2 * len(ways_s) + 1


@settings(max_examples=30, deadline=None)
@given(ways_s=st.lists(WAYS_S, min_size=1, max_size=30), seed=st.integers(0, 1 << 32))
def test_whoever_is_busy_each_message_is_taken_within_the_bound_by_one_that_has_room(ways_s, seed):
    """Those that always win above all: the others have lost for long."""
    fleet = Fleet(ways_s, prefetch=10, work_s=0.001, seed=seed)
    fleet.run(0.5)
    chance = random.Random(seed)
    for _ in range(20):
        fleet.room = [10] * len(ways_s)
        trickle(fleet, 15, every_s=0.15)
        idle = chance.sample(range(len(ways_s)), chance.randint(1, len(ways_s)))
        fleet.room = [10 * (worker in idle) for worker in range(len(ways_s))]
        _, _, waits_s = trickle(fleet, 1, every_s=0.15)
        assert len(waits_s) == 1
        assert waits_s[0] <= IN_TIME_S
        assert fleet.winners[0] in idle


@settings(max_examples=30, deadline=None)
@given(
    way_s=st.floats(0.00001, 0.001),
    prefetch=st.integers(1, 10),
    pauses_s=st.lists(st.floats(0.0001, 0.5), min_size=20, max_size=60),
    seed=st.integers(0, 1 << 32),
)
def test_a_lone_worker_is_never_slowed_down(way_s, prefetch, pauses_s, seed):
    """Whatever came before, while it looked, took, or was idle: three round trips at most, and a small take's pause."""
    fleet = Fleet([way_s], prefetch=prefetch, work_s=0.0, seed=seed)
    fleet.run(0.5)
    for pause_s in pauses_s:
        fleet.push()
        fleet.run(fleet.now_s + pause_s)
    fleet.run(fleet.now_s + 1)
    assert len(fleet.waits_s) == len(pauses_s)
    fleet.waits_s.clear()
    fleet.push()
    fleet.run(fleet.now_s + 0.5)
    assert len(fleet.waits_s) == 1
    assert fleet.waits_s[0] <= 6 * way_s + SMALL_TAKE_PAUSE_S + ROUNDING_S


@settings(max_examples=30, deadline=None)
@given(ways_s=st.lists(WAYS_S, min_size=2, max_size=FEW_LINES), seed=st.integers(0, 1 << 32))
def test_of_a_few_workers_one_takes_each_message_at_once(ways_s, seed):
    """However often the others have lost against one that has no room any more."""
    fleet = Fleet(ways_s, prefetch=10, work_s=0.001, seed=seed)
    fleet.run(0.5)
    _, _, waits_s = trickle(fleet, 60, every_s=0.15)
    assert max(waits_s) <= 2 * max(ways_s) + ROUNDING_S
    fleet.room[fleet.winners[-1]] = 0
    _, _, waits_s = trickle(fleet, 1, every_s=0.15)
    assert max(waits_s) <= 2 * max(ways_s) + ROUNDING_S


# -- whatever happens --------------------------------------------------------------------------------------------------


class TakesMachine(RuleBasedStateMachine):
    """A server and a worker that do what they like, and a clock."""

    @initialize(
        messages=st.integers(1, 50), in_flight=st.integers(1, 4), pushes=st.booleans(), prefetch=st.integers(0, 200)
    )
    def start(self, messages, in_flight, pushes, prefetch):
        self.lot = 0.5
        self.takes = Takes(messages=messages, in_flight=in_flight, pushes=pushes, patience=Patience(lambda: self.lot))
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
        if decision.look:
            assert not decision.messages
            self.watching = True
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

    @rule(lot=st.floats(0, 1, exclude_max=True))
    def a_push(self, lot):
        self.lot = lot
        self.takes.told()

    @rule()
    def messages_of_its_own_go_back(self):
        self.takes.woken()

    @precondition(lambda self: not self.under_way and not self.watching)
    @rule(times=st.integers(1, 30))
    def pushes_that_others_get(self, times):
        for _ in range(times):
            self.takes.told()
            self.now_s += 0.1
            self.decide(200)
            while self.under_way:
                self.a_reply(0.0, full=False)
            if self.watching:
                self.the_server_watches(empty=True)

    @precondition(lambda self: not self.under_way and not self.watching)
    @rule(room=st.integers(1, 200))
    def with_room_and_nothing_to_wait_for_it_comes_back_by_itself_and_takes(self, room):
        waited_s = 0.0
        while not (decision := self.decide(room)).messages:
            if decision.look:
                self.the_server_watches(empty=False)
                continue
            assert decision.again_s is not None
            waited_s += decision.again_s
            assert waited_s <= SAFETY_PAUSE_S + SMALL_TAKE_PAUSE_S + ROUNDING_S
            self.now_s += decision.again_s + ROUNDING_S

    @invariant()
    def what_is_spoken_for_is_what_is_under_way(self):
        assert self.takes.in_flight == len(self.under_way) <= self.most_in_flight
        assert self.takes.reserved == sum(self.under_way)


TestWhateverHappens = TakesMachine.TestCase

"""What a process holds of a broker's messages."""

import gc
import hashlib
import itertools
import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from legit_embedding.broker import holdings as module
from legit_embedding.broker.holdings import Holdings, Taken, forget_all, holdings_of

ALL = 1000


class Message:
    """Something that can be weakly referenced, as kombu's."""


def taken(tag, *, deliveries=0, text=b"{}"):
    return Taken(tag=tag, queue="q", text=text, deliveries=deliveries)


@pytest.fixture
def holdings():
    return Holdings()


def hold(holdings, *tags, **more):
    for tag in tags:
        holdings.hold(taken(tag, **more))


def tags_to_ack(holdings, most=ALL):
    return holdings.take_acks(most)[0]


# -- acks --------------------------------------------------------------------------------------------------------------


def test_acks_come_in_the_order_in_which_they_were_given(holdings):
    hold(holdings, "a", "b", "c")
    for tag in ("c", "a", "b"):
        holdings.ack(tag)
    assert tags_to_ack(holdings) == ["c", "a", "b"]
    assert not holdings.acks_waiting


def test_acks_come_in_groups_of_at_most_so_many(holdings):
    for number in range(5):
        holdings.ack(str(number))
    assert [tags_to_ack(holdings, 2) for _ in range(4)] == [["0", "1"], ["2", "3"], ["4"], []]


def test_acks_that_were_not_confirmed_go_out_again_before_all_others(holdings):
    for tag in "abcd":
        holdings.ack(tag)
    first = tags_to_ack(holdings, 2)
    holdings.ack("e")
    holdings.take_back_acks(first)
    assert tags_to_ack(holdings) == ["a", "b", "c", "d", "e"]


def test_an_acknowledged_message_is_held_no_more(holdings):
    hold(holdings, "a")
    assert "a" in holdings
    holdings.ack("a")
    assert "a" not in holdings
    assert not holdings.let_go("a")


def test_an_ack_of_a_message_that_was_never_held_is_told_all_the_same(holdings):
    holdings.ack("of a queue without acks")
    assert tags_to_ack(holdings) == ["of a queue without acks"]


def test_the_count_of_a_message_that_was_given_back_before_goes_with_its_ack(holdings):
    hold(holdings, "first time", text=b"new")
    hold(holdings, "again", text=b"old", deliveries=2)
    holdings.ack("first time")
    holdings.ack("again")
    assert holdings.take_acks(ALL) == (["first time", "again"], [hashlib.sha1(b"old").hexdigest()])
    assert holdings.take_acks(ALL) == ([], [])


def test_the_count_of_a_message_that_goes_back_stays(holdings):
    hold(holdings, "again", deliveries=1)
    assert holdings.let_go("again")
    assert holdings.take_acks(ALL) == ([], [])


def test_many_threads_acknowledge_and_none_is_forgotten(holdings):
    tags = [[f"{thread}.{number}" for number in range(500)] for thread in range(4)]
    everything = list(itertools.chain(*tags))
    hold(holdings, *everything)
    threads = [threading.Thread(target=lambda own=own: [holdings.ack(tag) for tag in own]) for own in tags]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = tags_to_ack(holdings, 10_000)
    assert sorted(found) == sorted(everything)
    assert [tag for tag in found if tag.startswith("2.")] == tags[2]
    assert not holdings.living


# -- orphans -----------------------------------------------------------------------------------------------------------


def test_an_orphan_that_nobody_holds_any_more_goes_back_exactly_once(holdings):
    hold(holdings, "a")
    message = Message()
    holdings.orphan("a", message)
    assert holdings.take_dropped() == []
    del message
    gc.collect()
    assert holdings.take_dropped() == ["a"]
    assert "a" not in holdings
    assert holdings.take_dropped() == []


def test_an_orphan_that_is_acknowledged_first_does_not_go_back(holdings):
    hold(holdings, "a")
    message = Message()
    holdings.orphan("a", message)
    holdings.ack("a")
    del message
    gc.collect()
    assert holdings.take_dropped() == []
    assert tags_to_ack(holdings) == ["a"]


def test_an_orphan_that_is_acknowledged_after_it_was_dropped_and_before_it_went_back_does_not_go_back(holdings):
    hold(holdings, "a")
    holdings.drop("a")
    holdings.ack("a")
    assert holdings.take_dropped() == []


def test_an_orphan_of_two_lost_connections_goes_back_once(holdings):
    hold(holdings, "a")
    message = Message()
    holdings.orphan("a", message)
    holdings.orphan("a", message)
    del message
    gc.collect()
    assert holdings.take_dropped() == ["a"]


def test_a_message_that_is_not_held_cannot_be_orphaned(holdings):
    message = Message()
    holdings.orphan("a", message)
    hold(holdings, "a")
    del message
    gc.collect()
    assert holdings.take_dropped() == []


def test_a_dropped_message_is_held_until_it_is_given_back_and_goes_back_once(holdings):
    hold(holdings, "a", "b")
    holdings.drop("b")
    holdings.drop("b")
    assert sorted(holdings.living) == ["a", "b"]
    assert holdings.take_dropped() == ["b"]
    assert holdings.living == ["a"]


# -- what is alive -----------------------------------------------------------------------------------------------------


def test_what_is_worked_on_and_what_waits_to_be_acknowledged_is_alive(holdings):
    hold(holdings, "worked on", "done", "given back")
    holdings.ack("done")
    holdings.let_go("given back")
    assert sorted(holdings.living) == ["done", "worked on"]
    tags_to_ack(holdings)
    assert holdings.living == ["worked on"]


def test_repr_shows_what_is_held_and_what_is_to_be_told(holdings):
    hold(holdings, "a", "b", "c")
    holdings.ack("a")
    assert repr(holdings) == "<Holdings 2 held, 1 to acknowledge>"


class HoldingsMachine(RuleBasedStateMachine):
    """Messages that come, are worked on, orphaned, collected, acknowledged and given back, in any order."""

    def __init__(self):
        super().__init__()
        self.holdings = Holdings()
        self.messages = {}
        self.ever, self.acknowledged, self.given_back = [], [], []

    @rule()
    def a_message_comes(self):
        tag = str(len(self.ever))
        self.ever.append(tag)
        self.messages[tag] = Message()
        hold(self.holdings, tag)

    @rule(data=st.data())
    def its_work_is_done(self, data):
        if held := [tag for tag in self.messages if tag in self.holdings]:
            self.holdings.ack(data.draw(st.sampled_from(held)))

    @rule(data=st.data())
    def its_connection_is_lost(self, data):
        if self.messages:
            tag = data.draw(st.sampled_from(sorted(self.messages)))
            self.holdings.orphan(tag, self.messages[tag])

    @rule(data=st.data())
    def it_is_forgotten(self, data):
        if self.messages:
            del self.messages[data.draw(st.sampled_from(sorted(self.messages)))]

    @rule(data=st.data())
    def it_is_to_be_given_back_later(self, data):
        if self.holdings.living:
            self.holdings.drop(data.draw(st.sampled_from(self.holdings.living)))

    @rule(data=st.data())
    def it_is_given_back(self, data):
        tag = data.draw(st.sampled_from(self.ever or ["none"]))
        if self.holdings.let_go(tag):
            self.given_back.append(tag)

    @rule(most=st.integers(1, 3))
    def acks_go_out(self, most):
        self.acknowledged += tags_to_ack(self.holdings, most)

    @rule(most=st.integers(1, 3))
    def acks_are_refused(self, most):
        before = self.holdings.living
        self.holdings.take_back_acks(tags_to_ack(self.holdings, most))
        assert self.holdings.living == before

    @rule()
    def the_dropped_go_back(self):
        self.given_back += self.holdings.take_dropped()

    @invariant()
    def every_message_is_alive_acknowledged_or_given_back_and_only_one_of_these(self):
        assert sorted(self.acknowledged + self.given_back + self.holdings.living) == sorted(self.ever)


TestWhateverHappens = HoldingsMachine.TestCase


# -- of a process ------------------------------------------------------------------------------------------------------


@pytest.fixture
def _own(monkeypatch):
    monkeypatch.setattr(module, "_all", {})


@pytest.mark.usefixtures("_own")
def test_holdings_outlive_a_connection_and_are_those_of_one_broker():
    hold(holdings_of("broker"), "a")
    assert "a" in holdings_of("broker")
    assert "a" not in holdings_of("another")


@pytest.mark.usefixtures("_own")
def test_a_forked_child_holds_nothing_of_its_parents():
    hold(holdings_of("broker"), "a")
    forget_all()
    assert holdings_of("broker").living == []

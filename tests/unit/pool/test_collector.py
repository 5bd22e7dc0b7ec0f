import gc
from functools import partial

import pytest

from legit_embedding.pool.collector import LOOK_S, Collector, default_threshold


@pytest.fixture(autouse=True)
def as_it_was():
    before = gc.get_threshold()
    gc.set_threshold(700, 11, 12)
    yield
    gc.unfreeze()
    gc.enable()
    gc.set_threshold(*before)


def test_it_waits_for_more_than_what_all_tasks_in_flight_hold_and_never_for_less_than_ten_thousand():
    assert [default_threshold(concurrency) for concurrency in (1, 100, 1024)] == [10_000, 10_000, 102_400]


def test_it_looks_less_often_until_it_is_stopped():
    collector = Collector(5000)
    collector.start()
    assert gc.get_threshold() == (5000, 11, 12)
    collector.stop()
    assert gc.get_threshold() == (700, 11, 12)


def test_what_was_there_is_not_looked_at_until_it_is_stopped():
    collector = Collector(5000)
    collector.start()
    assert gc.get_freeze_count() > 1000
    collector.stop()
    assert gc.get_freeze_count() == 0


def test_cycles_that_were_left_before_are_freed_first():
    freed = []
    gc.disable()
    Cyclic(freed)
    gc.enable()
    Collector(5000).start()
    assert freed


def test_a_threshold_of_none_leaves_all_as_it_is():
    Collector(0).start()
    assert gc.get_threshold() == (700, 11, 12)
    assert gc.get_freeze_count() == 0


def test_a_higher_threshold_of_the_apps_own_stays():
    gc.set_threshold(90_000, 11, 12)
    Collector(5000).start()
    assert gc.get_threshold() == (90_000, 11, 12)


def test_an_app_that_has_turned_it_off_keeps_it_so():
    gc.disable()
    Collector(5000).start()
    assert not gc.isenabled()
    assert gc.get_threshold() == (700, 11, 12)


def test_an_app_that_has_turned_it_off_by_its_threshold_keeps_it_so():
    gc.set_threshold(0)
    Collector(5000).start()
    assert gc.get_threshold()[0] == 0


def test_what_the_app_has_frozen_itself_stays_frozen():
    gc.freeze()
    frozen = gc.get_freeze_count()
    collector = Collector(5000)
    collector.start()
    collector.stop()
    assert gc.get_freeze_count() > frozen / 2  # less those that were freed meanwhile


class Loop:
    """Its timers, which a test fires."""

    def __init__(self):
        self.timers = []

    def call_later(self, delay_s, callback, *arguments):
        self.timers.append((delay_s, partial(callback, *arguments)))

    def fire(self):
        ((delay_s, fire),) = self.timers
        self.timers = []
        fire()
        return delay_s


class Cyclic:
    def __init__(self, freed):
        self.own = self
        self.freed = freed

    def __del__(self):
        self.freed.append(self)


def test_a_cycle_is_freed_within_seconds_however_few_containers_are_new():
    collector, loop, freed = Collector(1_000_000), Loop(), []
    collector.start()
    collector.attend(loop)
    for _ in range(2):
        Cyclic(freed)
        assert not freed
        assert loop.fire() == LOOK_S
        assert len(freed) == 1
        freed.clear()


def test_while_the_app_has_turned_it_off_it_does_not_look():
    collector, loop, freed = Collector(1_000_000), Loop(), []
    collector.start()
    collector.attend(loop)
    gc.disable()
    Cyclic(freed)
    loop.fire()
    assert not freed
    gc.enable()
    loop.fire()
    assert freed


def test_after_its_stop_it_looks_no_more():
    collector, loop, freed = Collector(1_000_000), Loop(), []
    collector.start()
    collector.attend(loop)
    collector.stop()
    gc.set_threshold(1_000_000)
    Cyclic(freed)
    loop.fire()
    assert not freed
    assert loop.timers == []


def test_one_that_is_not_to_look_does_not():
    collector, loop = Collector(0), Loop()
    collector.start()
    collector.attend(loop)
    assert loop.timers == []


def test_a_second_start_and_stop_change_nothing():
    collector = Collector(5000)
    collector.start()
    collector.start()
    collector.stop()
    gc.set_threshold(800, 1, 1)
    collector.stop()
    assert gc.get_threshold() == (800, 1, 1)

"""The consumer's wake-up."""

import select
import threading

import pytest

from legit_embedding.waker import Waker


@pytest.fixture
def waker():
    own = Waker()
    yield own
    own.close()


def readable(waker):
    return bool(select.select([waker], [], [], 0)[0])


def test_a_wake_makes_it_readable_until_it_is_cleared(waker):
    assert not readable(waker)
    waker.wake()
    assert readable(waker)
    waker.clear()
    assert not readable(waker)


def test_many_wakes_are_one_and_after_a_clear_it_wakes_again(waker):
    for _ in range(100_000):  # more than a socket holds, were each a byte
        waker.wake()
    waker.clear()
    assert not readable(waker)
    waker.wake()
    assert readable(waker)


def test_between_the_answer_and_the_rearming_nobody_wakes(waker):
    waker.wake()
    waker.answer()
    waker.wake()
    assert not readable(waker)
    waker.rearm()
    waker.wake()
    assert readable(waker)


def test_wait_returns_on_a_wake_from_another_thread(waker):
    thread = threading.Thread(target=waker.wake)
    thread.start()
    waker.wait(30)
    thread.join()
    assert readable(waker)


def test_wait_returns_without_a_wake_when_its_time_is_up(waker):
    waker.wait(0)
    assert not readable(waker)


def test_once_closed_a_wake_does_nothing(waker):
    waker.close()
    waker.wake()
    waker.clear()
    waker.wait(1000)
    waker.close()
    assert waker.fileno() == -1

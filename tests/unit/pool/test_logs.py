"""Locks of the log's handlers are lent to other threads while one that holds them waits."""

import logging
import threading

import pytest

from legit_embedding.pool.logs import others_may_log


@pytest.fixture
def handler():
    """One of a logger's own."""
    own = logging.NullHandler()
    own.createLock()  # a NullHandler has none by itself
    own.lock = threading.RLock()
    logger = logging.getLogger("test.logs")
    logger.addHandler(own)
    yield own
    logger.removeHandler(own)


def free_for_others(lock):
    found = []

    def look():
        found.append(lock.acquire(blocking=False))
        if found[0]:
            lock.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


def test_a_lock_that_this_thread_holds_is_free_for_others_meanwhile_and_held_again_afterwards(handler):
    with handler.lock, handler.lock:
        with others_may_log():
            assert free_for_others(handler.lock)
        assert not free_for_others(handler.lock)
    assert free_for_others(handler.lock)


def test_a_lock_is_held_again_after_an_exception(handler):
    with handler.lock:
        with pytest.raises(KeyError), others_may_log():
            raise KeyError
        assert not free_for_others(handler.lock)


def test_a_lock_of_another_thread_stays_its_own(handler):
    held, done = threading.Event(), threading.Event()

    def hold():
        with handler.lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with others_may_log():
        assert not free_for_others(handler.lock)
    done.set()
    thread.join()

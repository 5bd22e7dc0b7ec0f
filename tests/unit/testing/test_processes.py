"""The promise of `uninterrupted`; the processes themselves are tested with real ones."""

import signal
import threading

import pytest

from legit_embedding.testing.processes import uninterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_block_is_left(number):
    log = []
    before = signal.signal(number, lambda *_: log.append("handled"))
    try:
        with uninterrupted():
            signal.raise_signal(number)
            log.append("last line")
        assert log == ["last line", "handled"]
    finally:
        signal.signal(number, before)


def test_ctrl_c_is_raised_when_the_block_is_left():
    finished = []

    def start():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            finished.append(True)

    with pytest.raises(KeyboardInterrupt):
        start()
    assert finished


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with uninterrupted():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_handlers_are_back_after_an_exception():
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError), uninterrupted():
        raise RuntimeError
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_thread_of_ones_own_changes_no_handler():
    before, seen = signal.getsignal(signal.SIGINT), []

    def look():
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]

"""Waiting for what a thread does, without a sleep and without an end that never comes."""

import threading

import pytest

from legit_embedding.testing import clock as module
from legit_embedding.testing.clock import until


async def test_it_returns_once_a_thread_has_done_its_part():
    done = threading.Event()
    thread = threading.Thread(target=done.set)
    thread.start()
    await until(done.is_set)
    thread.join()
    assert done.is_set()


async def test_what_never_comes_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 0)
    with pytest.raises(TimeoutError):
        await until(lambda: False)

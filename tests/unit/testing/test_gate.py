"""Threads that a test holds and lets go, one by one."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from legit_embedding.testing import gate as module
from legit_embedding.testing.gate import Gate


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_at_first_everybody_passes():
    gate = Gate()
    gate.enter()
    assert repr(gate) == "<Gate open, 0 waiting, 1 passed>"


async def test_a_held_gate_lets_as_many_pass_as_it_is_told(pool):
    gate, passed = Gate(), threading.Semaphore(0)
    gate.hold()

    def work():
        gate.enter()
        passed.release()

    works = [pool.submit(work) for _ in range(3)]
    await gate.wait_for_arrivals(3)
    assert repr(gate) == "<Gate closed, 3 waiting, 0 passed>"
    gate.release(2)
    assert passed.acquire(timeout=20)
    assert passed.acquire(timeout=20)
    assert repr(gate) == "<Gate closed, 1 waiting, 2 passed>"
    gate.release()
    for each in works:
        each.result(20)
    assert repr(gate) == "<Gate open, 0 waiting, 3 passed>"


def test_what_was_released_ahead_of_time_is_not_lost():
    gate = Gate()
    gate.hold()
    gate.release(1)
    gate.release(1)
    gate.enter()
    gate.enter()
    assert gate.arrived == 2


def test_whoever_is_forgotten_fails_and_does_not_hang(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 0)
    gate = Gate()
    gate.hold()
    with pytest.raises(TimeoutError, match="the test did not release"):
        gate.enter()


async def test_waiting_for_nobody_fails_and_does_not_hang(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 0)
    with pytest.raises(TimeoutError, match="0 of 1 came"):
        await Gate().wait_for_arrivals(1)

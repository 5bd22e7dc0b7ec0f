"""When the worker has done enough."""

import pytest
from celery.exceptions import ImproperlyConfigured

from legit_embedding.pool.retirement import Retirement, resident_kib


class Machine:
    """A process's memory and a clock, in the test's hand."""

    def __init__(self, kib=1000):
        self.kib, self.now_s, self.looks = kib, 0.0, 0

    def resident_kib(self):
        self.looks += 1
        return self.kib


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
def build(machine):
    def build(*, max_tasks=None, max_memory_kib=None):
        return Retirement(
            max_tasks=max_tasks,
            max_memory_kib=max_memory_kib,
            resident_kib=machine.resident_kib,
            now_s=lambda: machine.now_s,
        )

    return build


def test_without_limits_it_goes_on_for_ever_and_looks_at_nothing(build, machine):
    retirement = build()
    retirement.require_room()
    assert (retirement.limited, retirement.reason(10**9), machine.looks) == (False, None, 0)


def test_the_last_task_that_the_limit_allows_is_the_reason_told_once(build):
    retirement = build(max_tasks=3)
    assert [retirement.reason(served) for served in (1, 2)] == [None, None]
    assert "it has done 3 tasks, and worker_max_tasks_per_child is 3" in retirement.reason(3)
    assert retirement.reason(4) is None


def test_several_tasks_at_once_may_go_beyond_the_limit(build):
    assert "it has done 7 tasks" in build(max_tasks=3).reason(7)


def test_memory_above_the_limit_is_a_reason_told_once(build, machine):
    retirement = build(max_memory_kib=2000)
    assert retirement.reason(1) is None
    machine.kib, machine.now_s = 2001, 1.0
    assert "it takes 2001 KiB, and worker_max_memory_per_child is 2000 KiB" in retirement.reason(2)
    machine.now_s = 5.0
    assert retirement.reason(3) is None


def test_memory_is_looked_at_once_a_second_however_many_tasks_end(build, machine):
    retirement = build(max_memory_kib=2000)
    for served in range(1, 1501):
        machine.now_s = served / 1000
        retirement.reason(served)
    assert machine.looks == 2


def test_a_memory_limit_that_is_exceeded_before_the_first_task_is_refused_with_both_figures(build, machine):
    machine.kib = 3000
    with pytest.raises(ImproperlyConfigured, match=r"worker_max_memory_per_child is 2000 KiB, .* takes 3000 KiB"):
        build(max_memory_kib=2000).require_room()
    build(max_memory_kib=3001).require_room()


def test_the_memory_of_this_process_is_told_in_kib():
    """A Python with Celery loaded takes some tens of MiB, and grows by what it allocates."""
    before = resident_kib()
    block = bytearray(64 * 1024 * 1024)
    block[::4096] = b"x" * len(block[::4096])
    assert before > 10_000
    assert resident_kib() - before > 50_000

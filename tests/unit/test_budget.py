"""The byte budget: bounded, first come first served, free of deadlocks."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legit_embedding.budget import ByteBudget


async def started(*coroutines):
    """The coroutines as tasks that have run until they wait."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_a_reservation_within_the_budget_is_held_at_once():
    budget = ByteBudget(100)
    await budget.reserve(60)
    assert repr(budget) == "<ByteBudget 60 of 100 bytes, 0 waiting>"


async def test_what_does_not_fit_waits_until_enough_is_given_back():
    budget = ByteBudget(100)
    first = await budget.reserve(60)
    (second,) = await started(budget.reserve(50))
    assert not second.done()
    first.shrink(50)
    await second
    assert budget.statistics().used_bytes == 100


async def test_a_small_request_does_not_overtake_a_large_one_that_waits():
    budget = ByteBudget(100)
    first = await budget.reserve(60)
    large, small = await started(budget.reserve(90), budget.reserve(10))
    assert not small.done()
    first.release()
    await large
    await small


async def test_a_request_above_the_whole_budget_is_let_in_alone():
    budget = ByteBudget(100)
    held = await budget.reserve(1)
    (huge,) = await started(budget.reserve(500))
    assert not huge.done()
    held.release()
    (await huge).release()
    assert budget.statistics().used_bytes == 0


async def test_release_counts_once():
    budget = ByteBudget(100)
    held = await budget.reserve(60)
    held.release()
    held.release()
    assert budget.statistics().used_bytes == 0


async def test_a_reservation_never_grows():
    budget = ByteBudget(100)
    held = await budget.reserve(10)
    held.shrink(50)
    assert held.nbytes == 10


async def test_a_cancelled_waiter_leaves_its_place_to_the_next():
    budget = ByteBudget(100)
    held = await budget.reserve(60)
    large, small = await started(budget.reserve(90), budget.reserve(40))
    large.cancel()
    with pytest.raises(asyncio.CancelledError):
        await large
    await small
    held.release()
    assert budget.statistics() == budget.statistics().__class__(40, 100, 0)


async def test_a_waiter_cancelled_in_the_turn_in_which_it_is_let_in_gives_its_bytes_back():
    budget = ByteBudget(100)
    held = await budget.reserve(100)
    (waiter,) = await started(budget.reserve(50))
    held.release()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert budget.statistics().used_bytes == 0


@given(st.lists(st.integers(0, 150), min_size=1, max_size=30))
def test_every_waiter_is_served_in_order_and_the_limit_holds(sizes):
    """Whatever the sizes: more than the total is only ever held by one alone."""

    async def scenario():
        budget = ByteBudget(100)
        order = []

        async def hold(number, size):
            reservation = await budget.reserve(size)
            order.append(number)
            used = budget.statistics().used_bytes
            assert used <= 100 or used in sizes  # beside one that is too large only others of no bytes
            await asyncio.sleep(0)
            reservation.release()

        await asyncio.gather(*(hold(number, size) for number, size in enumerate(sizes)))
        assert order == list(range(len(sizes)))
        assert budget.statistics().used_bytes == 0

    asyncio.run(scenario())


async def test_two_waiters_cancelled_in_one_turn_are_both_told_so():
    """The first to be told lets the next one in, and meets the other's place on the way."""
    budget = ByteBudget(100)
    held = await budget.reserve(60)
    waiters = await started(budget.reserve(90), budget.reserve(90), budget.reserve(50))
    for waiter in waiters[:2]:
        waiter.cancel()
    await asyncio.wait(waiters[:2])
    assert [waiter.cancelled() for waiter in waiters[:2]] == [True, True]
    held.release()
    await waiters[2]
    assert repr(budget) == "<ByteBudget 50 of 100 bytes, 0 waiting>"


@given(
    sizes=st.lists(st.integers(0, 150), min_size=1, max_size=12),
    turns=st.lists(st.lists(st.tuples(st.sampled_from(["cancel", "release"]), st.integers(0, 11)), max_size=5)),
)
def test_whatever_is_cancelled_and_released_in_one_turn_nothing_is_lost(sizes, turns):
    """Who is cancelled gets that and nothing else; everybody else is served, in order; all bytes come back."""

    async def scenario():
        budget, held, order = ByteBudget(100), {}, []

        async def hold(number, size):
            held[number] = await budget.reserve(size)
            order.append(number)

        def release(number):
            if number in held:
                held.pop(number).release()

        def cancel(number):
            tasks[number].cancel()

        tasks = await started(*(hold(number, size) for number, size in enumerate(sizes)))
        for turn in turns:
            for what, number in turn:
                {"release": release, "cancel": cancel}[what](number % len(sizes))
            await asyncio.sleep(0)
        for _ in range(3 * len(sizes)):
            for number in list(held):
                release(number)
            await asyncio.sleep(0)
        assert all(task.done() for task in tasks)
        assert order == [number for number, task in enumerate(tasks) if not task.cancelled()]
        assert [task.exception() for task in tasks if not task.cancelled()] == [None] * len(order)
        assert repr(budget) == "<ByteBudget 0 of 100 bytes, 0 waiting>"

    asyncio.run(scenario())

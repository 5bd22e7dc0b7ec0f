"""What a submitter waits on: every part once, then the end, or one error."""

import asyncio

import pytest

from legit_embedding.batching.calls import Call
from legit_embedding.batching.policy import Ticket
from legit_embedding.errors import ShuttingDownError
from legit_embedding.testing.clock import settle
from legit_embedding.values import Options, Prepared


def part(*names):
    return [(Ticket(Prepared(name, 1, 1), Options(), task="t", tag=name), f"outcome of {name}") for name in names]


def names(found):
    return [ticket.tag for ticket, _ in found]


async def collect(call):
    return [names(found) async for found in call]


async def test_parts_come_in_the_order_of_their_delivery_and_then_the_end():
    call = Call(3)
    call.deliver(part("a"))
    call.deliver(part("b", "c"))
    assert await collect(call) == [["a"], ["b", "c"]]


async def test_a_call_for_nothing_ends_at_once():
    assert await collect(Call(0)) == []


async def test_whoever_waits_already_is_woken_by_a_part():
    call = Call(2)
    waiter = asyncio.create_task(collect(call))
    await settle()
    call.deliver(part("a"))
    await settle()
    assert not waiter.done()
    call.deliver(part("b"))
    assert await waiter == [["a"], ["b"]]


async def test_after_a_failure_what_was_delivered_still_comes_first():
    call = Call(2)
    call.deliver(part("a"))
    call.fail(ShuttingDownError("stop"))
    assert names(await anext(call)) == ["a"]
    with pytest.raises(ShuttingDownError, match="stop"):
        await anext(call)


async def test_a_failure_after_the_last_part_changes_nothing():
    call = Call(1)
    call.deliver(part("a"))
    call.fail(ShuttingDownError("stop"))
    assert await collect(call) == [["a"]]


async def test_whoever_waits_already_is_woken_by_a_failure():
    call = Call(1)
    waiter = asyncio.create_task(collect(call))
    await settle()
    call.fail(ShuttingDownError("stop"))
    with pytest.raises(ShuttingDownError):
        await waiter


async def test_a_cancelled_waiter_withdraws_its_tickets():
    call = Call(1)
    waiter = asyncio.create_task(collect(call))
    await settle()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert call.withdrawn


async def test_a_part_for_a_waiter_that_was_cancelled_disturbs_nobody():
    call = Call(1)
    waiter = asyncio.create_task(collect(call))
    await settle()
    waiter.cancel()
    call.deliver(part("a"))
    with pytest.raises(asyncio.CancelledError):
        await waiter

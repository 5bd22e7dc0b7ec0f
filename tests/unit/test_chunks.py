"""A task's items on their way: results leave as they come, and memory is bounded."""

import asyncio

from celery.exceptions import SoftTimeLimitExceeded

from legit_embedding.chunks import entry_nbytes
from legit_embedding.pool.bridge import Drive, await_
from legit_embedding.testing.clock import settle
from legit_embedding.testing.publisher import MemoryPublisher
from legit_embedding.values import BatchLimits
from tests.unit.envelopes import errors_of, image_item, texts

# -- results leave as they come ----------------------------------------------------------------------------------------


async def test_a_batch_is_written_while_the_next_one_computes(make_rig):
    """The second forward is held: whatever is on the stream by then was written while the device was at work."""
    async with make_rig(text={"limits": BatchLimits(4), "prepare_chunk": 8}) as rig:
        rig.text.gate.hold()
        task = rig.start({"texts": texts(8)})
        rig.text.gate.release(1)
        await rig.text.gate.wait_for_arrivals(2)
        await rig.until_written(4)
        assert (rig.text.batches[1], task.done()) == (texts(8)[4:], False)
        rig.text.gate.release()
        assert (await task).ok == 8
    assert rig.written() == 8


async def test_the_device_does_not_wait_for_confirmations(make_rig):
    async with make_rig(text={"limits": BatchLimits(1), "prepare_chunk": 4}) as rig:
        rig.publisher.hold()
        task = rig.start({"texts": texts(3)})
        await rig.until_written(3)
        assert (len(rig.text.batches), task.done()) == (3, False)
        rig.publisher.release()
        await task


async def test_a_task_ends_only_when_every_entry_is_confirmed(make_rig):
    async with make_rig(text={"limits": BatchLimits(1), "prepare_chunk": 4}) as rig:
        rig.publisher.hold()
        task = rig.start({"texts": texts(3)})
        await rig.until_written(3)
        rig.publisher.release(2)
        await settle()
        assert not task.done()
        rig.publisher.release(1)
        assert (await task).ok == 3


async def test_a_soft_time_limit_while_entries_wait_for_their_confirmation_costs_no_outcome(make_rig):
    """As the pool does it: what cancels the task becomes an exception of the body."""
    async with make_rig() as rig:
        rig.publisher.hold()

        def translate(_):
            task.uncancel()
            return SoftTimeLimitExceeded()

        async def run():
            return await Drive(lambda: await_(rig.run({"texts": texts(2)})), translate=translate)

        task = asyncio.create_task(run())
        await rig.until_written(2)
        await settle()
        task.cancel()
        await settle()
        rig.publisher.release()
        assert (await task).ok == 2


async def test_what_cannot_be_read_is_told_before_the_rest_is_computed(make_rig):
    async with make_rig(image={"prepare_chunk": 2}) as rig:
        rig.image.gate.hold()
        task = rig.start({"items": [{"path": "/etc/hostname"}, image_item()]}, kind="images")
        await rig.image.gate.wait_for_arrivals(1)
        assert errors_of(rig.entries()) == {0: "source_not_allowed"}
        rig.image.gate.release()
        await task


# -- memory ------------------------------------------------------------------------------------------------------------


async def test_what_is_under_way_never_exceeds_the_budget_and_everything_gets_through(make_rig):
    """Room for about three items: hundreds of them, of many tasks, take turns."""
    item_bytes = 1024 + 8 * 16 // 3 + 1024 + 4 * len("text 00")
    async with make_rig(budget_bytes=3 * item_bytes, text={"limits": BatchLimits(2)}) as rig:
        summaries = await asyncio.gather(*(rig.run({"texts": texts(20)}) for _ in range(10)))
        assert item_bytes < rig.budget.most <= 3 * item_bytes
        assert rig.budget.statistics().used_bytes == 0
    assert [summary.ok for summary in summaries] == [20] * 10


async def test_while_the_budget_is_used_up_nothing_more_is_taken_in(make_rig):
    item_bytes = 1024 + 8 * 16 // 3 + 1024 + 4 * len("text 0")
    async with make_rig(budget_bytes=2 * item_bytes, text={"limits": BatchLimits(1)}) as rig:
        rig.publisher.hold()
        rig.text.gate.hold()
        task = rig.start({"texts": texts(5)})
        await rig.text.gate.wait_for_arrivals(1)
        await rig.until_queued(1)
        assert (len(rig.text.prepared), rig.budget.statistics().waiting) == (2, 1)
        rig.publisher.release()
        rig.text.gate.release()
        assert (await task).ok == 5


async def test_an_item_holds_its_entrys_bytes_until_that_is_confirmed_and_its_inputs_no_longer_than_needed(make_rig):
    async with make_rig() as rig:
        rig.publisher.hold()
        task = rig.start({"texts": ["one"]})
        await rig.until_written(1)
        await settle()
        assert rig.budget.statistics().used_bytes == entry_nbytes(rig.text.info)
        rig.publisher.release()
        await task
        assert rig.budget.statistics().used_bytes == 0


async def test_only_a_window_of_a_task_is_under_way_at_once(make_rig):
    async with make_rig(task_window=4, text={"prepare_chunk": 2, "limits": BatchLimits(1)}) as rig:
        rig.text.gate.hold()
        task = rig.start({"texts": texts(10)})
        await rig.text.gate.wait_for_arrivals(1)
        await rig.until_queued(3)
        assert sum(rig.text.prepared) == 4
        rig.text.gate.release()
        assert (await task).ok == 10


async def test_while_results_cannot_be_written_nothing_more_is_read_or_computed(make_rig):
    """Error entries count as well: a task of ten thousand dead links must not pile them up in memory."""
    publisher = MemoryPublisher(pending_results_bytes=1)
    async with make_rig(publisher=publisher, image={"prepare_chunk": 1}, task_window=1) as rig:
        publisher.hold()
        first = rig.start({"items": [{"path": "/nowhere"}] * 5}, kind="images")
        await rig.until_written(1)
        second = rig.start({"texts": ["one"]})
        await settle()
        assert (rig.written(), rig.text.prepared) == (1, [])
        publisher.release()
        assert (await first).errors == 5
        assert (await second).ok == 1

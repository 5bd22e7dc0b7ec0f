"""Batches across tasks: they fill while the device is busy, never wait while it is idle, and lose nobody."""

import asyncio
import gc
import weakref
from contextlib import contextmanager

import numpy as np
import pytest

from legit_embedding.batching import Batcher, Ticket
from legit_embedding.errors import (
    DeviceOutOfMemoryError,
    ExpiredError,
    InternalError,
    InvalidVectorError,
    ShuttingDownError,
)
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.clock import FakeClock, settle
from legit_embedding.testing.model import FakeModel
from legit_embedding.testing.reports import NullReporter
from legit_embedding.values import BatchLimits, Options


class Rig:
    """A batcher with its surroundings; `room` is its gate."""

    def __init__(self, **options):
        self.clock = FakeClock()
        self.reporter = NullReporter()
        self.room = asyncio.Event()
        self.room.set()
        self.gate_error = None
        self.batcher = Batcher(clock=self.clock, gate=self._gate, metrics=Metrics(), reporter=self.reporter, **options)

    async def _gate(self):
        await self.room.wait()
        if self.gate_error is not None:
            raise self.gate_error

    def tickets(self, model, *texts, task="task", deadline_s=None):
        options = Options()
        return [
            Ticket(prepared, options, task=task, tag=text, deadline_s=deadline_s)
            for text, prepared in zip(texts, model.prepare(texts, options), strict=True)
        ]

    def submit(self, model, *texts, **ticket):
        """The outcomes by text, as a task that waits for them."""
        return asyncio.create_task(collect(self.batcher.submit(model, self.tickets(model, *texts, **ticket))))


async def collect(call):
    return {ticket.tag: outcome async for part in call for ticket, outcome in part}


@pytest.fixture
async def rig():
    rig = Rig()
    async with rig.batcher:
        yield rig


def assert_vectors(model, outcomes, *texts):
    assert set(outcomes) == set(texts)
    for text in texts:
        np.testing.assert_array_equal(outcomes[text], model.vector(text))


# -- who shares a batch ------------------------------------------------------------------------------------------------


async def test_with_the_device_idle_a_single_item_goes_at_once(rig):
    """The fake clock stands still and nothing sleeps on it: no timer is involved."""
    model = FakeModel()
    assert_vectors(model, await rig.submit(model, "a"), "a")
    assert rig.clock.sleeping == 0


async def test_a_call_for_nothing_ends_at_once(rig):
    assert await rig.submit(FakeModel()) == {}


async def test_batches_fill_while_the_device_is_busy_and_are_shared_by_tasks(rig):
    model = FakeModel()
    model.gate.hold()
    first = rig.submit(model, "first")
    await model.gate.wait_for_arrivals(1)
    others = [rig.submit(model, name, task=name) for name in "abcdef"]
    await settle()
    model.gate.release()
    await asyncio.gather(first, *others)
    assert model.batches == [["first"], list("abcdef")]
    for name, outcomes in zip("abcdef", others, strict=True):
        assert_vectors(model, outcomes.result(), name)


async def test_a_large_task_is_spread_over_batches_and_told_of_each_when_it_is_done(rig):
    model = FakeModel(limits=BatchLimits(3))
    model.gate.hold()
    call = rig.batcher.submit(model, rig.tickets(model, *"abcdefg"))
    sizes = []
    for _ in range(3):
        model.gate.release(1)
        sizes.append(len(await anext(call)))
    assert sizes == [3, 3, 1]
    assert await collect(call) == {}


async def test_a_search_does_not_wait_behind_a_bulk_task(rig):
    model = FakeModel(limits=BatchLimits(4))
    model.gate.hold()
    bulk = rig.submit(model, *(f"bulk {n}" for n in range(40)), task="bulk")
    await model.gate.wait_for_arrivals(1)
    search = rig.submit(model, "search", task="search")
    await settle()
    model.gate.release(2)
    assert_vectors(model, await search, "search")
    assert not bulk.done()
    model.gate.release()
    assert len(await bulk) == 40


async def test_a_padded_batch_stays_within_the_models_tokens(rig):
    model = FakeModel(limits=BatchLimits(8, max_tokens=8))
    model.gate.hold()
    first = rig.submit(model, "x")
    await model.gate.wait_for_arrivals(1)
    texts = [" ".join("w" * length) for length in (4, 1, 4, 1, 4)]
    second = rig.submit(model, *texts)
    model.gate.release()
    await asyncio.gather(first, second)
    assert all(len(batch) * max(len(text.split()) for text in batch) <= 8 for batch in model.batches)


async def test_forwards_of_one_device_run_on_one_thread_also_for_two_models(rig):
    one, other = FakeModel(name="one"), FakeModel(name="other")
    await asyncio.gather(rig.submit(one, "a"), rig.submit(other, "b"))
    assert one.forward_threads == other.forward_threads
    assert len(one.forward_threads) == 1


async def test_a_device_that_is_stuck_does_not_hold_up_another_one(rig):
    stuck, free = FakeModel(name="stuck", device="cuda:0"), FakeModel(name="free", device="cuda:1")
    stuck.gate.hold()
    waiting = rig.submit(stuck, "a")
    await stuck.gate.wait_for_arrivals(1)
    assert_vectors(free, await rig.submit(free, "b"), "b")
    assert not waiting.done()
    stuck.gate.release()
    await waiting


async def test_an_accelerator_has_its_next_batch_waiting_and_a_cpu_has_not(rig):
    """What is given to a device early cannot be joined by who comes later; a CPU gains nothing by it."""
    under_way = {}
    for device in ("cpu", "cuda:0"):
        model = FakeModel(name=device, device=device, limits=BatchLimits(1))
        model.gate.hold()
        outcomes = rig.submit(model, *"abc", task=device)
        await model.gate.wait_for_arrivals(1)
        await settle()
        under_way[device] = rig.batcher.statistics().running
        model.gate.release()
        await outcomes
    assert under_way == {"cpu": 1, "cuda:0": 2}


async def test_the_next_batch_computes_while_the_last_one_is_finished(rig):
    model = FakeModel(limits=BatchLimits(1))
    model.finish_gate.hold()
    outcomes = rig.submit(model, "a", "b")
    await model.finish_gate.wait_for_arrivals(1)
    await model.gate.wait_for_arrivals(2)
    assert model.batches == [["a"], ["b"]]
    model.finish_gate.release()
    assert_vectors(model, await outcomes, "a", "b")


# -- failures ----------------------------------------------------------------------------------------------------------


async def test_out_of_memory_halves_the_batch_until_it_fits(rig):
    model = FakeModel(out_of_memory_above=2)
    outcomes = await rig.submit(model, *"abcdefgh")
    assert_vectors(model, outcomes, *"abcdefgh")
    assert [len(batch) for batch in model.batches] == [8, 4, 2, 2, 4, 2, 2]
    assert set(rig.reporter.causes) == {"out-of-memory:fake"}


async def test_after_running_out_of_memory_batches_start_small_and_grow_again(rig):
    model = FakeModel(out_of_memory_above=4)
    await rig.submit(model, *"abcdefgh")
    model.out_of_memory_above = None
    del model.batches[:]
    await rig.submit(model, *(str(n) for n in range(4 + 5 + 6 + 7 + 8 + 8)))
    assert [len(batch) for batch in model.batches] == [4, 5, 6, 7, 8, 8]


async def test_an_item_that_alone_is_too_much_gets_its_error_and_its_neighbours_their_vectors(rig):
    model = FakeModel()
    model.fail = lambda keys: DeviceOutOfMemoryError("too much") if "c" in keys else None
    outcomes = await rig.submit(model, *"abcde")
    assert isinstance(outcomes.pop("c"), DeviceOutOfMemoryError)
    assert_vectors(model, outcomes, *"abde")


@pytest.mark.parametrize("error", [ValueError("no"), StopIteration(), asyncio.CancelledError()])
async def test_a_poisoned_item_costs_its_neighbours_nothing(rig, error):
    """StopIteration and CancelledError too: asyncio would lose the one and take the other for a cancellation."""
    model = FakeModel()
    model.fail = lambda keys: error if "c" in keys else None
    outcomes = await rig.submit(model, *"abcdefgh")
    assert isinstance(outcomes.pop("c"), InternalError)
    assert_vectors(model, outcomes, *"abdefgh")
    assert len(set(rig.reporter.causes)) == 1


async def test_a_model_that_always_fails_gives_everybody_an_error_and_the_device_goes_on(rig):
    broken, good = FakeModel(name="broken"), FakeModel(name="good")
    broken.fail = lambda _: RuntimeError("weights are gone")
    outcomes = await rig.submit(broken, *"abc")
    assert {type(outcome) for outcome in outcomes.values()} == {InternalError}
    assert_vectors(good, await rig.submit(good, "a"), "a")


async def test_an_item_whose_vector_is_not_a_number_gets_an_error_and_its_neighbours_their_vectors(rig):
    model = FakeModel(broken="b")
    outcomes = await rig.submit(model, *"abc")
    assert isinstance(outcomes.pop("b"), InvalidVectorError)
    assert_vectors(model, outcomes, "a", "c")


async def test_a_model_that_loses_an_outcome_is_found_out(rig):
    class Forgetful(FakeModel):
        def finish(self, raw, options):
            return super().finish(raw, options)[:-1]

    outcomes = await rig.submit(Forgetful(), "a", "b")
    assert {type(outcome) for outcome in outcomes.values()} == {InternalError}
    assert "gave 0 outcomes for 1 items" in str(rig.reporter.errors[-1])


async def test_failing_to_finish_is_as_bad_as_failing_to_compute_and_no_worse(rig):
    class Picky(FakeModel):
        def finish(self, raw, options):
            if len(options) > 1:
                raise ValueError("one by one, please")
            return super().finish(raw, options)

    model = Picky()
    assert_vectors(model, await rig.submit(model, *"abcd"), *"abcd")


async def test_a_gate_that_fails_gives_everybody_who_waits_an_error_and_the_next_is_served(rig):
    model = FakeModel()
    rig.gate_error = ValueError("a bug")
    outcomes = await rig.submit(model, "a", "b")
    assert {type(outcome) for outcome in outcomes.values()} == {InternalError}
    assert rig.reporter.causes == ["batcher:ValueError"]
    rig.gate_error = None
    assert_vectors(model, await rig.submit(model, "c"), "c")


async def test_a_gate_that_is_shutting_down_sends_everybody_away_unanswered(rig):
    rig.gate_error = ShuttingDownError("stopping")
    with pytest.raises(ShuttingDownError):
        await rig.submit(FakeModel(), "a")
    assert rig.reporter.causes == []


async def test_a_policy_that_fails_strands_nobody(rig):
    """Tickets that cannot be compared, from a plugin that counts no tokens."""
    model = FakeModel(limits=BatchLimits(8, max_tokens=100))
    tickets = rig.tickets(model, "a", "b")
    object.__setattr__(tickets[1].prepared, "tokens", None)
    outcomes = await collect(rig.batcher.submit(model, tickets))
    assert {type(outcome) for outcome in outcomes.values()} == {InternalError}
    assert_vectors(model, await rig.submit(model, "c"), "c")


# -- waiting and giving up ---------------------------------------------------------------------------------------------


async def test_while_the_gate_is_shut_nothing_is_computed(rig):
    model = FakeModel()
    rig.room.clear()
    outcomes = rig.submit(model, "a")
    await settle()
    assert (model.batches, rig.batcher.statistics().queued) == ([], 1)
    rig.room.set()
    assert_vectors(model, await outcomes, "a")


async def test_what_expires_while_it_waits_is_told_so_and_not_computed(rig):
    model = FakeModel()
    rig.room.clear()
    late = rig.submit(model, "late", deadline_s=rig.clock.monotonic() + 5)
    early = rig.submit(model, "early", deadline_s=rig.clock.monotonic() + 50)
    await rig.clock.advance(10)
    rig.room.set()
    assert isinstance((await late)["late"], ExpiredError)
    assert_vectors(model, await early, "early")
    assert model.batches == [["early"]]


async def test_a_cancelled_caller_withdraws_what_has_not_begun(rig):
    model = FakeModel(limits=BatchLimits(2))
    model.gate.hold()
    cancelled = rig.submit(model, *(f"c{n}" for n in range(10)), task="cancelled")
    await model.gate.wait_for_arrivals(1)
    other = rig.submit(model, "a", "b", task="other")
    await settle()
    cancelled.cancel()
    await settle()
    model.gate.release()
    assert_vectors(model, await other, "a", "b")
    await settle()
    assert model.batches == [["c0", "c1"], ["a", "b"]]
    assert rig.batcher.statistics().queued == 0


async def test_prepared_inputs_are_not_kept_once_they_are_computed(rig):
    """The budget has given their bytes to others by then, although their task still waits for the rest."""
    model = FakeModel(limits=BatchLimits(1))

    class Pixels(str):
        __slots__ = ("__weakref__",)

    tickets = rig.tickets(model, "a", "b")
    for ticket in tickets:
        object.__setattr__(ticket.prepared, "data", Pixels(ticket.tag))
    references = [weakref.ref(ticket.prepared.data) for ticket in tickets]
    model.gate.hold()
    call = rig.batcher.submit(model, tickets)
    del tickets, ticket
    model.gate.release(1)
    await anext(call)
    await model.gate.wait_for_arrivals(2)
    gc.collect()
    assert [reference() is None for reference in references] == [True, False]
    model.gate.release()
    await anext(call)


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_closing_lets_the_running_batch_finish_and_sends_everybody_else_away():
    rig, model = Rig(), FakeModel(limits=BatchLimits(1))
    model.gate.hold()
    async with rig.batcher:
        running, queued = rig.submit(model, "a", task="x"), rig.submit(model, "b", task="y")
        await model.gate.wait_for_arrivals(1)
        closing = asyncio.create_task(rig.batcher.__aexit__(None, None, None))
        await settle()
        with pytest.raises(ShuttingDownError):
            await queued
        assert not closing.done()
        model.gate.release()
        await closing
        assert_vectors(model, await running, "a")
    assert model.batches == [["a"]]


async def test_a_batch_holds_its_model_from_its_start_to_its_end():
    """Also where its caller is cancelled, and where it fails."""
    held = []

    @contextmanager
    def hold(model):
        held.append(model)
        yield
        held.remove(model)

    rig, model = Rig(hold=hold), FakeModel()
    async with rig.batcher:
        model.gate.hold()
        model.fail = lambda keys: ValueError("no") if keys == ["b"] else None
        first = rig.submit(model, "a")
        await model.gate.wait_for_arrivals(1)
        second = rig.submit(model, "b")
        first.cancel()
        await settle()
        assert held == [model]
        model.gate.release(1)
        await model.gate.wait_for_arrivals(2)
        assert model in held
        model.gate.release()
        assert isinstance((await second)["b"], InternalError)
        await settle()
        assert held == []


async def test_closing_does_not_wait_for_a_batch_for_ever():
    rig, model = Rig(close_timeout_s=0), FakeModel()
    model.gate.hold()
    async with rig.batcher:
        stuck = rig.submit(model, "a")
        await model.gate.wait_for_arrivals(1)
    with pytest.raises(ShuttingDownError):
        await stuck
    assert rig.batcher.statistics().running == 0
    model.gate.release()


async def test_closing_while_the_gate_is_shut_sends_everybody_away():
    rig = Rig()
    rig.room.clear()
    async with rig.batcher:
        waiting = rig.submit(FakeModel(), "a")
        await settle()
    with pytest.raises(ShuttingDownError):
        await waiting


async def test_closing_while_the_gate_is_shut_still_answers_a_batch_that_has_to_be_divided():
    """The feeder holds the device's place while it waits at the gate; it gives it back when it is stopped."""

    class Picky(FakeModel):
        def finish(self, raw, options):
            outcomes = super().finish(raw, options)
            if len(outcomes) > 1:
                raise ValueError("one by one, please")
            return outcomes

    rig, model = Rig(), Picky(limits=BatchLimits(2))
    model.finish_gate.hold()
    async with rig.batcher:
        running = rig.submit(model, "a", "b")
        await model.finish_gate.wait_for_arrivals(1)
        rig.room.clear()
        queued = rig.submit(model, "c")
        await settle()
        model.finish_gate.release()
    assert_vectors(model, await running, "a", "b")
    with pytest.raises(ShuttingDownError):
        await queued


async def test_after_closing_no_ticket_is_taken():
    rig = Rig()
    async with rig.batcher:
        pass
    with pytest.raises(ShuttingDownError):
        await rig.submit(FakeModel(), "a")


async def test_closing_twice_does_nothing_more(rig):
    model = FakeModel()
    await rig.submit(model, "a")
    await rig.batcher.__aexit__(None, None, None)
    await rig.batcher.__aexit__(None, None, None)
    assert rig.batcher.statistics().running == 0


async def test_the_figures_show_what_waits_runs_and_is_done(rig):
    model = FakeModel(limits=BatchLimits(2))
    assert rig.batcher.statistics().mean_batch_size == 0.0
    model.gate.hold()
    outcomes = rig.submit(model, *"abcde")
    await model.gate.wait_for_arrivals(1)
    assert repr(rig.batcher) == "<Batcher 3 queued, 1 running, 0 batches done>"
    model.gate.release()
    await outcomes
    await settle()
    figures = rig.batcher.statistics()
    assert (figures.queued, figures.running, figures.batches, figures.items) == (0, 0, 3, 5)
    assert figures.mean_batch_size == pytest.approx(5 / 3)

"""Preparing in turn, small pieces together, and nobody forgotten."""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legit_embedding.batching import Preparer
from legit_embedding.testing.clock import FakeClock, settle
from legit_embedding.values import Options

OPTIONS = Options()


class ByHand:
    """An executor whose calls run when the test says so, in the order in which they came."""

    def __init__(self):
        self.calls = []

    def submit(self, function, *args):
        future = Future()
        self.calls.append((future, function, args))
        return future


class Model:
    """Notes what it is given; gives each payload back in capitals. `fails` are payloads that make a call raise."""

    def __init__(self, chunk=4):
        self.prepare_chunk = chunk
        self.given = []
        self.fails = {}

    def prepare(self, payloads, options):
        self.given.append(list(payloads))
        for payload in payloads:
            if payload in self.fails:
                raise self.fails[payload]
        return [payload.upper() for payload in payloads]


class Rig:
    def __init__(self, *, threads=1):
        self.executor = ByHand()
        self.clock = FakeClock()
        self.seconds = []
        self.preparer = Preparer(self.executor, threads=threads, clock=self.clock, observe=self.seconds.append)

    def start(self, task, *payloads, model, options=OPTIONS):
        return asyncio.create_task(self.preparer.prepare(model, payloads, options, task=task))

    async def run_one(self):
        future, function, args = self.executor.calls.pop(0)
        future.set_result(function(*args))
        await settle()

    async def run_all(self):
        while self.executor.calls:
            await self.run_one()


async def test_pieces_that_come_in_one_turn_of_the_loop_are_one_call_and_each_gets_its_own():
    rig, model = Rig(), Model()
    tasks = [rig.start("a", "one", model=model), rig.start("b", "two", "three", model=model)]
    await settle()
    assert len(rig.executor.calls) == 1
    await rig.run_all()
    assert model.given == [["one", "two", "three"]]
    assert [await task for task in tasks] == [["ONE"], ["TWO", "THREE"]]


async def test_a_call_has_no_more_than_a_chunk_unless_a_piece_alone_has_more():
    rig, model = Rig(), Model(chunk=3)
    sizes = {"a": 2, "b": 2, "c": 1, "d": 5}
    for task, size in sizes.items():
        rig.start(task, *[f"{task}{number}" for number in range(size)], model=model)
    await settle()
    await rig.run_all()
    assert [len(given) for given in model.given] == [3, 2, 5]
    assert model.given[0] == ["a0", "a1", "c0"]


async def test_of_a_model_that_takes_one_at_a_time_each_piece_is_a_call():
    rig, model = Rig(), Model(chunk=1)
    for task in "abc":
        rig.start(task, task, model=model)
    await settle()
    await rig.run_all()
    assert model.given == [["a"], ["b"], ["c"]]


async def test_pieces_of_other_models_and_other_options_are_calls_of_their_own():
    rig, one, other = Rig(threads=2), Model(), Model()
    shorter = Options(dimensions=2)
    rig.start("a", "a", model=one)
    rig.start("b", "b", model=other)
    rig.start("c", "c", model=one, options=shorter)
    rig.start("d", "d", model=one)
    await settle()
    await rig.run_all()
    assert one.given == [["a", "d"], ["c"]]
    assert other.given == [["b"]]


async def test_two_calls_for_each_thread_are_under_way_and_the_rest_waits():
    rig, model = Rig(threads=1), Model(chunk=1)
    for task in "abc":
        rig.start(task, task, model=model)
    await settle()
    assert len(rig.executor.calls) == 2
    assert repr(rig.preparer) == "<Preparer 2 of 2 places taken, 1 waiting>"
    await rig.run_one()
    assert len(rig.executor.calls) == 2
    assert repr(rig.preparer) == "<Preparer 2 of 2 places taken, 0 waiting>"


async def test_a_newcomer_does_not_wait_behind_another_tasks_backlog():
    rig, model = Rig(), Model(chunk=1)
    for number in range(6):
        rig.start("bulk", f"bulk{number}", model=model)
    await settle()
    rig.start("search", "search", model=model)
    await settle()
    await rig.run_all()
    assert [given[0] for given in model.given] == ["bulk0", "bulk1", "bulk2", "search", "bulk3", "bulk4", "bulk5"]


async def test_tasks_take_turns():
    rig, model = Rig(), Model(chunk=1)
    for task in "ab":
        for number in range(3):
            rig.start(task, f"{task}{number}", model=model)
    await settle()
    await rig.run_all()
    assert [given[0] for given in model.given] == ["a0", "b0", "a1", "b1", "a2", "b2"]


async def test_whoever_is_cancelled_while_it_waits_is_not_prepared_and_nothing_of_it_is_kept():
    rig, model = Rig(), Model(chunk=1)
    tasks = [rig.start(task, task, model=model) for task in "abc"]
    await settle()
    tasks[2].cancel()
    await settle()
    assert repr(rig.preparer) == "<Preparer 2 of 2 places taken, 0 waiting>"
    await rig.run_all()
    assert model.given == [["a"], ["b"]]


async def test_a_piece_that_is_cancelled_before_the_start_does_not_keep_its_tasks_others_from_it():
    rig, model = Rig(), Model()
    gone, stays = (rig.start("a", text, model=model) for text in ("gone", "stays"))
    await asyncio.sleep(0)
    gone.cancel()
    await settle()
    await rig.run_all()
    assert await stays == ["STAYS"]


async def test_whoever_is_cancelled_while_it_is_prepared_costs_the_others_nothing():
    rig, model = Rig(), Model()
    gone, stays = rig.start("a", "a", model=model), rig.start("b", "b", model=model)
    await settle()
    gone.cancel()
    await rig.run_all()
    assert await stays == ["B"]
    assert gone.cancelled()


async def test_a_call_that_fails_is_repeated_for_each_piece_so_that_one_alone_fails():
    rig, model = Rig(), Model()
    error = model.fails["bad"] = ValueError("why")
    good, bad = rig.start("a", "good", model=model), rig.start("b", "bad", model=model)
    await settle()
    await rig.run_all()
    assert await good == ["GOOD"]
    assert bad.exception() is error
    assert model.given == [["good", "bad"], ["good"], ["bad"]]


@pytest.mark.parametrize("error", [StopIteration("x"), asyncio.CancelledError("x"), SystemExit("x")])
async def test_what_no_future_should_carry_is_an_error_of_the_model(error):
    rig, model = Rig(), Model()
    model.fails["bad"] = error
    task = rig.start("a", "bad", model=model)
    await settle()
    await rig.run_all()
    with pytest.raises(RuntimeError, match=f"{type(error).__name__} left the model's prepare"):
        await task


async def test_a_model_that_loses_a_payload_is_told_apart_from_its_neighbours():
    rig, model = Rig(), Model()
    model.prepare = lambda payloads, _: [payload.upper() for payload in payloads if payload != "lost"]
    good, bad = rig.start("a", "good", model=model), rig.start("b", "lost", model=model)
    await settle()
    await rig.run_all()
    assert await good == ["GOOD"]
    with pytest.raises(RuntimeError, match="the model gave 0 results for 1 payloads"):
        await bad


async def test_how_long_a_call_took_is_told_once():
    rig, model = Rig(), Model()
    for task in "ab":
        rig.start(task, task, model=model)
    await settle()
    await rig.clock.advance(2.5)
    await rig.run_all()
    assert rig.seconds == [2.5]


async def test_of_an_executor_that_is_shut_down_everybody_hears():
    executor, model = ThreadPoolExecutor(1), Model(chunk=1)
    executor.shutdown()
    preparer = Preparer(executor, threads=1, clock=FakeClock())
    outcomes = await asyncio.gather(
        *(preparer.prepare(model, [task], OPTIONS, task=task) for task in "abc"), return_exceptions=True
    )
    assert [str(each) for each in outcomes] == ["cannot schedule new futures after shutdown"] * 3


async def test_a_call_that_is_called_off_with_its_executor_cancels_whoever_waits():
    rig, model = Rig(), Model()
    task = rig.start("a", "a", model=model)
    await settle()
    called_off, *_ = rig.executor.calls.pop()
    called_off.cancel()
    await settle()
    assert task.cancelled()
    assert repr(rig.preparer) == "<Preparer 0 of 2 places taken, 0 waiting>"


@given(
    tasks=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), min_size=1, max_size=12),
    chunk=st.integers(1, 5),
    turns=st.lists(st.lists(st.one_of(st.none(), st.integers(0, 11)), max_size=5)),
)
def test_whatever_is_cancelled_and_done_in_one_turn_everybody_else_is_served(tasks, chunk, turns):
    """A number cancels that piece, None lets a call run; no place is lost, and each task's pieces keep their order."""

    async def scenario():
        rig, model = Rig(), Model(chunk)
        waiting = [
            rig.start(task, *[f"{task}{number}.{place}" for place in range(size)], model=model)
            for number, (task, size) in enumerate(tasks)
        ]
        await asyncio.sleep(0)  # they wait, and nothing has been started yet
        for turn in turns:
            for what in turn:
                if what is None:
                    if rig.executor.calls:
                        future, function, args = rig.executor.calls.pop(0)
                        future.set_result(function(*args))
                elif what < len(waiting):
                    waiting[what].cancel()
            await asyncio.sleep(0)
        await settle()
        await rig.run_all()
        for number, (task, size) in enumerate(tasks):
            expected = [f"{task}{number}.{place}".upper() for place in range(size)]
            assert waiting[number].cancelled() or waiting[number].result() == expected
        for name in "abc":
            numbers = [int(each[1:].split(".")[0]) for given in model.given for each in given if each[0] == name]
            assert numbers == sorted(numbers)
        assert repr(rig.preparer) == "<Preparer 0 of 2 places taken, 0 waiting>"

    asyncio.run(scenario())

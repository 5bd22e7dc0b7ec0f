"""Every model once, however many ask; kept while it is used, gone when it is idle or when memory is short."""

import asyncio
import gc
import weakref

import pytest

from legit_embedding.errors import (
    ConfigurationError,
    DeviceOutOfMemoryError,
    ModelUnavailableError,
    ShuttingDownError,
    UnknownModelError,
)
from legit_embedding.testing.clock import settle, until
from legit_embedding.testing.model import FakeModel


async def test_however_many_ask_at_once_the_model_is_loaded_once(cache_rig):
    rig = cache_rig()
    async with rig.cache:
        models = await asyncio.gather(*(rig.use("a") for _ in range(50)))
    assert rig.adapter.loads == ["a"]
    assert {id(model) for model in models} == {id(rig.adapter.models[0])}


async def test_without_a_key_the_default_of_the_modality_is_leased(cache_rig):
    rig = cache_rig(toml='[defaults]\nimage = "b"\n[models.a]\nadapter = "fake"\n[models.b]\nadapter = "fake"')
    async with rig.cache, rig.leased(None, "image") as model:
        assert model.info.name == "b"


async def test_an_undeclared_model_is_unknown_and_nothing_is_loaded(cache_rig):
    rig = cache_rig("a")
    async with rig.cache:
        with pytest.raises(UnknownModelError, match=r"'x' is not declared in models\.toml; declared are: a"):
            await rig.use("x")
        with pytest.raises(UnknownModelError, match="no default model for text"):
            await rig.use(None)
    assert rig.adapter.loads == []


async def test_two_models_are_loaded_one_after_the_other(cache_rig):
    """Two loads at once would add up their peaks of memory."""
    rig = cache_rig()
    rig.adapter.gate.hold()
    async with rig.cache:
        both = asyncio.gather(rig.use("a"), rig.use("b"))
        await rig.adapter.gate.wait_for_arrivals(1)
        await settle()
        assert rig.adapter.loads == ["a"]
        rig.adapter.gate.release()
        await both
    assert rig.adapter.loads == ["a", "b"]


async def test_a_loaded_model_is_leased_while_another_one_is_being_loaded(cache_rig):
    rig = cache_rig()
    async with rig.cache:
        await rig.use("a")
        rig.adapter.gate.hold()
        slow = asyncio.create_task(rig.use("b"))
        await rig.adapter.gate.wait_for_arrivals(2)
        await rig.use("a")
        assert not slow.done()
        rig.adapter.gate.release()
        await slow


# -- failures ----------------------------------------------------------------------------------------------------------


async def test_a_failed_load_is_everybodys_error_and_tried_once(cache_rig):
    rig = cache_rig(model_failure_s=30)
    rig.adapter.fail = lambda _: ModelUnavailableError("no such weights")
    async with rig.cache:
        results = await asyncio.gather(*(rig.use("a") for _ in range(5)), return_exceptions=True)
    assert [(type(error), str(error)) for error in results] == [(ModelUnavailableError, "no such weights")] * 5
    assert rig.adapter.loads == ["a"]
    assert rig.reporter.causes == ["model-load:a"]


async def test_a_failure_is_remembered_for_a_while_and_then_the_load_is_tried_again(cache_rig):
    rig = cache_rig(model_failure_s=30)
    rig.adapter.fail = lambda _: OSError("no such host")
    async with rig.cache:
        with pytest.raises(ModelUnavailableError, match="'a' cannot be loaded: OSError: no such host"):
            await rig.use("a")
        await rig.clock.advance(10)
        with pytest.raises(ModelUnavailableError) as remembered:
            await rig.use("a")
        assert remembered.value.retry_after_s == 20
        assert rig.adapter.loads == ["a"]
        rig.adapter.fail = lambda _: None
        await rig.clock.advance(20)
        assert (await rig.use("a")).info.name == "a"


async def test_a_failure_of_the_configuration_is_remembered_for_good(cache_rig):
    rig = cache_rig("a", model_failure_s=30)
    rig.adapter.fail = lambda _: ConfigurationError("models.a.name is missing")
    async with rig.cache:
        for _ in range(3):
            with pytest.raises(ModelUnavailableError, match="name is missing") as raised:
                await rig.use("a")
            assert raised.value.permanent
            await rig.clock.advance(31)
    assert rig.adapter.loads == ["a"]


async def test_with_nothing_remembered_a_failure_still_ends_the_wait(cache_rig):
    rig = cache_rig(model_failure_s=0)
    rig.adapter.fail = lambda _: OSError("no such host")
    async with rig.cache:
        for _ in range(2):
            with pytest.raises(ModelUnavailableError):
                await rig.use("a")
    assert rig.adapter.loads == ["a", "a"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigurationError("models.a.device is wrong"), "the model 'a' cannot be loaded: models.a.device is wrong"),
        (StopIteration(), "the model 'a' cannot be loaded: RuntimeError: StopIteration left "),
        (DeviceOutOfMemoryError("cpu is full"), "the model 'a' cannot be loaded: cpu is full"),
        (KeyError("weights"), "the model 'a' cannot be loaded: KeyError: 'weights'"),
    ],
)
async def test_whatever_an_adapter_raises_the_model_is_unavailable_and_the_message_says_why(cache_rig, error, message):
    rig = cache_rig()
    rig.adapter.fail = lambda _: error
    async with rig.cache:
        with pytest.raises(ModelUnavailableError) as raised:
            await rig.use("a")
    assert str(raised.value).startswith(message)


async def test_an_adapter_that_is_not_installed_makes_its_model_unavailable(cache_rig):
    rig = cache_rig(toml='[models.a]\nadapter = "nobody"')
    async with rig.cache:
        with pytest.raises(ModelUnavailableError, match="no adapter 'nobody' is installed"):
            await rig.use("a")


async def test_a_remembered_failure_does_not_keep_what_was_loaded_so_far(cache_rig):
    class Weights:
        pass

    rig = cache_rig()
    references = []

    def fail(_):
        weights = Weights()
        references.append(weakref.ref(weights))
        raise ModelUnavailableError(f"{type(weights).__name__} do not fit")

    rig.adapter.fail = fail
    async with rig.cache:
        with pytest.raises(ModelUnavailableError):
            await rig.use("a")
        rig.reporter.errors.clear()
        assert rig.state("a").error == "Weights do not fit"
        await until(lambda: gc.collect() >= 0 and references[0]() is None)  # the loader's thread lets go a moment later


# -- waiters and leases ------------------------------------------------------------------------------------------------


async def test_a_waiter_that_is_cancelled_does_not_stop_the_load_for_the_others(cache_rig):
    rig = cache_rig()
    rig.adapter.gate.hold()
    async with rig.cache:
        first, second = asyncio.create_task(rig.use("a")), asyncio.create_task(rig.use("a"))
        await rig.adapter.gate.wait_for_arrivals(1)
        first.cancel()
        await settle()
        assert first.cancelled()
        rig.adapter.gate.release()
        assert (await second).info.name == "a"
    assert rig.adapter.loads == ["a"]


async def test_a_load_that_nobody_waits_for_any_more_still_ends_with_its_model(cache_rig):
    rig = cache_rig()
    rig.adapter.gate.hold()
    async with rig.cache:
        only = asyncio.create_task(rig.use("a"))
        await rig.adapter.gate.wait_for_arrivals(1)
        only.cancel()
        rig.adapter.gate.release()
        await rig.use("a")
    assert rig.adapter.loads == ["a"]


async def test_a_leased_model_is_not_unloaded(cache_rig):
    rig = cache_rig()
    async with rig.cache:
        async with rig.leased("a", "text"):
            with pytest.raises(ModelUnavailableError, match="'a' is in use by 1 tasks"):
                await rig.cache.unload("a")
        await rig.cache.unload("a")
        assert rig.loaded == []
    assert rig.adapter.models[0].closes == 1


async def test_a_model_that_computes_a_batch_outlives_its_lease(cache_rig):
    """A task that is cancelled ends its lease at once; the batch on the device does not end with it."""
    rig = cache_rig("a", model_idle_s=60)
    async with rig.cache:
        async with rig.leased("a", "text") as model:
            hold = rig.cache.hold(model)
            hold.__enter__()
        with pytest.raises(ModelUnavailableError, match="by 0 tasks and 1 batches"):
            await rig.cache.unload("a")
        await rig.clock.advance(600)
        assert rig.loaded == ["a"]
        hold.__exit__(None, None, None)
        await rig.clock.advance(40)
        assert rig.loaded == ["a"]  # its idle time begins with the batch's end
        await rig.clock.advance(40)
        await closed(model)
        assert rig.loaded == []


async def test_a_model_that_is_not_loaded_can_be_held_in_vain(cache_rig):
    rig = cache_rig("a")
    async with rig.cache:
        with rig.cache.hold(FakeModel(name="a")):
            assert rig.state("a").state == "unloaded"


async def test_unloading_what_is_not_loaded_does_nothing(cache_rig):
    rig = cache_rig()
    async with rig.cache:
        await rig.cache.unload("a")
        with pytest.raises(UnknownModelError):
            await rig.cache.unload("x")


async def test_a_lease_ends_also_where_its_task_fails(cache_rig):
    rig = cache_rig()
    async with rig.cache:
        with pytest.raises(ZeroDivisionError):
            async with rig.leased("a", "text"):
                raise ZeroDivisionError
        assert rig.state("a").in_use == 0


# -- by hand -----------------------------------------------------------------------------------------------------------


async def test_a_load_that_is_started_is_not_waited_for(cache_rig):
    rig = cache_rig()
    rig.adapter.gate.hold()
    async with rig.cache:
        assert rig.cache.start_load("a").state == "unloaded"
        assert rig.cache.start_load("a").state == rig.state("a").state == "loading"
        rig.adapter.gate.release()
        await until(lambda: rig.loaded == ["a"])
        assert rig.cache.start_load("a").state == "ready"
        await rig.cache.load("b")  # a second load of the first would have had its turn before
    assert rig.adapter.loads == ["a", "b"]


async def test_a_started_load_that_fails_is_seen_in_the_figures_the_log_and_the_reports(cache_rig, caplog):
    rig = cache_rig()
    rig.adapter.fail = lambda _: ModelUnavailableError("no such weights")
    async with rig.cache:
        rig.cache.start_load("a")
        await until(lambda: rig.state("a").state == "failed")
        assert rig.state("a").error == "no such weights"
    assert "model a: no such weights" in caplog.messages
    assert rig.reporter.causes == ["model-load:a"]


@pytest.mark.parametrize("error", [ModelUnavailableError("no such weights"), ConfigurationError("no such adapter")])
async def test_a_started_load_does_not_wait_until_a_failure_is_forgotten_and_who_asks_waits_for_it(cache_rig, error):
    rig = cache_rig(model_failure_s=1000)
    rig.adapter.fail = lambda _: error
    async with rig.cache:
        with pytest.raises(ModelUnavailableError):
            await rig.use("a")
        rig.adapter.fail = lambda _: None
        before = rig.cache.start_load("a")
        assert (before.state, str(error) in before.error) == ("failed", True)
        assert (await rig.use("a")).info.name == "a"
    assert rig.adapter.loads == ["a", "a"]


async def test_a_model_that_was_loaded_by_hand_goes_when_it_is_idle_as_any_other(cache_rig):
    rig = cache_rig(model_idle_s=40)
    async with rig.cache:
        rig.cache.start_load("a")
        await until(lambda: rig.loaded == ["a"])
        await rig.clock.advance(50)
        await closed(rig.adapter.models[0])
        assert rig.loaded == []


async def test_a_model_that_goes_is_out_of_use_at_once_and_its_memory_is_told_until_it_is_free(cache_rig):
    rig = cache_rig()
    async with rig.cache:
        first = await rig.use("a")
        first.close_gate.hold()
        assert rig.cache.start_unload("a").state == "ready"
        assert (rig.state("a").state, rig.state("a").nbytes) == ("unloading", 1000)
        assert rig.cache.start_unload("a").state == "unloading"
        assert rig.metrics.snapshot()["models_loaded"] == 0
        next_one = asyncio.create_task(rig.use("a"))
        await first.close_gate.wait_for_arrivals(1)
        await settle()
        assert rig.adapter.loads == ["a"]
        first.close_gate.release()
        assert await next_one is not first
        await rig.cache.unload("a")
        assert (rig.state("a").state, rig.state("a").nbytes) == ("unloaded", 0)
    assert [model.closes for model in rig.adapter.models] == [1, 1]


async def test_a_model_that_is_being_loaded_is_not_unloaded(cache_rig):
    rig = cache_rig()
    rig.adapter.gate.hold()
    async with rig.cache:
        rig.cache.start_load("a")
        with pytest.raises(ModelUnavailableError, match="'a' is being loaded: unload it when it is ready"):
            rig.cache.start_unload("a")
        rig.adapter.gate.release()
        await rig.cache.load("a")
        assert rig.loaded == ["a"]


async def test_a_model_that_is_unloaded_during_another_ones_load_is_closed_after_it(cache_rig):
    """There is one thread for both; nobody waits for it."""
    rig = cache_rig()
    async with rig.cache:
        first = await rig.use("a")
        rig.adapter.gate.hold()
        rig.cache.start_load("b")
        await rig.adapter.gate.wait_for_arrivals(2)
        rig.cache.start_unload("a")
        await settle()
        assert (first.closes, rig.state("a").state, rig.state("b").state) == (0, "unloading", "loading")
        rig.adapter.gate.release()
        await until(lambda: rig.state("a").state == "unloaded")
        assert (first.closes, rig.loaded) == (1, ["b"])


async def test_a_load_begins_only_when_the_memory_of_what_goes_is_free(cache_rig):
    rig = cache_rig(model_memory_bytes=1500)
    async with rig.cache:
        first = await rig.use("a")
        first.close_gate.hold()
        rig.cache.start_load("b")
        rig.cache.start_unload("a")
        await first.close_gate.wait_for_arrivals(1)
        await settle()
        assert rig.adapter.loads == ["a"]
        first.close_gate.release()
        await rig.cache.load("b")
        assert rig.loaded == ["b"]


async def test_a_load_that_runs_out_of_memory_is_tried_again_where_a_model_goes_meanwhile(cache_rig):
    rig = cache_rig()
    async with rig.cache:
        first = await rig.use("a")
        rig.adapter.gate.hold()
        rig.adapter.fail = lambda _: None if first.closes else DeviceOutOfMemoryError("full")
        rig.cache.start_load("b")
        await rig.adapter.gate.wait_for_arrivals(2)
        rig.cache.start_unload("a")
        rig.adapter.gate.release()
        await rig.cache.load("b")
        assert rig.loaded == ["b"]


async def test_what_goes_when_the_worker_stops_is_closed_also_where_a_load_is_stuck(cache_rig):
    rig = cache_rig(close_timeout_s=0)
    async with rig.cache:
        first = await rig.use("a")
        rig.adapter.gate.hold()
        rig.cache.start_load("b")
        await rig.adapter.gate.wait_for_arrivals(2)
        rig.cache.start_unload("a")
        await settle()
        assert first.closes == 0
    assert first.closes == 1
    rig.adapter.gate.release()


async def test_nothing_is_started_for_an_undeclared_model_nor_when_the_worker_stops(cache_rig):
    rig = cache_rig()
    async with rig.cache:
        for start in (rig.cache.start_load, rig.cache.start_unload):
            with pytest.raises(UnknownModelError, match=r"'x' is not declared in models\.toml; declared are: a, b, c"):
                start("x")
    for start in (rig.cache.start_load, rig.cache.start_unload):
        with pytest.raises(ShuttingDownError):
            start("a")
    assert rig.adapter.loads == []


# -- memory ------------------------------------------------------------------------------------------------------------


async def test_the_least_recently_used_model_makes_room(cache_rig):
    rig = cache_rig(model_memory_bytes=2500)
    async with rig.cache:
        for key in ("a", "b", "a"):
            await rig.use(key)
            await rig.clock.advance(1)
        await rig.use("c")
        assert rig.loaded == ["a", "c"]


async def test_a_model_in_use_never_makes_room(cache_rig):
    rig = cache_rig(model_memory_bytes=2500)
    async with rig.cache, rig.leased("a", "text"), rig.leased("b", "text"):
        with pytest.raises(ModelUnavailableError, match=r"does not fit: .* are all in use"):
            await rig.use("c")
        assert rig.loaded == ["a", "b"]
    assert [model.closes for model in rig.adapter.models] == [1, 1, 1]


async def test_a_model_larger_than_all_the_memory_there_is_evicts_nobody(cache_rig):
    rig = cache_rig(
        toml='[models.a]\nadapter = "fake"\n[models.huge]\nadapter = "fake"\nnbytes = 9000', model_memory_bytes=2500
    )
    async with rig.cache:
        await rig.use("a")
        with pytest.raises(ModelUnavailableError, match=r"'huge' \(9,000 bytes\) is larger than LEGIT_MODEL_MEM"):
            await rig.use("huge")
        assert rig.loaded == ["a"]


async def test_memory_is_counted_for_each_device(cache_rig):
    rig = cache_rig(
        toml='[models.a]\nadapter = "fake"\ndevice = "cuda:0"\n[models.b]\nadapter = "fake"\ndevice = "cuda:1"',
        model_memory_bytes=1500,
    )
    async with rig.cache:
        await rig.use("a")
        await rig.use("b")
        assert rig.loaded == ["a", "b"]


async def test_a_load_that_runs_out_of_memory_is_tried_again_once_idle_models_are_gone(cache_rig):
    rig = cache_rig()
    async with rig.cache:
        await rig.use("a")
        await rig.use("b")
        full = lambda spec: DeviceOutOfMemoryError("full") if spec.key == "c" and rig.loaded else None  # noqa: E731
        rig.adapter.fail = full
        async with rig.leased("b", "text"):
            with pytest.raises(ModelUnavailableError, match="full"):
                await rig.use("c")
            assert rig.loaded == ["b"]
        await rig.clock.advance(60)
        await rig.use("c")
        assert rig.loaded == ["c"]


async def test_a_model_that_is_leased_while_others_are_evicted_stays(cache_rig):
    """`a` goes first, and while it goes `b` is leased: it is no longer idle when its turn comes."""
    rig = cache_rig()
    async with rig.cache:
        await rig.use("a")
        await rig.use("b")
        a, b = rig.adapter.models
        a.close_gate.hold()
        rig.adapter.fail = lambda spec: DeviceOutOfMemoryError("full") if len(rig.adapter.loads) == 3 else None
        third = asyncio.create_task(rig.use("c"))
        await a.close_gate.wait_for_arrivals(1)
        async with rig.leased("b", "text"):
            a.close_gate.release()
            await third
            assert b.closes == 0


async def test_a_model_that_does_not_close_quietly_is_reported_and_gone(cache_rig):
    rig = cache_rig(model_memory_bytes=1500)
    async with rig.cache:
        await rig.use("a")
        rig.adapter.models[0].close = lambda: 1 / 0
        await rig.use("b")
        assert rig.loaded == ["b"]
    assert rig.reporter.causes == ["model-close:a"]


# -- idle --------------------------------------------------------------------------------------------------------------


async def test_an_idle_model_is_unloaded_after_its_time_and_loaded_again_when_asked_for(cache_rig):
    rig = cache_rig(model_idle_s=40)
    async with rig.cache:
        await rig.use("a")
        await rig.clock.advance(39)
        assert rig.loaded == ["a"]
        await rig.clock.advance(11)
        await closed(rig.adapter.models[0])
        assert rig.loaded == []
        await rig.use("a")
    assert rig.state("a").loads == 2


async def test_a_model_in_use_is_never_idle(cache_rig):
    rig = cache_rig(model_idle_s=40)
    async with rig.cache, rig.leased("a", "text"):
        await rig.clock.advance(1000)
        assert rig.loaded == ["a"]


async def test_a_model_may_have_an_idle_time_of_its_own(cache_rig):
    rig = cache_rig(toml='[models.a]\nadapter = "fake"\nidle_unload_s = 10\n[models.b]\nadapter = "fake"')
    async with rig.cache:
        await rig.use("a")
        await rig.use("b")
        await rig.clock.advance(1000)
        await closed(rig.adapter.models[0])
        assert rig.loaded == ["b"]


async def test_without_an_idle_time_nothing_looks_at_the_clock(cache_rig):
    rig = cache_rig()
    async with rig.cache:
        await rig.use("a")
        assert rig.clock.sleeping == 0


async def test_the_sweep_goes_on_after_a_model_that_does_not_close_quietly(cache_rig):
    rig = cache_rig(model_idle_s=40)
    async with rig.cache:
        await rig.use("a")
        rig.adapter.models[0].close = lambda: 1 / 0
        await rig.clock.advance(60)
        await rig.use("b")
        await rig.clock.advance(60)
        await closed(rig.adapter.models[1])
        assert rig.loaded == []


async def closed(model):
    """Returns when the loader's thread has closed the model."""
    await model.close_gate.wait_for_arrivals(1)
    await settle()


# -- the start and the end ---------------------------------------------------------------------------------------------


async def test_preload_loads_what_is_named_and_the_defaults(cache_rig):
    toml = '[defaults]\ntext = "b"\n' + "\n".join(f'[models.{key}]\nadapter = "fake"' for key in "abc")
    rig = cache_rig(toml=toml, preload="c,defaults,b")
    async with rig.cache:
        await rig.cache.preload()
        assert rig.adapter.loads == ["c", "b"]


async def test_preload_raises_what_is_wrong(cache_rig):
    rig = cache_rig(preload="a,x")
    rig.adapter.fail = lambda _: ModelUnavailableError("no such weights")
    async with rig.cache:
        with pytest.raises(ModelUnavailableError, match="no such weights"):
            await rig.cache.preload()
        rig.adapter.fail = lambda _: None
        await rig.clock.advance(60)
        with pytest.raises(UnknownModelError):
            await rig.cache.preload()


async def test_a_fresh_model_is_warmed_up_by_one_batch(cache_rig):
    rig = cache_rig(warm_up=True)
    async with rig.cache:
        model = await rig.use("a")
        assert [len(batch) for batch in model.batches] == [1]


async def test_a_model_that_cannot_compute_is_closed_and_unavailable(cache_rig):
    rig = cache_rig(warm_up=True)
    made = []

    class Broken(FakeModel):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.fail = lambda _: RuntimeError("no kernel image")
            made.append(self)

    rig.adapter.make = Broken
    async with rig.cache:
        with pytest.raises(ModelUnavailableError, match="RuntimeError: no kernel image"):
            await rig.use("a")
    assert [model.closes for model in made] == [1]


async def test_leaving_closes_every_model_once_also_after_one_that_does_not_close_quietly(cache_rig):
    rig = cache_rig()
    async with rig.cache:
        for key in "abc":
            await rig.use(key)
        rig.adapter.models[0].close = lambda: 1 / 0
    assert [model.closes for model in rig.adapter.models[1:]] == [1, 1]
    assert rig.loaded == []


async def test_after_leaving_there_are_no_models(cache_rig):
    rig = cache_rig()
    async with rig.cache:
        await rig.use("a")
    with pytest.raises(ShuttingDownError):
        await rig.use("a")


async def test_leaving_waits_for_a_load_and_closes_what_comes_of_it(cache_rig):
    """Native code under which the interpreter ends may crash the process."""
    rig = cache_rig()
    rig.adapter.gate.hold()
    async with rig.cache:
        waiter = asyncio.create_task(rig.use("a"))
        await rig.adapter.gate.wait_for_arrivals(1)
        leaving = asyncio.create_task(rig.cache.__aexit__(None, None, None))
        with pytest.raises(ShuttingDownError):
            await waiter
        assert not leaving.done()
        rig.adapter.gate.release()
        await leaving
        assert ([model.closes for model in rig.adapter.models], rig.loaded) == ([1], [])


async def test_leaving_does_not_wait_for_a_stuck_load_for_ever_and_closes_what_comes_of_it(cache_rig):
    rig = cache_rig(close_timeout_s=0)
    rig.adapter.gate.hold()
    async with rig.cache:
        waiter = asyncio.create_task(rig.use("a"))
        await rig.adapter.gate.wait_for_arrivals(1)
    with pytest.raises(ShuttingDownError):
        await waiter
    model = FakeModel()
    rig.adapter.make = lambda **_: model
    rig.adapter.gate.release()
    await closed(model)
    assert (model.closes, rig.loaded) == (1, [])


async def test_the_figures_tell_what_became_of_each_model(cache_rig):
    rig = cache_rig(model_failure_s=30)
    async with rig.cache:
        rig.adapter.fail = lambda spec: OSError("gone") if spec.key == "b" else None
        async with rig.leased("a", "text"):
            with pytest.raises(ModelUnavailableError):
                await rig.use("b")
            await rig.clock.advance(2)
            a, b, c = rig.cache.statistics()
            assert (a.state, a.device, a.nbytes, a.in_use, a.loads, a.last_used_s) == ("ready", "cpu", 1000, 1, 1, 2.0)
            assert (b.state, b.nbytes, b.loads, b.error) == (
                "failed",
                0,
                0,
                "the model 'b' cannot be loaded: OSError: gone",
            )
            assert (c.state, c.last_used_s, c.error) == ("unloaded", None, None)
        rig.adapter.gate.hold()
        loading = asyncio.create_task(rig.use("c"))
        await rig.adapter.gate.wait_for_arrivals(3)
        assert rig.state("c").state == "loading"
        assert repr(rig.cache) == "<ModelCache 3 declared, loaded: a>"
        rig.adapter.gate.release()
        await loading
        assert rig.metrics.snapshot()["models_loaded"] == 2
    assert rig.metrics.snapshot()["models_loaded"] == 0

"""What the cache knows of a model, and which one goes."""

import asyncio

from legit_embedding.errors import ModelUnavailableError
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.models.slots import Slot, least_recently_used, resident_nbytes, unused_for
from legit_embedding.testing.model import FakeModel


def slot(key, *, loaded=True, **fields):
    model = FakeModel(name=key) if loaded else None
    return Slot(ModelSpec(key=key, adapter="fake"), model=model, **{"device": "cpu", "nbytes": 10, **fields})


def test_a_slot_is_idle_when_it_is_loaded_and_nobody_uses_it_or_is_about_to():
    assert slot("a").idle
    assert not slot("a", loaded=False).idle
    assert not slot("a", in_use=1).idle
    assert not slot("a", wanted=1).idle


def test_only_loaded_models_of_the_device_take_its_memory():
    slots = [slot("a"), slot("b"), slot("c", loaded=False), slot("d", device="cuda:0")]
    assert (resident_nbytes(slots, "cpu"), resident_nbytes(slots, "cuda:0")) == (20, 10)


def test_the_model_unused_for_the_longest_goes():
    slots = [slot("a", last_used_s=3.0), slot("b", last_used_s=1.0), slot("c", last_used_s=2.0)]
    assert least_recently_used(slots, "cpu").spec.key == "b"


def test_a_model_in_use_does_not_go_nor_one_of_another_device():
    slots = [slot("a", last_used_s=1.0, in_use=1), slot("b", last_used_s=2.0, device="cuda:0")]
    assert least_recently_used(slots, "cpu") is None


def test_what_is_not_idle_is_not_unused():
    assert unused_for(slot("a", last_used_s=1.0), 5.0) == 4.0
    assert unused_for(slot("a", last_used_s=1.0, in_use=1), 5.0) == 0.0
    assert unused_for(slot("a", loaded=False, last_used_s=1.0), 5.0) == 0.0


def test_a_failed_model_is_described_by_its_error_and_a_loaded_one_never_is():
    error = ModelUnavailableError("no such weights")
    failed = slot("a", loaded=False, error=error).describe(0.0)
    assert (failed.state, failed.nbytes, failed.error) == ("failed", 0, "no such weights")
    ready = slot("a", error=error, last_used_s=1.0).describe(3.26)
    assert (ready.state, ready.nbytes, ready.error, ready.last_used_s) == ("ready", 10, None, 2.3)


def test_what_is_neither_loaded_nor_failed_is_told_by_what_is_under_way():
    async def states():
        task = asyncio.current_task()
        places = [slot("a", loaded=False, **fields) for fields in ({}, {"loading": task}, {"unloading": task})]
        return [place.describe(0.0) for place in places]

    described = asyncio.run(states())
    assert [state.state for state in described] == ["unloaded", "loading", "unloading"]
    assert [state.nbytes for state in described] == [0, 0, 10]


def test_who_waits_for_a_model_counts_as_its_user():
    described = slot("a", in_use=2, wanted=1, held=4).describe(0.0)
    assert (described.in_use, described.batches) == (3, 4)


def test_what_leaves_is_closed_once():
    model = FakeModel(name="a")
    place = slot("a", loaded=False, leaving=model)
    place.close_leaving()
    place.close_leaving()
    assert model.closes == 1

"""A task from its arguments to its confirmed entries: one outcome for each item, whatever happens."""

import asyncio
import json

import numpy as np
import pytest

from legit_embedding.errors import (
    ConfigurationError,
    DeviceOutOfMemoryError,
    ModelUnavailableError,
    ShuttingDownError,
)
from legit_embedding.ledger import SLICE_ENTRIES
from legit_embedding.testing.clock import settle, until
from legit_embedding.testing.publisher import MemoryPublisher
from legit_embedding.values import BatchLimits, Options
from tests.unit.envelopes import errors_of, image_item, texts


def assert_vector(entry, model, payload, options=None):
    assert entry.status == "ok", entry.error
    np.testing.assert_array_equal(entry.embedding, model.vector(payload, options))


# -- the way through ---------------------------------------------------------------------------------------------------


async def test_texts_become_entries_with_everything_that_their_reader_needs(make_rig):
    async with make_rig() as rig:
        summary = await rig.run(
            {
                "items": [{"id": "first", "text": "one"}, "two words"],
                "reply_to": "replies",
                "batch_id": "batch",
                "source": "shop",
                "metadata": {"lang": "de"},
            },
            task_id="t1",
            attempt=2,
        )
        first, second = rig.entries("replies").values()
    assert_vector(first, rig.text, "one")
    assert_vector(second, rig.text, "two words")
    assert (first.task_id, first.batch_id, first.item_id, first.count, first.attempt) == ("t1", "batch", "first", 2, 2)
    assert (first.source, first.modality, first.model, first.dtype, first.dim) == ("shop", "text", "text", "float32", 8)
    assert (first.metadata, first.worker, first.at_ms) == ({"lang": "de"}, "worker@test", 1_800_000_000_000)
    assert first.fingerprint == second.fingerprint == rig.text.fingerprint(Options())
    assert (summary.batch_id, summary.stream, summary.count, summary.ok, summary.errors) == (
        "batch",
        "replies",
        2,
        2,
        0,
    )
    assert (summary.first_entry, summary.last_entry) == ("1-0", "2-0")


async def test_images_come_inline_from_files_and_from_shared_memory(make_rig, tmp_path):
    file, shm = tmp_path / "picture.jpg", tmp_path / "tensor"
    file.write_bytes(b"from a file")
    tensor = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    shm.write_bytes(tensor.tobytes())
    items = [
        image_item(b"inline"),
        {"path": str(file)},
        {"shm": {"path": str(shm), "dtype": "float32", "shape": [3, 2, 2]}},
    ]
    async with make_rig(allowed_roots=str(tmp_path), shm_root=tmp_path) as rig:
        summary = await rig.run({"items": items}, kind="images")
        entries = rig.entries()
    assert summary.ok == 3
    for index, payload in enumerate([b"inline", b"from a file", tensor]):
        assert_vector(entries[index], rig.image, payload)


async def test_options_shape_the_vectors_and_their_fingerprint(make_rig):
    options = Options(dimensions=3, normalize=False, prompt="query")
    async with make_rig() as rig:
        await rig.run({"texts": ["one"], "options": {"dimensions": 3, "normalize": False, "prompt": "query"}})
        (entry,) = rig.entries().values()
    assert_vector(entry, rig.text, "one", options)
    assert (entry.dim, entry.fingerprint) == (3, rig.text.fingerprint(options))


async def test_a_task_may_name_its_model(make_rig):
    async with make_rig(image={"accepts": ["text", "bytes"]}) as rig:
        await rig.run({"texts": ["one"], "model": "image"})
        (entry,) = rig.entries().values()
    assert (entry.model, entry.modality) == ("image", "image")


async def test_items_of_many_tasks_share_batches(make_rig):
    async with make_rig() as rig:
        rig.text.gate.hold()
        first = rig.start({"texts": ["zero"]})
        await rig.text.gate.wait_for_arrivals(1)
        others = [rig.start({"texts": [f"text {number}"]}) for number in range(8)]
        await rig.until_queued(8)
        rig.text.gate.release()
        await asyncio.gather(first, *others)
    assert [len(batch) for batch in rig.text.batches] == [1, 8]


# -- one bad item ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "error_type"),
    [
        (7, "invalid_item"),
        ({"text": "a", "data": "b"}, "invalid_item"),
        ({"data": "&&&"}, "invalid_item"),
        ({"path": "/etc/hostname"}, "source_not_allowed"),
        ({"url": "http://localhost/picture"}, "source_not_allowed"),
        ({"path": "{root}/missing.jpg"}, "source_not_found"),
        ({"path": "{root}/large.jpg"}, "source_too_large"),
        ({"shm": {"path": "{root}/large.jpg", "dtype": "float32", "shape": [3, 1, 1]}}, "source_not_allowed"),
        (image_item(b"broken"), "undecodable"),
        (image_item(b"nan"), "invalid_vector"),
        (image_item(b"huge"), "out_of_memory"),
        (image_item(b"bug"), "internal"),
    ],
)
async def test_a_bad_item_gets_its_error_and_its_neighbours_their_vectors(make_rig, tmp_path, bad, error_type):
    (tmp_path / "large.jpg").write_bytes(bytes(2000))
    if isinstance(bad, dict) and "path" in bad:
        bad = {"path": bad["path"].replace("{root}", str(tmp_path))}

    def fail(keys):
        if "huge" in keys:
            return DeviceOutOfMemoryError("too much for this device")
        return ZeroDivisionError("a bug") if "bug" in keys else None

    model = {"undecodable": ["broken"], "broken": ["nan"], "prepare_chunk": 3}
    async with make_rig(image=model, allowed_roots=str(tmp_path), max_source_bytes=1000) as rig:
        rig.image.fail = fail
        summary = await rig.run({"items": [image_item(b"one"), bad, image_item(b"two")]}, kind="images")
        entries = rig.entries()
    assert errors_of(entries) == {1: error_type}
    assert entries[1].error
    assert_vector(entries[0], rig.image, b"one")
    assert_vector(entries[2], rig.image, b"two")
    assert (summary.count, summary.ok, summary.errors) == (3, 2, 1)


async def test_an_item_that_its_model_does_not_take_is_told_which_model_that_is(make_rig):
    async with make_rig() as rig:
        await rig.run({"items": [image_item()], "model": "text"}, kind="images")
        (entry,) = rig.entries().values()
    assert entry.error_type == "invalid_item"
    assert entry.error == "items[0]: the model 'text' (text) takes no bytes input; name another one in `model`"


async def test_more_dimensions_than_the_model_has_are_the_items_error(make_rig):
    async with make_rig() as rig:
        await rig.run({"texts": ["one"], "options": {"dimensions": 9}})
        assert errors_of(rig.entries()) == {0: "invalid_item"}


async def test_a_text_that_is_too_long_is_told_so_where_it_must_not_be_cut(make_rig):
    async with make_rig(text={"max_tokens_an_item": 2}) as rig:
        await rig.run({"texts": ["a b c", "a b"], "options": {"truncate": False}})
        assert errors_of(rig.entries()) == {0: "source_too_large"}


async def test_a_task_of_nothing_but_bad_items_needs_no_model(make_rig):
    async with make_rig() as rig:
        summary = await rig.run({"items": [1, None]})
        assert errors_of(rig.entries()) == {0: "invalid_item", 1: "invalid_item"}
    assert (summary.errors, rig.adapter.loads) == (2, [])


# -- the whole task ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("envelope", ["no object", ["neither"], {}, {"items": []}, {"texts": "no list"}])
async def test_an_envelope_that_cannot_be_understood_gets_one_entry(make_rig, envelope):
    async with make_rig() as rig:
        summary = await rig.run(envelope, task_id="t1")
        (entry,) = rig.entries().values()
    assert (entry.status, entry.error_type, entry.index, entry.count) == ("error", "invalid_envelope", -1, 0)
    assert (entry.task_id, summary.ok, summary.errors) == ("t1", 0, 1)


async def test_the_refusal_goes_where_the_envelope_asked_if_that_much_can_be_read(make_rig):
    async with make_rig() as rig:
        await rig.run({"items": 7, "reply_to": "replies"})
        assert rig.written("replies") == 1


async def test_a_task_that_expired_before_its_turn_is_not_computed(make_rig):
    async with make_rig() as rig:
        await rig.run({"texts": texts(2)}, expires_at_s=rig.clock.time() - 1)
        assert errors_of(rig.entries()) == {0: "expired", 1: "expired"}
    assert rig.adapter.loads == []


async def test_a_task_that_was_delivered_too_often_is_given_up_and_kept(make_rig):
    async with make_rig(max_deliveries=3) as rig:
        envelope = {"texts": texts(2)}
        summary = await rig.run(envelope, task_id="t1", attempt=4)
        assert errors_of(rig.entries()) == {0: "given_up", 1: "given_up"}
        (letter,) = rig.publisher.streams["embeddings:dead"]
    assert (summary.ok, summary.errors) == (0, 2)
    assert (letter["task_id"], letter["kind"], letter["attempt"]) == ("t1", "texts", "4")
    assert (json.loads(letter["args"]), json.loads(letter["kwargs"])) == ([envelope], {})
    assert rig.adapter.loads == []


@pytest.mark.parametrize("most", [3, 0, None])
async def test_a_task_is_not_given_up_before(make_rig, most):
    async with make_rig(max_deliveries=most) as rig:
        summary = await rig.run({"texts": texts(1)}, attempt=3 if most else 1000)
        assert (summary.ok, rig.publisher.streams["embeddings:dead"]) == (1, [])


async def test_a_task_that_expires_while_it_waits_for_its_batch_is_not_computed(make_rig):
    async with make_rig() as rig:
        rig.text.gate.hold()
        first = rig.start({"texts": ["first"]})
        await rig.text.gate.wait_for_arrivals(1)
        late = rig.start({"texts": ["late"], "reply_to": "late"}, expires_at_s=rig.clock.time() + 5)
        await rig.until_queued(1)
        await rig.clock.advance(6)
        rig.text.gate.release()
        assert (await first).ok == 1
        assert (await late).errors == 1
        assert errors_of(rig.entries("late")) == {0: "expired"}
    assert rig.text.batches == [["first"]]


async def test_the_wait_for_a_model_counts_towards_the_expiry(make_rig):
    async with make_rig() as rig:
        rig.adapter.gate.hold()
        late = rig.start({"texts": ["late"]}, expires_at_s=rig.clock.time() + 5)
        await rig.adapter.gate.wait_for_arrivals(1)
        await rig.clock.advance(6)
        rig.adapter.gate.release()
        assert (await late).errors == 1
        assert errors_of(rig.entries()) == {0: "expired"}
    assert rig.text.batches == []


async def test_a_model_that_is_not_declared_is_the_error_of_every_item(make_rig):
    async with make_rig() as rig:
        await rig.run({"texts": texts(2), "model": "gpt"})
        entries = rig.entries()
    assert errors_of(entries) == {0: "unknown_model", 1: "unknown_model"}
    assert entries[0].model == "gpt"
    assert items_counted(rig) == {("none", "unknown_model"): 2}


async def test_a_model_that_is_unavailable_for_a_while_delays_its_task(make_rig):
    async with make_rig() as rig:
        rig.adapter.fail = lambda _: ModelUnavailableError("no such host") if len(rig.adapter.loads) < 2 else None
        task = rig.start({"texts": ["one"]})
        await until(lambda: rig.clock.sleeping)
        await rig.clock.advance(30)
        assert (await task).ok == 1
    assert rig.adapter.loads == ["text"] * 2


async def test_a_task_waits_for_its_model_no_longer_than_a_failure_is_remembered(make_rig):
    """It holds a place that a task of another model could use."""
    async with make_rig(retries=9) as rig:
        rig.adapter.fail = lambda _: ModelUnavailableError("no such host")
        task = rig.start({"texts": texts(1)})
        await until(lambda: rig.clock.sleeping)
        await rig.clock.advance(30)
        assert (await task).errors == 1
    assert rig.adapter.loads == ["text"] * 2


async def test_a_model_whose_entry_is_wrong_delays_no_task_and_is_not_tried_again(make_rig):
    async with make_rig() as rig:
        rig.adapter.fail = lambda _: ConfigurationError("models.text.name is missing")
        for _ in range(2):
            assert (await rig.run({"texts": texts(1)})).errors == 1
            await rig.clock.advance(600)
        entries = rig.entries()
    assert errors_of(entries) == {0: "model_unavailable"}
    assert "models.text.name is missing" in entries[0].error
    assert rig.adapter.loads == ["text"]


async def test_a_model_that_stays_unavailable_is_the_error_of_every_item(make_rig):
    async with make_rig(retries=1) as rig:
        rig.adapter.fail = lambda _: ModelUnavailableError("no such host")
        task = rig.start({"texts": texts(2)})
        await until(lambda: rig.clock.sleeping)
        await rig.clock.advance(30)
        assert (await task).errors == 2
        entries = rig.entries()
    assert errors_of(entries) == {0: "model_unavailable", 1: "model_unavailable"}
    assert (entries[0].error, entries[0].model) == ("no such host", "text")
    assert items_counted(rig) == {("text", "model_unavailable"): 2}
    assert rig.adapter.loads == ["text"] * 2


def items_counted(rig):
    """How many items have been counted, by the labels `model` and `outcome`."""
    samples = [sample for metric in rig.metrics.registry.collect() for sample in metric.samples]
    return {
        (sample.labels["model"], sample.labels["outcome"]): sample.value
        for sample in samples
        if sample.name == "legit_items_total"
    }


async def test_the_errors_of_a_large_task_wait_for_room_slice_by_slice(make_rig):
    publisher = MemoryPublisher(pending_results_bytes=1)
    async with make_rig(publisher=publisher) as rig:
        publisher.hold()
        task = rig.start({"items": [None] * (2 * SLICE_ENTRIES + 1)})
        await settle()
        assert rig.written() == SLICE_ENTRIES
        publisher.release(1)
        await settle()
        assert rig.written() == 2 * SLICE_ENTRIES
        publisher.release()
        assert (await task).errors == 2 * SLICE_ENTRIES + 1


async def test_a_task_whose_errors_wait_for_room_goes_back_when_the_worker_stops(make_rig):
    publisher = MemoryPublisher(pending_results_bytes=1)
    async with make_rig(publisher=publisher) as rig:
        publisher.hold()
        task = rig.start({"items": [None] * (SLICE_ENTRIES + 1)})
        await settle()
        await publisher.close()
        with pytest.raises(ShuttingDownError):
            await task


# -- the end, and bugs -------------------------------------------------------------------------------------------------


async def test_a_publisher_that_stops_sends_its_tasks_back_unconfirmed(make_rig):
    async with make_rig() as rig:
        rig.publisher.hold()
        task = rig.start({"texts": ["one"]})
        await rig.until_written(1)
        await rig.publisher.close()
        with pytest.raises(ShuttingDownError):
            await task
        assert rig.budget.statistics().used_bytes == 0


async def test_a_publisher_that_has_stopped_takes_no_task(make_rig):
    async with make_rig() as rig:
        await rig.publisher.close()
        with pytest.raises(ShuttingDownError):
            await rig.run({"texts": ["one"]})
    assert rig.text.batches == []


async def test_a_batcher_that_stops_sends_its_tasks_back_also_those_that_wait_for_their_window(make_rig):
    async with make_rig(task_window=2, text={"limits": BatchLimits(1)}) as rig:
        rig.text.gate.hold()
        task = rig.start({"texts": texts(9)})
        await rig.text.gate.wait_for_arrivals(1)
        await rig.until_queued(1)
        closing = asyncio.create_task(rig.batcher.__aexit__(None, None, None))
        with pytest.raises(ShuttingDownError):
            await task
        rig.text.gate.release()
        await closing
        assert rig.budget.statistics().used_bytes == 0


async def test_a_batcher_that_stops_sends_its_tasks_back_also_those_that_wait_for_bytes(make_rig):
    async with make_rig(budget_bytes=1, text={"limits": BatchLimits(1)}) as rig:
        rig.text.gate.hold()
        tasks = [rig.start({"texts": texts(3)}) for _ in range(3)]
        await rig.text.gate.wait_for_arrivals(1)
        closing = asyncio.create_task(rig.batcher.__aexit__(None, None, None))
        await settle()
        rig.text.gate.release()
        await closing
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {ShuttingDownError}
        assert rig.budget.statistics().used_bytes == 0


async def test_a_cancelled_task_gives_everything_back(make_rig):
    async with make_rig(text={"limits": BatchLimits(1)}) as rig:
        rig.text.gate.hold()
        task = rig.start({"texts": texts(5)})
        await rig.text.gate.wait_for_arrivals(1)
        await rig.until_queued(4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert rig.budget.statistics().used_bytes == 0
        assert rig.cache.statistics()[1].in_use == 0
        rig.text.gate.release()
        assert (await rig.run({"texts": ["next"]})).ok == 1
    assert rig.text.batches == [["text 0"], ["next"]]


async def test_a_model_stays_loaded_until_the_batch_of_a_cancelled_task_is_done(make_rig):
    async with make_rig() as rig:
        rig.text.gate.hold()
        task = rig.start({"texts": texts(1)})
        await rig.text.gate.wait_for_arrivals(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ModelUnavailableError, match="1 batches"):
            await rig.cache.unload("text")
        rig.text.gate.release()
        assert (await rig.run({"texts": ["next"]})).ok == 1
        await settle()  # the batch's own end comes a turn of the loop after its outcomes
        await rig.cache.unload("text")
        assert rig.text.closes == 1


@pytest.mark.parametrize("stage", ["read", "reserve_bytes"])
async def test_a_bug_around_the_sources_is_internal_and_reported_by_its_cause(make_rig, monkeypatch, stage):
    async with make_rig() as rig:

        def fail(_):
            raise ZeroDivisionError

        monkeypatch.setattr(rig.sources, stage, fail)
        summary = await rig.run({"texts": texts(3)})
        assert errors_of(rig.entries()) == dict.fromkeys(range(3), "internal")
        assert rig.budget.statistics().used_bytes == 0
    assert summary.errors == 3
    assert set(rig.reporter.causes) == {"internal:ZeroDivisionError"}


async def test_a_bug_in_reading_one_item_costs_its_neighbours_nothing(make_rig, monkeypatch):
    async with make_rig(text={"prepare_chunk": 3}) as rig:
        read = rig.sources.read

        async def fail(source):
            if source.text == "text 1":
                raise ZeroDivisionError
            return await read(source)

        monkeypatch.setattr(rig.sources, "read", fail)
        await rig.run({"texts": texts(3)})
        assert errors_of(rig.entries()) == {1: "internal"}


@pytest.mark.parametrize("error", [ZeroDivisionError(), StopIteration()])
async def test_a_bug_in_an_adapters_prepare_is_internal_for_its_chunk(make_rig, error):
    async with make_rig(text={"prepare_chunk": 2}) as rig:
        prepare = rig.text.prepare

        def fail(payloads, options):
            if "text 2" in payloads:
                raise error
            return prepare(payloads, options)

        rig.text.prepare = fail
        await rig.run({"texts": texts(6)})
        assert errors_of(rig.entries()) == {2: "internal", 3: "internal"}


async def test_a_bug_while_an_entry_waits_for_its_confirmation_costs_the_others_alone(make_rig, monkeypatch):
    """What has been handed to the publisher is still waited for, although its chunk was stopped."""
    async with make_rig() as rig:
        reserve, turns, fail_now = rig.budget.reserve, iter([True, False]), asyncio.Event()

        async def reserve_once(nbytes):
            if next(turns):
                return await reserve(nbytes)
            await fail_now.wait()
            raise ZeroDivisionError

        monkeypatch.setattr(rig.budget, "reserve", reserve_once)
        rig.publisher.hold()
        task = rig.start({"texts": texts(3)})
        await rig.until_written(1)
        fail_now.set()
        await rig.until_written(3)
        assert not task.done()
        rig.publisher.release()
        summary = await task
        assert errors_of(rig.entries()) == {1: "internal", 2: "internal"}
    assert (summary.ok, summary.errors) == (1, 2)


async def test_a_bug_in_writing_an_entry_leaves_no_item_without_one(make_rig):
    """A plugin's vector of a wrong shape fails where the entry is made, before anything is booked."""
    async with make_rig(text={"prepare_chunk": 3}) as rig:
        finish = rig.text.finish
        rig.text.finish = lambda raw, options: [vector[None, :] for vector in finish(raw, options)]
        await rig.run({"texts": texts(3)})
        assert errors_of(rig.entries()) == dict.fromkeys(range(3), "internal")


async def test_tasks_under_way_are_counted(make_rig):
    async with make_rig() as rig:
        rig.text.gate.hold()
        task = rig.start({"texts": ["one"]})
        await rig.text.gate.wait_for_arrivals(1)
        assert rig.metrics.snapshot()["tasks_in_flight"] == 1
        rig.text.gate.release()
        await task
        figures = rig.metrics.snapshot()
    assert (figures["tasks_in_flight"], figures["items_ok"], figures["items_error"]) == (0, 1, 0)


async def test_preparing_a_search_does_not_wait_behind_a_bulk_tasks_items(make_rig):
    async with make_rig(prepare_threads=1) as rig:
        rig.text.prepare_gate.hold()
        bulk = rig.start({"texts": texts(50), "reply_to": "bulk"})
        await rig.text.prepare_gate.wait_for_arrivals(1)
        search = rig.start({"texts": ["search"]})
        await settle()
        rig.text.prepare_gate.release(4)
        assert (await search).ok == 1
        assert not bulk.done()
        rig.text.prepare_gate.release()
        assert (await bulk).ok == 50


async def test_a_chunk_whose_preparation_was_called_off_sends_its_task_back(make_rig):
    """Unsaid, the task would be acknowledged although some of its items have no entry."""
    async with make_rig(prepare_threads=1) as rig:
        rig.text.prepare_gate.hold()
        task = rig.start({"texts": texts(4)})
        await rig.text.prepare_gate.wait_for_arrivals(1)
        rig.executor.shutdown(wait=False, cancel_futures=True)
        rig.text.prepare_gate.release()
        with pytest.raises(ShuttingDownError):
            await task


async def test_once_it_closes_the_pipeline_takes_no_task_and_no_failure_becomes_an_entry(make_rig):
    async with make_rig(prepare_threads=1) as rig:
        rig.adapter.gate.hold()
        task = rig.start({"texts": texts(2)})
        await rig.adapter.gate.wait_for_arrivals(1)
        rig.pipeline.close()
        rig.executor.shutdown()
        rig.adapter.gate.release()
        with pytest.raises(ShuttingDownError):
            await task
        with pytest.raises(ShuttingDownError):
            await rig.run({"texts": texts(2)})
    assert (rig.written(), rig.reporter.causes) == (0, [])

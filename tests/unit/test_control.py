"""Remote control: what an operator is told, and that nobody waits for a model to tell it."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from celery.worker.control import Panel

from legit_embedding import control, runtime
from legit_embedding.errors import ModelUnavailableError
from legit_embedding.publish.errors import ResultServerError
from legit_embedding.testing.clock import until


@pytest.fixture
def reign(monkeypatch):
    """Makes a rig's models those of the worker, as the commands find them."""

    def crown(rig):
        switch = SimpleNamespace(value="on")
        worker = SimpleNamespace(loop=asyncio.get_running_loop(), models=rig.cache, switch=switch)
        monkeypatch.setattr(runtime, "_current", worker)
        return rig

    return crown


async def command(name, *arguments):
    """The reply to a command, asked for on another thread than the loop's; it can be sent."""
    names = [argument for argument, _ in Panel.meta[name].args or ()]
    reply = await asyncio.to_thread(Panel.data[name], None, **dict(zip(names, arguments, strict=False)))
    return json.loads(json.dumps(reply))


# -- load --------------------------------------------------------------------------------------------------------------


async def test_load_answers_while_the_model_is_being_loaded(make_rig, reign):
    async with make_rig() as rig:
        reign(rig).adapter.gate.hold()
        assert await command("load", "text") == {
            "ok": "the model 'text' is being loaded; `inspect models` shows when it is ready, or why it is not"
        }
        assert await command("load", "text") == {"ok": "the model 'text' is being loaded already"}
        rig.adapter.gate.release()
        await rig.cache.load("text")
        assert await command("load", "text") == {"ok": "the model 'text' is loaded already: 0.0 MB on cpu"}


async def test_load_tries_again_what_failed_and_says_why_it_did(make_rig, reign):
    async with make_rig() as rig:
        reign(rig).adapter.fail = lambda _: ModelUnavailableError("no such weights")
        await command("load", "text")
        await until(lambda: rig.cache.statistics()[1].state == "failed")
        rig.adapter.fail = lambda _: None
        reply = await command("load", "text")
        assert reply == {"ok": "the model 'text' is being loaded again; its last load failed: no such weights"}
        await rig.cache.load("text")


# -- unload ------------------------------------------------------------------------------------------------------------


async def test_unload_answers_while_the_model_is_being_closed(make_rig, reign):
    async with make_rig() as rig:
        await reign(rig).cache.load("text")
        rig.text.close_gate.hold()
        assert await command("unload", "text") == {
            "ok": "the model 'text' is being unloaded (0.0 MB on cpu); the next task that names it loads it again"
        }
        assert await command("unload", "text") == {"ok": "the model 'text' is being unloaded already"}
        rig.text.close_gate.release()
        await rig.cache.unload("text")
        assert await command("unload", "text") == {"ok": "the model 'text' is not loaded"}
        assert rig.text.closes == 1


async def test_unload_refuses_while_items_are_queued_or_computed_and_says_what_to_do(make_rig, reign):
    async with make_rig() as rig:
        reign(rig).text.gate.hold()
        task = rig.start({"texts": ["a"]})
        await rig.text.gate.wait_for_arrivals(1)
        refusal = "the model 'text' is in use by 1 tasks and 1 batches, and stays loaded: unload it when they are done"
        assert await command("unload", "text") == {"error": refusal}
        rig.text.gate.release()
        await task
        assert "ok" in await command("unload", "text")
        await until(lambda: rig.text.closes == 1)


async def test_unload_refuses_during_a_load(make_rig, reign):
    async with make_rig() as rig:
        reign(rig).adapter.gate.hold()
        await command("load", "text")
        assert await command("unload", "text") == {
            "error": "the model 'text' is being loaded: unload it when it is ready"
        }
        rig.adapter.gate.release()
        await rig.cache.load("text")


# -- models ------------------------------------------------------------------------------------------------------------


async def test_models_tells_state_device_memory_last_use_and_error_of_each(make_rig, reign):
    async with make_rig() as rig:
        reign(rig).adapter.fail = lambda spec: OSError("gone") if spec.key == "image" else None
        await rig.run({"texts": ["a"]})
        await command("load", "image")
        await until(lambda: rig.cache.statistics()[0].state == "failed")
        await rig.clock.advance(7)
        reply = await command("models")
    told = dict.fromkeys(("in_use", "batches"), 0)
    assert reply == {
        "reply_to_routing": "on",
        "models": [
            {"key": "image", "state": "failed", "device": None, "nbytes": 0, "loads": 0, "last_used_s": None, **told}
            | {"error": "the model 'image' cannot be loaded: OSError: gone"},
            {"key": "text", "state": "ready", "device": "cpu", "nbytes": 1000, "loads": 1, "last_used_s": 7.0, **told}
            | {"error": None},
        ],
    }


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["load", "unload"])
@pytest.mark.parametrize("arguments", [("gpt",), ()])
async def test_an_unknown_model_or_none_is_an_error_that_lists_those_there_are(make_rig, reign, name, arguments):
    async with make_rig() as rig:
        reign(rig)
        reply = await command(name, *arguments)
    told = "".join(arguments)
    assert reply == {"error": f"the model {told!r} is not declared in models.toml; declared are: image, text"}


@pytest.mark.parametrize("name", ["load", "unload"])
async def test_a_worker_that_stops_says_so(make_rig, reign, name):
    async with make_rig() as rig:
        reign(rig)
    assert await command(name, "text") == {"error": "no model is loaded any more: the worker is stopping"}


@pytest.mark.parametrize(
    ("name", "arguments"), [("load", ["text"]), ("unload", ["text"]), ("models", []), ("reply_to_routing", ["on"])]
)
async def test_without_a_runtime_every_command_says_that_there_is_none(monkeypatch, name, arguments):
    monkeypatch.setattr(runtime, "_current", None)
    assert await command(name, *arguments) == {
        "error": "this worker has no models now: it is starting or stopping, or was started without `-P legit_async`"
    }


def test_a_loop_that_has_ended_is_told_and_leaves_no_coroutine_behind(monkeypatch):
    loop = asyncio.new_event_loop()
    loop.close()
    monkeypatch.setattr(runtime, "_current", SimpleNamespace(loop=loop, models=None))
    assert control.load(None, "a") == {"error": "the worker's loop has ended; the worker is stopping"}


def test_a_loop_that_does_not_answer_is_not_waited_for_for_long(monkeypatch):
    monkeypatch.setattr(control, "TIMEOUT_S", 0.01)
    loop = asyncio.new_event_loop()  # nobody runs it
    started = []
    models = SimpleNamespace(start_load=started.append)
    monkeypatch.setattr(runtime, "_current", SimpleNamespace(loop=loop, models=models))
    try:
        reply = control.load(None, "a")
        assert reply == {"error": "the worker's loop did not answer within 0.01 s; it may do it later all the same"}
        assert started == []
    finally:
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@pytest.mark.parametrize(
    ("error", "reason"), [(TimeoutError(), "no answer within 5 s"), (ResultServerError("refused"), "refused")]
)
def test_a_switch_without_an_answer_is_not_called_unchanged(monkeypatch, error, reason):
    def fail(*_):
        raise error

    worker = SimpleNamespace(switch=SimpleNamespace(set=lambda _: None), loop=None)
    monkeypatch.setattr(runtime, "current", lambda: worker)
    monkeypatch.setattr(control, "_on_loop", fail)
    assert control.reply_to_routing(None, "off") == {
        "error": f"reply_to_routing off is not confirmed by the result server: {reason}"
    }

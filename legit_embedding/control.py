"""Remote-control commands of our own: `celery -A legit_embedding control load NAME`, `inspect models` and the like.

Each worker that a command reaches answers for itself. The consumer thread runs them, so none waits for a model.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from celery.worker.control import control_command, inspect_command

from legit_embedding import runtime
from legit_embedding.errors import LegitError, ShuttingDownError, WrongPoolError
from legit_embedding.models.cache import ModelCache
from legit_embedding.models.slots import ModelState
from legit_embedding.publish.switch import Value

TIMEOUT_S = 5.0
"""A command is answered within this time: the consumer thread waits for it."""

Reply = dict[str, Any]
T = TypeVar("T")

_ROUTING: Mapping[str, Value] = {"on": "on", "off": "off"}


def _running() -> runtime.Runtime:
    try:
        return runtime.current()
    except WrongPoolError as error:
        raise WrongPoolError(
            "this worker has no models now: it is starting or stopping, or was started without `-P legit_async`"
        ) from error


def _on_loop(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    try:
        future = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError as error:  # the loop is closed
        work.close()
        raise ShuttingDownError("the worker's loop has ended; the worker is stopping") from error
    return future.result(TIMEOUT_S)


@control_command(args=[("value", str)], signature="on|off")
def reply_to_routing(_state: object, value: str = "", **_: object) -> Reply:
    """Turn routing to `reply_to` streams on or off, for all workers, restarts included."""
    wanted = _ROUTING.get(value)
    if wanted is None:
        return {"error": f"reply_to_routing takes on or off, not {value!r}"}
    try:
        worker = _running()
    except LegitError as error:
        return {"error": str(error)}
    try:
        _on_loop(worker.switch.set(wanted), worker.loop)
    except (LegitError, OSError, TimeoutError) as error:
        # After a time-out it may have been set all the same.
        reason = str(error) or f"no answer within {TIMEOUT_S:g} s"
        return {"error": f"reply_to_routing {wanted} is not confirmed by the result server: {reason}"}
    return {"ok": f"reply_to_routing {worker.switch.value}"}


@inspect_command()
def models(_state: object, **_: object) -> Reply:
    """The models of this worker: state, device, memory, last use, error."""
    try:
        worker = _running()
    except LegitError as error:
        return {"error": str(error)}
    # Not by way of the loop: also where that is stuck, an operator must see this.
    return {
        "reply_to_routing": worker.switch.value,
        "models": [asdict(model) for model in worker.models.statistics()],
    }


@control_command(args=[("name", str)], signature="NAME")
def load(_state: object, name: str = "", **_: object) -> Reply:
    """Begin to load a model, also where its last load failed; `inspect models` shows how it ends."""
    return _change(lambda models: models.start_load(name), _loading)


@control_command(args=[("name", str)], signature="NAME")
def unload(_state: object, name: str = "", **_: object) -> Reply:
    """Unload a model that is not in use; the next task that names it loads it again."""
    return _change(lambda models: models.start_unload(name), _unloading)


def _change(start: Callable[[ModelCache], ModelState], describe: Callable[[ModelState], str]) -> Reply:
    """`start` on the loop, where models change; `describe` tells what it did, by the state that it found."""

    async def begin(models: ModelCache) -> ModelState:
        return start(models)

    try:
        worker = _running()
        return {"ok": describe(_on_loop(begin(worker.models), worker.loop))}
    except LegitError as error:
        return {"error": str(error)}
    except TimeoutError:
        return {"error": f"the worker's loop did not answer within {TIMEOUT_S:g} s; it may do it later all the same"}


def _loading(before: ModelState) -> str:
    model = f"the model {before.key!r}"
    match before.state:
        case "ready":
            return f"{model} is loaded already: {_size(before)}"
        case "loading":
            return f"{model} is being loaded already"
        case "failed":
            return f"{model} is being loaded again; its last load failed: {before.error}"
        case _:
            return f"{model} is being loaded; `inspect models` shows when it is ready, or why it is not"


def _unloading(before: ModelState) -> str:
    model = f"the model {before.key!r}"
    match before.state:
        case "ready":
            return f"{model} is being unloaded ({_size(before)}); the next task that names it loads it again"
        case "unloading":
            return f"{model} is being unloaded already"
        case _:
            return f"{model} is not loaded"


def _size(model: ModelState) -> str:
    return f"{model.nbytes / 1e6:,.1f} MB on {model.device}"

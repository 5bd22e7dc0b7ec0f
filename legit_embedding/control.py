"""Remote-control commands of our own: `celery -A legit_embedding control reply_to_routing off`, `inspect models`."""

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from celery.worker.control import control_command, inspect_command

from legit_embedding import runtime
from legit_embedding.errors import LegitError
from legit_embedding.publish.switch import Value

TIMEOUT_S = 5.0
"""A command is answered within this time: the consumer thread waits for it."""

T = TypeVar("T")

_ROUTING: Mapping[str, Value] = {"on": "on", "off": "off"}


def _on_loop(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    return asyncio.run_coroutine_threadsafe(work, loop).result(TIMEOUT_S)


@control_command(args=[("value", str)], signature="on|off")
def reply_to_routing(_state: object, value: str = "", **_: object) -> dict[str, str]:
    """Turn routing to `reply_to` streams on or off, for all workers, restarts included."""
    wanted = _ROUTING.get(value)
    if wanted is None:
        return {"error": f"reply_to_routing takes on or off, not {value!r}"}
    try:
        worker = runtime.current()
        _on_loop(worker.switch.set(wanted), worker.loop)
    except (LegitError, OSError, TimeoutError) as error:
        # After a time-out it may have been set all the same.
        reason = str(error) or f"no answer within {TIMEOUT_S:g} s"
        return {"error": f"reply_to_routing {wanted} is not confirmed by the result server: {reason}"}
    return {"ok": f"reply_to_routing {worker.switch.value}"}


@inspect_command()
def models(_state: object, **_: object) -> dict[str, Any]:
    """The models of this worker: state, memory, device, last use."""
    return {
        "reply_to_routing": runtime.current().switch.value,
        "models": [asdict(model) for model in runtime.current().models.statistics()],
    }

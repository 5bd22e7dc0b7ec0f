"""A look at a `reply_to` before its first use: a queue that nobody told us of must not become a stream.

An empty queue of kombu's Redis transport has no key, so XADD would create one of the wrong type, and every consumer
and producer of that queue would fail from then on. What it does have is its set of bindings, `_kombu.binding.<name>`.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from legit_embedding.clock import Clock
from legit_embedding.publish.hold import Hold
from legit_embedding.publish.outcomes import Refused, Scope, Trouble, classify
from legit_embedding.publish.pending import Entry
from legit_embedding.publish.wire import Command, Wire

logger = logging.getLogger(__name__)

TTL_S = 300.0
SIZE = 8192
CHECKS_AT_ONCE = 256
COMMANDS_A_NAME = 2


class Verdicts:
    """Which streams may be used, as found a while ago; bounded in number and in age."""

    def __init__(self, *, clock: Clock, ttl_s: float = TTL_S, size: int = SIZE) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._size = size
        self._known: OrderedDict[str, tuple[bool, float]] = OrderedDict()

    def get(self, stream: str) -> bool | None:
        """Whether `stream` may be used; None where that is not known, or no more."""
        found = self._known.get(stream)
        if found is None:
            return None
        usable, until_s = found
        if self._clock.monotonic() >= until_s:
            del self._known[stream]
            return None
        self._known.move_to_end(stream)
        return usable

    def put(self, stream: str, *, usable: bool) -> None:
        """Remembers a verdict; the one unused for longest goes where there are too many."""
        self._known[stream] = (usable, self._clock.monotonic() + self._ttl_s)
        self._known.move_to_end(stream)
        if len(self._known) > self._size:
            self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)


def check_commands(stream: str, *, key_prefix: str) -> list[Command]:
    """What is asked of the server for one name: `COMMANDS_A_NAME` commands."""
    bare = stream.removeprefix(key_prefix)
    name, bare_name = (text.encode("utf-8", "backslashreplace") for text in (stream, bare))
    prefix = key_prefix.encode()
    bindings = {b"_kombu.binding." + name, prefix + b"_kombu.binding." + bare_name}
    return [("TYPE", name), ("EXISTS", *sorted(bindings))]


def usable(key_type: Any, bindings: Any) -> bool:
    """Whether the server's answers allow XADD; a question it would not answer is no reason against it."""
    if isinstance(key_type, bytes) and key_type not in {b"none", b"stream"}:
        return False
    return not (isinstance(bindings, int) and bindings > 0)


class KeyGuard:
    """Holds back the entries of a new stream for one round trip; all others go their way meanwhile.

    `release(stream, entries, usable)` is called when the answer is there. `run` does the work, until it is cancelled.
    """

    def __init__(
        self,
        *,
        wire: Wire,
        hold: Hold,
        verdicts: Verdicts,
        key_prefix: str,
        release: Callable[[str, list[Entry], bool], None],
    ) -> None:
        self._wire = wire
        self._hold = hold
        self._verdicts = verdicts
        self._key_prefix = key_prefix
        self._release = release
        self._parked: dict[str, list[Entry]] = {}
        self._work = asyncio.Event()
        self._told = False

    def park(self, stream: str, entries: Sequence[Entry]) -> None:
        """Keeps `entries` until `stream` has been looked at."""
        self._parked.setdefault(stream, []).extend(entries)
        self._work.set()

    async def run(self) -> None:
        """Looks at new streams, many in one round trip."""
        while True:
            await self._work.wait()
            async with self._hold.turn():
                await self._check(list(self._parked)[:CHECKS_AT_ONCE])
            if not self._parked:
                self._work.clear()

    async def _check(self, streams: list[str]) -> None:
        commands = [command for name in streams for command in check_commands(name, key_prefix=self._key_prefix)]
        replies = await self._wire.execute(commands)
        first_trouble: tuple[Trouble, Exception] | None = None
        for place, stream in enumerate(streams):
            answers = replies[place * COMMANDS_A_NAME : (place + 1) * COMMANDS_A_NAME]
            trouble = self._trouble_in(answers)
            if trouble is None:
                self._decide(stream, usable(*answers))
            else:
                first_trouble = first_trouble or trouble
        if first_trouble is not None:
            self._hold.fail(*first_trouble)
        else:
            self._hold.prove(Scope.LINE)

    def _decide(self, stream: str, allowed: bool) -> None:
        self._verdicts.put(stream, usable=allowed)
        self._release(stream, self._parked.pop(stream), allowed)

    def _trouble_in(self, answers: Sequence[Any]) -> tuple[Trouble, Exception] | None:
        """What has to be waited out; a question that the server refuses to answer is none."""
        for answer in answers:
            if isinstance(answer, Exception):
                verdict = classify(answer, on_global_stream=False)
                if not isinstance(verdict, Refused):
                    return verdict, answer
                if not self._told:
                    self._told = True
                    logger.warning(
                        "reply_to streams are checked by name alone, the result server refuses TYPE or EXISTS (%s): "
                        "a queue of another application could be taken for a stream",
                        answer,
                    )
        return None

    def __repr__(self) -> str:
        return f"<KeyGuard {len(self._parked)} streams unchecked, {len(self._verdicts)} known>"

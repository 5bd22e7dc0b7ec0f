"""A publisher that keeps everything in memory, and a connection whose server answers when a test says so."""

import asyncio
import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from legit_embedding.errors import ShuttingDownError
from legit_embedding.publish.pending import encode_fields, held_nbytes
from legit_embedding.publish.routing import RoutingRules, route
from legit_embedding.publish.streams import REJECTED_FIELD, PublisherStatistics
from legit_embedding.publish.wire import Command
from legit_embedding.values import Receipt

Held = tuple["asyncio.Future[list[Receipt]]", list[Receipt], int]


class MemoryPublisher:
    """A `Publisher` without a server. `streams` holds each stream's entries, in order.

    `hold` keeps confirmations back until `release`, as a slow server would; the entries are on their streams at once.
    """

    def __init__(
        self,
        *,
        rules: RoutingRules | None = None,
        routing_enabled: bool = True,
        pending_results_bytes: int = 64 * 1024 * 1024,
        rejected_field: str = REJECTED_FIELD,
    ) -> None:
        self.streams: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
        self.routing_enabled = routing_enabled
        self._rules = rules or RoutingRules(global_stream="embeddings:results")
        self._room_bytes = pending_results_bytes
        self._rejected_field = rejected_field
        self._ids = itertools.count(1)
        self._holding = False
        self._held: deque[Held] = deque()
        self._pending_entries = self._pending_bytes = self._confirmed = self._rejected = 0
        self._room = asyncio.Event()
        self._room.set()
        self._closing = False

    def hold(self) -> None:
        """From now on nothing is confirmed."""
        self._holding = True

    def release(self, submissions: int | None = None) -> None:
        """Confirms the oldest `submissions`, and goes on holding; without a number all of them, and holds no more."""
        self._holding = submissions is not None
        for _ in range(len(self._held) if submissions is None else min(submissions, len(self._held))):
            self._confirm(self._held.popleft())

    def submit(self, reply_to: str | None, entries: Sequence[Mapping[str, str]]) -> asyncio.Future[list[Receipt]]:
        """See `Publisher.submit`."""
        return self._take(entries, lambda entry: self._write(reply_to, entry))

    def bury(self, entry: Mapping[str, str]) -> asyncio.Future[list[Receipt]]:
        """See `Publisher.bury`."""
        return self._take([entry], lambda each: self._append(self._rules.dead_letter_stream, each))

    def _take(
        self, entries: Sequence[Mapping[str, str]], write: Callable[[Mapping[str, str]], Receipt]
    ) -> asyncio.Future[list[Receipt]]:
        future: asyncio.Future[list[Receipt]] = asyncio.get_running_loop().create_future()
        if self._closing:
            _stop(future)
            return future
        receipts = [write(entry) for entry in entries]
        nbytes = sum(held_nbytes(encode_fields(entry)) for entry in entries)
        self._pending_entries += len(receipts)
        self._pending_bytes += nbytes
        self._held.append((future, receipts, nbytes))
        self._tell()
        if not self._holding or not entries:
            self._confirm(self._held.pop())
        return future

    async def wait_for_room(self) -> None:
        """See `Publisher.wait_for_room`."""
        while not self._room.is_set():
            await self._room.wait()
        if self._closing:
            raise ShuttingDownError("the publisher is stopping")

    def statistics(self) -> PublisherStatistics:
        """See `Publisher.statistics`."""
        return PublisherStatistics(
            pending_entries=self._pending_entries,
            pending_bytes=self._pending_bytes,
            pipelines=0,
            confirmed=self._confirmed,
            retried=0,
            rejected=self._rejected,
            trouble=None,
        )

    async def close(self) -> None:
        """Nothing will confirm what is held: whoever waits for it gets ShuttingDownError."""
        self._closing = True
        self._tell()
        while self._held:
            _stop(self._held.popleft()[0])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<MemoryPublisher {self._pending_entries} entries held, {self._confirmed} confirmed>"

    def _write(self, reply_to: str | None, fields: Mapping[str, str]) -> Receipt:
        chosen = route(reply_to, rules=self._rules, enabled=self.routing_enabled)
        entry = dict(fields)
        if chosen.rejected is not None:
            self._rejected += 1
            entry[self._rejected_field] = chosen.rejected
        return self._append(chosen.stream, entry)

    def _append(self, stream: str, fields: Mapping[str, str]) -> Receipt:
        parts = [part.decode() for part in encode_fields(fields)]  # as a reader of the server would see them
        self.streams[stream].append(dict(zip(parts[::2], parts[1::2], strict=True)))
        return Receipt(stream, f"{next(self._ids)}-0")

    def _confirm(self, held: Held) -> None:
        future, receipts, nbytes = held
        self._pending_entries -= len(receipts)
        self._pending_bytes -= nbytes
        self._confirmed += len(receipts)
        if not future.done():
            future.set_result(receipts)
        self._tell()

    def _tell(self) -> None:
        if self._closing or self._pending_bytes < self._room_bytes:
            self._room.set()
        else:
            self._room.clear()


def _stop(future: "asyncio.Future[list[Receipt]]") -> None:
    if not future.done():
        future.set_exception(ShuttingDownError("the publisher is stopping"))
        future.exception()


class ScriptedServer:
    """What several `ScriptedWire`s talk to: streams in memory, errors on demand, replies held back on demand.

    `log` tells in order what happened: `("sent", n)` for pipeline n, with `sent[n]` its commands, and
    `("answered", n)`. `fail` is asked before each command: an exception it returns is that command's reply.
    """

    def __init__(self) -> None:
        self.streams: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
        self.types: dict[str, bytes] = {}
        self.values: dict[str, bytes] = {}
        self.bindings: set[str] = set()
        self.log: list[tuple[str, int]] = []
        self.sent: list[list[Command]] = []
        self.fail: Callable[[Command], Exception | None] = lambda _: None
        self.break_line: Exception | None = None
        self.opened = 0
        self._gate = asyncio.Event()
        self._gate.set()
        self._ids = itertools.count(1)

    def hold(self) -> None:
        """Commands are taken, and answered only after `release`."""
        self._gate.clear()

    def release(self) -> None:
        """Answers everything."""
        self._gate.set()

    def connect(self) -> "ScriptedWire":
        """A new connection."""
        return ScriptedWire(self)

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """The replies, once they are not held back."""
        number = len(self.sent)
        self.sent.append(list(commands))
        self.log.append(("sent", number))
        await self._gate.wait()
        if self.break_line is not None:
            return [self.break_line] * len(commands)
        replies = [self.fail(command) or self._run(command) for command in commands]
        self.log.append(("answered", number))
        return [None if reply is _NIL else reply for reply in replies]

    def _run(self, command: Command) -> Any:
        name, key = str(command[0]), _text(command[1]) if len(command) > 1 else ""
        if name == "XADD":
            fields = [_text(part) for part in command[command.index("*") + 1 :]]
            self.streams[key].append(dict(zip(fields[::2], fields[1::2], strict=True)))
            return f"{next(self._ids)}-0".encode()
        if name == "TYPE":
            return self.types.get(key, b"stream" if key in self.streams else b"none")
        if name == "EXISTS":
            return sum(_text(part) in self.bindings for part in command[1:])
        if name == "SET":
            self.values[key] = _text(command[2]).encode()
            return b"OK"
        if name == "GET":
            return self.values.get(key, _NIL)
        return b"PONG"


class ScriptedWire:
    """A `Wire` to a `ScriptedServer`."""

    def __init__(self, server: ScriptedServer) -> None:
        self._server = server
        self._is_open = False
        self.closed = False

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """See `Wire`."""
        if not self._is_open:
            self._is_open = True
            self._server.opened += 1
        return await self._server.execute(commands)

    def expire(self) -> None:
        """See `Wire`."""
        self._is_open = False

    async def close(self) -> None:
        """See `Wire`."""
        self._is_open = False
        self.closed = True


_NIL = object()


def _text(part: str | bytes | int) -> str:
    return part.decode() if isinstance(part, bytes) else str(part)

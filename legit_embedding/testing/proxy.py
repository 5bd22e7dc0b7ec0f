"""A TCP proxy that puts a server further away, or cuts the line to it."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

HOST = "127.0.0.1"
CHUNK_BYTES = 256 * 1024
START_TIMEOUT_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProxyStatistics:
    """Connections open now and accepted so far; bytes delivered so far in each direction."""

    open: int
    accepted: int
    to_server_bytes: int
    to_client_bytes: int


class DelayProxy:
    """Passes bytes between its clients and a server on this machine, each half a round trip later.

    The delay costs no throughput: any number of bytes are under way at once. It runs on a thread and an event loop of
    its own; every method may be called from any thread, and returns when it is done. `rtt_ms` may be set at any time.
    """

    def __init__(self, target_port: int, *, rtt_ms: float = 0.0) -> None:
        self.rtt_ms = rtt_ms
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._server: asyncio.Server | None = None
        self._port = 0
        self._lines: set[_Line] = set()
        self._accepted = 0
        self._delivered = {"to_server": 0, "to_client": 0}
        self._allowance: dict[str, int | None] = {"to_server": None, "to_client": None}

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return self._port

    def url(self, db: int = 0) -> str:
        """`redis://127.0.0.1:port/db`, through this proxy."""
        return f"redis://{HOST}:{self._port}/{db}"

    def start(self) -> Self:
        """Returns when clients can connect."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="delay-proxy", daemon=True)
        self._thread.start()
        self._run(self._listen())
        return self

    def stop(self) -> None:
        """Cuts every connection and ends the thread; a second call does nothing."""
        if self._thread is None:
            return
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_TIMEOUT_S)
        self._thread = None
        self._loop.close()

    def cut(self) -> int:
        """Drops every connection at once, with whatever was under way; how many there were."""
        return self._run(self._cut())

    def cut_after(self, *, to_server: int | None = None, to_client: int | None = None) -> None:
        """Lets so many more bytes through in a direction, then drops every connection; once."""
        self._run(self._limit({"to_server": to_server, "to_client": to_client}))

    def statistics(self) -> ProxyStatistics:
        """What has passed so far."""
        return ProxyStatistics(
            open=len(self._lines),
            accepted=self._accepted,
            to_server_bytes=self._delivered["to_server"],
            to_client_bytes=self._delivered["to_client"],
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<DelayProxy :{self._port} -> :{self._target_port}, {self.rtt_ms:g} ms, {len(self._lines)} open>"

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_TIMEOUT_S)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, self._port, limit=CHUNK_BYTES)
        self._port = int(self._server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._cut()

    async def _cut(self) -> int:
        lines = list(self._lines)
        for line in lines:
            line.cut()
        await asyncio.gather(*(line.task for line in lines), return_exceptions=True)
        return len(lines)

    async def _limit(self, allowance: dict[str, int | None]) -> None:
        self._allowance = allowance

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # asyncio runs this callback in a task
        self._accepted += 1
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self._target_port, limit=CHUNK_BYTES)
        except OSError:
            writer.transport.abort()
            return
        line = _Line(task, (writer, far_writer))
        self._lines.add(line)
        try:
            for end in line.writers:
                _send_at_once(end)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on("to_server", reader, far_writer, line), name="proxy-to-server")
                group.create_task(self._pass_on("to_client", far_reader, writer, line), name="proxy-to-client")
        except* OSError:
            pass  # a line that broke: both ends are told below
        finally:
            line.cut()
            self._lines.discard(line)

    async def _pass_on(
        self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: "_Line"
    ) -> None:
        """Reads as fast as it can; another task delivers each chunk when its time has come."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._deliver(direction, queue, writer, line), name=f"proxy-deliver-{direction}")
            while True:
                data = await reader.read(CHUNK_BYTES)
                queue.put_nowait((self._loop.time() + self.rtt_ms / 2000, data))
                if not data:
                    break

    async def _deliver(
        self, direction: str, queue: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter, line: "_Line"
    ) -> None:
        while True:
            due_s, data = await queue.get()
            if not data:
                line.cut()
                return
            if due_s > self._loop.time():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(due_s):
                        await line.ended.wait()
            if line.ended.is_set():  # what was still on its way never comes
                return
            allowed = self._allowance[direction]
            part = data if allowed is None else data[:allowed]
            writer.write(part)
            await writer.drain()
            self._delivered[direction] += len(part)
            if allowed is not None:
                self._allowance[direction] = allowed - len(part)
                if allowed <= len(data):
                    self._allowance[direction] = None
                    for other in list(self._lines):
                        other.cut()
                    return


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    """One client's connection, and its connection to the server."""

    task: "asyncio.Task[Any]"
    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def cut(self) -> None:
        self.ended.set()
        for writer in self.writers:
            writer.transport.abort()


def _send_at_once(writer: asyncio.StreamWriter) -> None:
    """No waiting in buffers of ours: `drain` returns when the kernel has everything."""
    writer.transport.set_write_buffer_limits(high=0)
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

"""kombu's AMQP transport, reading more than it is asked for.

AMQP pushes messages and its acks have no answers, so a distant broker costs no waiting. But py-amqp reads a message in
some nine pieces, each a system call that hands the interpreter's lock to another thread, and kombu takes one message a
turn of its loop. Here a read takes what has come, and a turn delivers for a few milliseconds.
"""

import errno
import time
from collections.abc import Callable
from typing import Any

from amqp import transport as wire
from amqp.exceptions import RecoverableConnectionError
from kombu.transport import pyamqp

from legit_embedding.broker.bodies import OTHER, plain_json
from legit_embedding.broker.consumer import SLICE_S

READ_BYTES = 64 * 1024
"""Below what glibc's malloc maps anew each time."""

NOTHING_THERE = (errno.EAGAIN, errno.EINTR)


class ReadAhead:
    """A socket's `receive(most)`, which returns b"" at the end and raises where nothing is there, with fewer calls."""

    __slots__ = ("_data", "_place", "_receive")

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self._receive = receive
        self._data = b""
        self._place = 0

    def __call__(self, most: int) -> bytes:
        """At least one byte and at most so many; b"" at the end."""
        if self._place >= len(self._data):
            self._data, self._place = self._receive(max(most, READ_BYTES)), 0
        start = self._place
        self._place = min(start + most, len(self._data))
        return self._data[start : self._place]


class TCPWire(wire.TCPTransport):
    """py-amqp's, reading ahead."""

    _quick_recv: Callable[[int], bytes]

    def _setup_transport(self) -> None:
        super()._setup_transport()
        self._quick_recv = ReadAhead(self._quick_recv)


class SSLWire(wire.SSLTransport):
    """The same over TLS."""

    _quick_recv: Callable[[int], bytes]

    def _setup_transport(self) -> None:
        super()._setup_transport()
        self._quick_recv = ReadAhead(self._quick_recv)


class Message(pyamqp.Message):
    """As kombu's."""

    def _decode(self) -> Any:
        found = plain_json(self)
        return super()._decode() if found is OTHER else found


class Channel(pyamqp.Channel):
    """As kombu's."""

    Message = Message


class Connection(pyamqp.Connection):
    """As kombu's."""

    Channel = Channel

    def Transport(  # noqa: N802  py-amqp's name
        self,
        host: str,
        connect_timeout: float | None,
        ssl: Any = False,
        read_timeout: float | None = None,
        write_timeout: float | None = None,
        **options: Any,
    ) -> Any:
        """The wire to `host`."""
        return (SSLWire if ssl else TCPWire)(
            host,
            connect_timeout=connect_timeout,
            ssl=ssl,
            read_timeout=read_timeout,
            write_timeout=write_timeout,
            **options,
        )


class Transport(pyamqp.Transport):
    """For `amqp://`."""

    Connection = Connection

    def on_readable(self, connection: Any, loop: Any) -> None:
        """Delivers what has come.

        Raises:
            RecoverableConnectionError, OSError: the connection is lost.
        """
        if not connection.connected:
            raise RecoverableConnectionError("the connection to the broker is lost")
        until_s = time.monotonic() + SLICE_S
        while time.monotonic() < until_s:
            try:
                connection.drain_events(timeout=0)
            except TimeoutError:
                return
            except OSError as error:
                if error.errno in NOTHING_THERE:
                    return
                raise
        loop.call_soon(self._go_on, connection, loop)  # of what has been read ahead no poll would tell

    def _go_on(self, connection: Any, loop: Any) -> None:
        """Unless it was closed meanwhile: the loop makes such calls once more when it is closed itself."""
        if connection.connected:
            self.on_readable(connection, loop)


class SSLTransport(Transport, pyamqp.SSLTransport):
    """For `amqps://`."""

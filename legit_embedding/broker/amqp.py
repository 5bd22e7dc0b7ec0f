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

READ_BYTES = 16 * 1024
"""What has been read is delivered in the same turn, however long that takes: some messages, not some hundred."""

NOTHING_THERE = (errno.EAGAIN, errno.EINTR)


class ReadAhead:
    """A socket's `receive(most)`, which returns b"" at the end and raises where nothing is there, with fewer calls.

    It reads ahead while it is `ahead`, and only then: of what it holds no poll tells, so whoever turns that on takes it
    all. `pending` tells of bytes that the socket itself keeps, as one with TLS does.
    """

    __slots__ = ("_data", "_pending", "_place", "_receive", "ahead")

    def __init__(self, receive: Callable[[int], bytes], pending: Callable[[], int] = lambda: 0) -> None:
        self._receive = receive
        self._pending = pending
        self._data = b""
        self._place = 0
        self.ahead = False

    @property
    def holds(self) -> bool:
        """Whether there are bytes of which no poll tells."""
        return self._place < len(self._data) or self._pending() > 0

    def __call__(self, most: int) -> bytes:
        """At least one byte and at most so many; b"" at the end."""
        if self._place >= len(self._data):
            if not self.ahead:
                return self._receive(most)
            self._data, self._place = self._receive(max(most, READ_BYTES)), 0
        start = self._place
        self._place = min(start + most, len(self._data))
        return self._data[start : self._place]


class TCPWire(wire.TCPTransport):
    """py-amqp's, reading ahead."""

    _quick_recv: Callable[[int], bytes]

    def _setup_transport(self) -> None:
        super()._setup_transport()
        self._quick_recv = self.reader = ReadAhead(self._quick_recv)


class SSLWire(wire.SSLTransport):
    """The same over TLS."""

    _quick_recv: Callable[[int], bytes]

    def _setup_transport(self) -> None:
        super()._setup_transport()
        self._quick_recv = self.reader = ReadAhead(self._quick_recv, self.sock.pending)


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

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """From now on the loop serves the connection."""
        super().register_with_event_loop(connection, loop)
        if not isinstance(connection.transport, SSLWire):
            return

        def before_the_loop_waits() -> None:
            # A call that waited for its answer may have read a record of TLS, with messages behind the answer.
            if not connection.connected:
                loop.on_tick.discard(before_the_loop_waits)
            elif connection.transport.reader.holds:
                self.on_readable(connection, loop)

        loop.on_tick.add(before_the_loop_waits)

    def on_readable(self, connection: Any, loop: Any) -> None:  # noqa: ARG002  kombu's own
        """Delivers what has come, for a few milliseconds, and then what has been read already.

        Raises:
            RecoverableConnectionError, OSError: the connection is lost.
        """
        if not connection.connected:
            raise RecoverableConnectionError("the connection to the broker is lost")
        reader = connection.transport.reader
        reader.ahead = True
        until_s = time.monotonic() + SLICE_S
        try:
            while reader.ahead or reader.holds:
                connection.drain_events(timeout=0)
                reader.ahead = time.monotonic() < until_s
        except TimeoutError:  # no more has come
            pass
        except OSError as error:
            if error.errno not in NOTHING_THERE:
                raise
        finally:
            reader.ahead = False


class SSLTransport(Transport, pyamqp.SSLTransport):
    """For `amqps://`."""

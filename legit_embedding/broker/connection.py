"""One connection that never waits: commands go out together, replies come back in order, the event loop reads them.

redis-py makes the connection (TLS, Unix sockets, credentials, Sentinel); from then on its socket is ours.
"""

import logging
import re
import selectors
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis import exceptions

from legit_embedding.broker.scripts import Script

logger = logging.getLogger(__name__)

READ_BYTES = 256 * 1024
NOTHING_YET = object()

Reply = Any
OnReply = Callable[[Reply], object]
Argument = bytes | str | int | float

PASSING = ("LOADING", "BUSY", "OOM", "MISCONF", "NOREPLICAS", "TRYAGAIN")
"""What a server says that may take the same command in a moment."""

ELSEWHERE = ("READONLY", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "UNBLOCKED")
"""What a server says that is not, or no longer, the one to talk to: connect anew."""


IN_A_SCRIPT = re.compile(r"(?:ERR )?(?:Error running script .*?: )?(?:@user_script: ?\d+: )+-?")
"""What Redis 6.2 puts before an error that a script has met."""


def is_error(reply: Reply) -> bool:
    """Whether the server refused."""
    return isinstance(reply, hiredis.ReplyError)


def refused_with(reply: Reply, codes: tuple[str, ...]) -> bool:
    """Whether the server refused with an error that begins with one of these."""
    return is_error(reply) and IN_A_SCRIPT.sub("", str(reply), count=1).startswith(codes)


def passing(reply: Reply) -> bool:
    """Whether the server refused for now."""
    return refused_with(reply, PASSING)


def require_accepted(reply: Reply) -> Reply:
    """The reply, where it is none of refusal.

    Raises:
        redis.exceptions.ConnectionError: refused for now.
        redis.exceptions.ResponseError: refused.
    """
    if passing(reply):
        raise exceptions.ConnectionError(f"the broker takes no commands for now: {reply}")
    if is_error(reply):
        raise exceptions.ResponseError(str(reply))
    return reply


def log_refusal(reply: Reply) -> None:
    """For a command whose reply nobody waits for."""
    if is_error(reply):
        logger.error("the broker refused: %s", reply)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"  # the repr of redis-py's errors leaves out what the server said


class PipelinedConnection:
    """Sends without waiting; `on_reply` of each command is called once, in order, with its reply or its `ReplyError`.

    `connection` is a connected one of redis-py's, `on_push` is called for each message that the server sends unasked.
    Where the connection is lost, the callbacks of what was under way are never called: `unanswered` counts them, and
    every method that would read or write raises.

    Raises:
        redis.exceptions.ConnectionError: the connection is lost; from any method but `close`.
    """

    def __init__(self, connection: Any, *, timeout_s: float, on_push: Callable[[], object]) -> None:
        self._connection = connection
        self._socket = connection._sock  # noqa: SLF001  redis-py has no public name for it; kombu reads it, too
        self._timeout_s = timeout_s
        self._on_push = on_push
        self._reader = hiredis.Reader(notEnoughData=NOTHING_YET)
        self._out = bytearray()
        self._waiting: deque[tuple[OnReply | None, float]] = deque()
        self._loaded: set[str] = set()
        self._hub: Any = None
        self._writing = False
        self.lost: Exception | None = None

    @property
    def unanswered(self) -> int:
        """Commands whose reply has not come."""
        return len(self._waiting)

    @property
    def overdue(self) -> bool:
        """Whether the oldest of them has been waited for longer than the time-out."""
        return bool(self._waiting) and time.monotonic() - self._waiting[0][1] > self._timeout_s

    # -- waiting, for the first commands and the last ------------------------------------------------------------------

    def call(self, *arguments: Argument) -> Reply:
        """The reply, waited for.

        Raises:
            redis.exceptions.ResponseError: the server refused.
        """
        replies: list[Reply] = []
        self.send(replies.append, *arguments)
        self.settle()
        return require_accepted(replies[0])

    def load(self, *scripts: Script) -> None:
        """Makes the scripts known to the server.

        Raises:
            redis.exceptions.ResponseError: it does not let us.
        """
        for script in scripts:
            self.call("SCRIPT", "LOAD", script.text)
            self._loaded.add(script.sha)

    def settle(self) -> None:
        """Sends what is to be sent and returns when every reply has come, those included that the replies ask for.

        Raises:
            redis.exceptions.ConnectionError: they did not within the time-out.
        """
        deadline_s = time.monotonic() + self._timeout_s
        with selectors.DefaultSelector() as selector:
            self._guard()
            self._socket.setblocking(False)
            selector.register(self._socket, selectors.EVENT_READ)
            while True:
                self.flush()
                self.read()
                if not self._waiting and not self._out:
                    return
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
                selector.modify(self._socket, wanted)
                if time.monotonic() > deadline_s:
                    self._lose(TimeoutError(f"no reply within {self._timeout_s:g} s"))
                selector.select(min(0.1, self._timeout_s))

    # -- on the event loop ---------------------------------------------------------------------------------------------

    def attach(self, hub: Any, on_readable: Callable[[], object]) -> None:
        """From now on the hub calls `on_readable` when there is something to read."""
        self._guard()
        self._socket.setblocking(False)
        self._hub = hub
        hub.add_reader(self._socket.fileno(), on_readable)

    def send(self, on_reply: OnReply | None, *arguments: Argument) -> None:
        """Queues a command; `flush` sends it."""
        self._out += hiredis.pack_command(arguments)  # type: ignore[arg-type]  # its stub says: a tuple of one
        self._waiting.append((on_reply, time.monotonic()))

    def run(self, on_reply: OnReply | None, script: Script, keys: Sequence[Argument], *arguments: Argument) -> None:
        """Queues a script; one that the server has forgotten, after a failover perhaps, is sent anew."""

        def answered(reply: Reply) -> None:
            if refused_with(reply, ("NOSCRIPT",)):
                self._loaded.discard(script.sha)
                self.run(on_reply, script, keys, *arguments)
                self.flush()
            elif on_reply is not None:
                on_reply(reply)

        known = script.sha in self._loaded
        self._loaded.add(script.sha)
        command = ("EVALSHA", script.sha) if known else ("EVAL", script.text)
        self.send(answered, *command, len(keys), *keys, *arguments)

    def flush(self) -> None:
        """Sends what the socket takes now; the rest goes when it takes more."""
        self._guard()
        try:
            while self._out:
                sent = self._socket.send(self._out)
                del self._out[:sent]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            self._send_later()
        except OSError as error:
            self._lose(error)
        else:
            self._stop_writing()

    def read(self) -> None:
        """Reads what has come, and calls back."""
        self._guard()
        while True:
            try:
                data = self._socket.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError as error:
                self._lose(error)
            if not data:
                self._lose(EOFError("closed by the server"))
            self._reader.feed(data)
            if len(data) < READ_BYTES and not getattr(self._socket, "pending", int)():
                break
        self._call_back()

    def check(self) -> None:
        """Gives up a connection whose server says nothing any more."""
        self._guard()
        if self.overdue:
            self._lose(TimeoutError(f"no reply within {self._timeout_s:g} s"))

    def close(self) -> None:
        """Leaves the hub and hangs up; a second call does nothing."""
        if self._hub is not None:
            hub, self._hub = self._hub, None
            number = self._socket.fileno()
            if number >= 0:
                hub.remove(number)
        self._connection.disconnect()
        self.lost = self.lost or exceptions.ConnectionError("closed")

    def _call_back(self) -> None:
        gets = self._reader.gets
        while True:
            try:
                reply = gets()
            except hiredis.ProtocolError as error:
                self._lose(error)
            if reply is NOTHING_YET:
                return
            if isinstance(reply, hiredis.PushNotification):
                self._on_push()
                continue
            if refused_with(reply, ELSEWHERE):
                self._lose(exceptions.ReadOnlyError(str(reply)))
            if not self._waiting:
                self._lose(exceptions.InvalidResponse(f"a reply that nobody asked for: {reply!r:.200}"))
            on_reply, _ = self._waiting.popleft()
            if on_reply is not None:
                on_reply(reply)

    def _send_later(self) -> None:
        if self._hub is not None and not self._writing:
            self._writing = True
            self._hub.add_writer(self._socket.fileno(), self.flush)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._hub.remove_writer(self._socket.fileno())

    def _guard(self) -> None:
        if self.lost is not None:
            raise exceptions.ConnectionError(f"the connection to the broker is lost: {_said(self.lost)}") from self.lost

    def _lose(self, error: Exception) -> None:
        self.lost = error
        self._guard()

    def __repr__(self) -> str:
        state = (
            f"lost: {_said(self.lost)}" if self.lost else f"{len(self._waiting)} unanswered, {len(self._out)} B to send"
        )
        return f"<PipelinedConnection {state}>"

"""How other threads wake the consumer's: through a socket, never through a lock.

Celery shuts down inside signal handlers, which run on the consumer's thread between any two of its lines. A handler
that interrupts a line which holds a lock, and then waits for a thread that wants it, waits for ever.
"""

import contextlib
import selectors
import socket


class Waker:
    """Any thread calls `wake`; the consumer's thread watches `fileno`, or calls `wait`."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._woken = False

    def fileno(self) -> int:
        """Readable after a `wake`; for a poller."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Called after the work was queued; many calls before the next `clear` are one."""
        if self._woken:
            return
        self._woken = True
        with contextlib.suppress(OSError):  # closed: nobody waits any more
            self._writer.send(b"\0")

    def clear(self) -> None:
        """Called before the queue is emptied, so that what is queued from now on wakes again."""
        # In this order: a byte that were sent in between the other way round would be read here and leave the mark set,
        # and nobody would send another.
        self.answer()
        self.rearm()

    def answer(self) -> None:
        """Called when it is readable; until `rearm`, which has to follow, nobody wakes again."""
        with contextlib.suppress(OSError):
            self._reader.recv(4096)

    def rearm(self) -> None:
        """Called before the last look at the queue: what is queued after it wakes again."""
        self._woken = False

    def wait(self, timeout_s: float) -> None:
        """Returns after a `wake`, or after that many seconds; at once where it is closed."""
        with selectors.DefaultSelector() as selector, contextlib.suppress(ValueError):
            selector.register(self._reader, selectors.EVENT_READ)
            selector.select(timeout_s)

    def close(self) -> None:
        """Wakes nobody any more; a second call does nothing."""
        self._reader.close()
        self._writer.close()

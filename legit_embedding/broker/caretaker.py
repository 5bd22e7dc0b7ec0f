"""Keeps a process's leases alive, and brings back what the dead have left: on a thread and a connection of its own.

Not on the event loop: a worker that drains, or whose pool runs its tasks on the loop's thread, must not be taken for
dead while it works.
"""

import logging
import threading
import time
import uuid
import weakref
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis import exceptions

from legit_embedding.broker.names import Keys
from legit_embedding.broker.qos import mark_redelivered
from legit_embedding.broker.restore_scripts import OVERDUE, RESTORE, RESTORE_DEAD
from legit_embedding.broker.scripts import RENEW, Script

logger = logging.getLogger(__name__)

LOOK_S = 2.0
"""How often somebody looks for dead lines: what they held is back so long after their lease has run out."""

RENEWALS = 3
"""In each lease, and in each of kombu's visibility time-outs."""

PATIENCES = 6
"""In each lease: how long a server may take to answer, or to be connected to. One that went silent, without a word to
our side of the line, must not hold the thread for longer than the lease lasts."""

DEAD_AT_ONCE = 4096
"""Of a dead line's messages: all that a worker holds, as a rule. Only within a step do they keep their order."""

RESTORE_AT_ONCE = 200
TROUBLE_PAUSE_S = 1.0


class Caretaker:
    """Of one server and one set of keys. `client` has a pool of its own, and is used on the thread alone.

    `address` tells the server from others; `lease_s` is how long a line lives that renews nothing, in seconds.
    """

    def __init__(self, client: Any, *, address: Hashable, keys: Keys, lease_s: float) -> None:
        self.address = address
        self._client = client
        _bound(client.connection_pool.connection_kwargs, lease_s / PATIENCES)
        self._keys = keys
        self._lease_s = lease_s
        self._lock = threading.Lock()
        self._lines: dict[str, float] = {}
        self._channels: weakref.WeakSet[Any] = weakref.WeakSet()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def serve(self, line: str, channel: Any, *, instead_of: Iterable[str] = ()) -> None:
        """From now on `line` is kept alive, and what is overdue is restored by `channel`'s bindings."""
        with self._lock:
            for before in instead_of:
                self._lines.pop(before, None)
            self._lines[line] = 0.0
            self._channels.add(channel)
            if self._thread is None or not self._thread.is_alive():
                self._stop = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="legit-broker-lease", daemon=True
                )
                self._thread.start()

    def leave(self, line: str, channel: Any) -> None:
        """The line has settled everything; the thread ends with the last one."""
        with self._lock:
            self._lines.pop(line, None)
            self._channels.discard(channel)
            if not self._lines:
                self._stop.set()
                self._thread = None

    def end(self) -> None:
        """The process has gone to another server."""
        with self._lock:
            self._lines.clear()
            self._stop.set()
            self._thread = None

    # -- on the thread -------------------------------------------------------------------------------------------------

    def _run(self, stop: threading.Event) -> None:
        client = self._client
        renew_at_s = overdue_at_s = 0.0
        troubled = False
        try:
            while not stop.is_set():
                now_s = time.monotonic()
                pause_s = LOOK_S
                try:
                    if now_s >= renew_at_s:
                        self._renew(client)
                        renew_at_s = now_s + self._renew_every_s()
                    self._restore_dead(client, stop)
                    if now_s >= overdue_at_s:
                        overdue_at_s = now_s + self._restore_overdue(client, stop)
                    troubled = False
                except (exceptions.RedisError, OSError) as error:
                    if not troubled:
                        logger.warning("leases cannot be renewed for now, and nothing is restored: %r", error)
                    troubled, pause_s, renew_at_s = True, TROUBLE_PAUSE_S, 0.0
                except Exception:
                    logger.exception("a look at what others have left has failed")
                stop.wait(min(pause_s, self._renew_every_s() / 2))
        finally:
            client.connection_pool.disconnect()

    def _renew_every_s(self) -> float:
        """Often enough for our leases, and for stock kombu's time-out."""
        return min(self._lease_s, self._visibility_timeout_s()) / RENEWALS

    def _visibility_timeout_s(self) -> float:
        with self._lock:
            return min((channel.visibility_timeout for channel in self._channels), default=self._lease_s)

    def _renew(self, client: Any) -> None:
        keys = self._keys
        with self._lock:
            lines = dict(self._lines)
        every_s = self._visibility_timeout_s() / RENEWALS
        for line, scores_at_s in lines.items():
            now_s = time.monotonic()
            scores = now_s - scores_at_s >= every_s
            alive = run(
                client, RENEW, [keys.leases, keys.index, keys.owner(line)], line, self._lease_s, "1" if scores else "0"
            )
            if not alive and self._serves(line):
                # Its next take is refused and gets a new lease; a line that is lost gets one when it is back.
                logger.warning("a lease of this process had run out: what it held may run a second time elsewhere")
            elif scores:
                with self._lock:
                    if line in self._lines:
                        self._lines[line] = now_s

    def _serves(self, line: str) -> bool:
        with self._lock:
            return line in self._lines

    def _restore_dead(self, client: Any, stop: threading.Event) -> None:
        keys = self._keys
        names = [keys.leases, keys.unacked, keys.index, keys.deliveries]
        while not stop.is_set():
            returned, more = run(client, RESTORE_DEAD, names, keys.owners, DEAD_AT_ONCE)
            if returned:
                logger.warning("%d messages of a worker that died went back to their queues", returned)
            if not more:
                return

    # -- stock kombu's visibility time-out -----------------------------------------------------------------------------

    def _restore_overdue(self, client: Any, stop: threading.Event) -> float:
        """Restores what stock workers have left behind; when to look again, in seconds."""
        with self._lock:
            channel = next(iter(self._channels), None)  # any: the keys are the same for all
        if channel is None:
            return LOOK_S
        most = channel.unacked_restore_limit or RESTORE_AT_ONCE
        keys = self._keys
        names = [keys.index, keys.unacked, keys.mutex, keys.leases]
        while not stop.is_set():
            token = uuid.uuid4().hex
            timeout_s, mutex_s = channel.visibility_timeout, channel.unacked_mutex_expire
            found = run(client, OVERDUE, names, timeout_s, most, token, mutex_s, keys.owners)
            if not found:
                break
            self._restore(client, channel, token, list(zip(found[::2], found[1::2], strict=True)))
            if channel.unacked_restore_limit or len(found) // 2 < most:
                break
        return float(max(channel.unacked_restore_interval, 1) * max(channel.unacked_restore_throttle, 1))

    def _restore(self, client: Any, channel: Any, token: str, found: list[tuple[bytes, bytes | None]]) -> None:
        lists: dict[str, int] = {}
        arguments: list[Any] = []
        for tag, value in reversed(found):  # the oldest last: it is taken first
            placed = False
            for key, text in self._destinations(channel, tag, value):
                arguments += [tag, lists.setdefault(self._keys.of(key), len(lists) + 1), text]
                placed = True
            if not placed:
                # Out of the index, or it would be the first that is found for ever; its text stays in `unacked`.
                arguments += [tag, 0, ""]
        keys = self._keys
        returned = run(client, RESTORE, [keys.index, keys.unacked, keys.mutex, *lists], token, *arguments)
        if returned:
            logger.warning("%d messages were not acknowledged in time and went back to their queues", returned)

    def _destinations(self, channel: Any, tag: bytes, value: bytes | None) -> Iterator[tuple[str, str]]:
        """The lists that a message goes to, as stock kombu does it, with the text for each."""
        if value is None:
            return
        try:
            payload, exchange, routing_key = loads(bytes_to_str(value))
            mark_redelivered(payload)
            text = dumps(payload)
            priority = channel._get_message_priority(payload, reverse=False)  # noqa: SLF001
            for queue in channel._lookup(exchange, routing_key):  # noqa: SLF001
                yield channel._q_for_pri(queue, priority), text  # noqa: SLF001
        except (ValueError, KeyError, TypeError):
            logger.exception("the message %s cannot be restored; it is left in %s", tag.decode(), self._keys.unacked)


def _bound(options: dict[str, Any], patience_s: float) -> None:
    """What the site has set stays where it is shorter."""
    for name in ("socket_timeout", "socket_connect_timeout"):
        options[name] = min(options.get(name) or patience_s, patience_s)


def run(client: Any, script: Script, names: list[str], *arguments: Any) -> Any:
    """A script, known to the server or not."""
    try:
        return client.evalsha(script.sha, len(names), *names, *arguments)
    except exceptions.NoScriptError:
        return client.eval(script.text, len(names), *names, *arguments)

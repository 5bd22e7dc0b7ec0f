"""The flow of a message: taken from its queue, delivered, acknowledged or given back.

All on the event loop's thread, but for `ack`. Everything that is sent in one turn of the loop goes out together.

Celery begins a cold shutdown in a signal's handler, which may have interrupted us between any two lines, and cancels
the consumer there. So what reads or writes is marked as busy, and who comes meanwhile leaves a note for the next turn.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kombu.utils.json import loads
from redis import exceptions

from legit_embedding.broker.bodies import OBJECT_MARK
from legit_embedding.broker.connection import (
    OnReply,
    PipelinedConnection,
    Reply,
    log_refusal,
    require_accepted,
)
from legit_embedding.broker.holdings import Holdings, Taken
from legit_embedding.broker.intake import Intake
from legit_embedding.broker.names import Keys
from legit_embedding.broker.scripts import GIVE_BACK, OPEN, TAKE
from legit_embedding.broker.settling import Return, Settlement
from legit_embedding.broker.takes import Takes
from legit_embedding.waker import Waker

logger = logging.getLogger(__name__)

SLICE_S = 0.005
"""How long messages are delivered at a stretch: acks, timers and signals have their turn in between."""


@dataclass(frozen=True, slots=True)
class Options:
    """Of the transport: messages and bytes a take, takes in flight, seconds of a lease, whether to ask for pushes."""

    take_messages: int = 256
    take_bytes: int = 1 << 20
    takes_in_flight: int = 4
    lease_s: float = 30.0
    pushes: bool = True
    timeout_s: float = 30.0


class Consumer:
    """The line of one channel to the broker.

    Raises:
        redis.exceptions.ConnectionError: the connection is lost, from any method but `ack` and `close`.
        redis.exceptions.ResponseError: from the constructor: the server does not let us do what is needed.
    """

    def __init__(
        self,
        channel: Any,
        hub: Any,
        *,
        connection: Any,
        keys: Keys,
        holdings: Holdings,
        options: Options,
    ) -> None:
        self.line = uuid.uuid4().hex
        self.draining = False
        self._busy = False
        self._channel = channel
        self._hub = hub
        self._thread: int | None = None
        self._keys = keys
        self._holdings = holdings
        self._options = options
        self._again_at_s: float | None = None
        self._waker = Waker()
        self._connection = PipelinedConnection(connection, timeout_s=options.timeout_s, on_push=self._on_push)
        try:
            pushes = options.pushes and self._ask_for_pushes()
            takes = Takes(messages=options.take_messages, in_flight=options.takes_in_flight, pushes=pushes)
            self._intake = Intake(
                self._connection,
                channel,
                line=self.line,
                keys=keys,
                takes=takes,
                bytes_a_take=options.take_bytes,
                unleased=self._ask_for_lease,
            )
            # What this connection pushes itself it is not told of.
            self._settlement = Settlement(
                self._connection, line=self.line, keys=keys, holdings=holdings, returned=takes.woken
            )
            self._open()
        except BaseException:
            self._waker.close()
            self._connection.close()
            raise
        self._connection.attach(hub, self._on_readable)
        hub.add_reader(self._waker, self._on_wake)

    # -- the loop's turn -----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Once in each turn, before the loop waits: sends what there is to send."""
        self._thread = threading.get_ident()
        self._busy = True
        try:
            self._connection.check()
            self._tell()
            self._ask()
            self._connection.flush()
        finally:
            self._busy = False
        if self._intake.inbox and self._channel.qos.can_consume():
            # Not from here: what Celery queues on the loop meanwhile, acks above all, would wait as long as the loop.
            self._waker.wake()

    def _on_readable(self) -> None:
        self._busy = True
        try:
            self._connection.read()
            if self._intake.inbox:
                # First of all the next takes go out, so that their way and our work overlap.
                self._ask()
                self._connection.flush()
        finally:
            self._busy = False
        self._deliver()

    def _on_wake(self) -> None:
        self._waker.clear()
        self._deliver()

    def publish(self, topic: str, payload: str) -> bool:
        """A fanout message, without waiting for the server; False where the caller has to do it itself."""
        if self._busy or self._thread != threading.get_ident() or self._connection.lost is not None:
            return False
        self._busy = True
        try:
            self._connection.send(log_refusal, "PUBLISH", self._keys.of(topic), payload)
        finally:
            self._busy = False
        self._waker.wake()  # the next turn sends it, together with what else there is
        return True

    # -- opening -------------------------------------------------------------------------------------------------------

    def _ask_for_pushes(self) -> bool:
        """Of the keys that we name alone: else we were told of all that a take's script reads, leases above all."""
        try:
            self._connection.call("HELLO", "3")
            self._connection.call("CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP")
            self._connection.call("CLIENT", "CACHING", "YES")  # if we may; the next command has no keys
        except exceptions.ResponseError as error:
            logger.info("the broker does not tell of new messages, which are looked for instead: %s", error)
            return False
        return True

    def _open(self) -> None:
        """Gets a lease, and settles what the line before has left."""
        self._connection.load(TAKE, GIVE_BACK, OPEN)
        for before in self._holdings.lines_before or [""]:
            # A probe as well: the first script that runs.
            replies: list[Reply] = []
            self._ask_for_lease(replies.append, before, self._holdings.living if before else [])
            self._connection.settle()
            returned = require_accepted(replies[0])
            if returned:
                logger.info("%d messages of a connection that was lost went back to their queues", returned)

    def _ask_for_lease(self, on_reply: OnReply = log_refusal, before: str = "", kept: Sequence[str] = ()) -> None:
        keys = self._keys
        names = [keys.unacked, keys.index, keys.leases, keys.owner(self.line), keys.owner(before), keys.deliveries]
        self._connection.run(on_reply, OPEN, names, self.line, self._options.lease_s, before, *kept)

    def _on_push(self) -> None:
        self._intake.woken()

    # -- delivering ----------------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        if not self._intake.inbox:
            return
        channel, qos = self._channel, self._channel.qos
        rotate = channel._queue_cycle.rotate if len(channel._active_queues) > 1 else None  # noqa: SLF001
        until_s = time.monotonic() + SLICE_S
        while self._intake.inbox and qos.can_consume():
            taken = self._intake.inbox.popleft()
            if taken.queue not in channel._active_queues:  # noqa: SLF001  cancelled meanwhile
                self._settlement.note(Return(taken.tag))
                continue
            if rotate is not None:
                rotate(taken.queue)
            self._deliver_one(taken)
            if time.monotonic() > until_s:
                break  # the loop's next turn wakes us

    def _deliver_one(self, taken: Taken) -> None:
        channel = self._channel
        try:
            text = taken.text.decode()
            payload = require_message(loads(text) if OBJECT_MARK in text else json.loads(text))
        except (ValueError, RecursionError):  # the second: lists in lists, thousands of them
            # Handed out again it would end the same way, and dropped it would be lost: it stays in `unacked`.
            logger.exception(
                "what came of the queue %r is no JSON, or no message; left in %s", taken.queue, self._keys.unacked
            )
            return
        no_ack = taken.queue in channel.no_ack_queues
        if not no_ack:
            self._holdings.hold(taken)
        channel.arriving = taken
        try:
            channel.connection._deliver(payload, taken.queue)  # noqa: SLF001  kombu's own way
        finally:
            channel.arriving = None
        if no_ack:
            self._holdings.ack(taken.tag)

    # -- acknowledging and giving back ---------------------------------------------------------------------------------

    def ack(self, tag: str) -> None:
        """The message's work is done. Any thread."""
        self._holdings.ack(tag)
        self._hurry()

    def _hurry(self) -> None:
        """Where the loop may not come round again, what is to be told goes out now; else the loop is woken for it."""
        if self._connection.lost is not None:
            return
        if self._busy or self._thread != threading.get_ident():
            self._waker.wake()
            return
        if not self.draining:
            return  # within the loop's turn, which ends with telling
        self._busy = True
        try:
            self._tell()
            self._connection.flush()
            self._connection.read()  # so that the replies of a long drain do not pile up
        except exceptions.ConnectionError as error:  # told over the next one
            logger.warning("the connection to the broker was lost while the worker drains: %s", error)
        finally:
            self._busy = False

    def return_now(self, returns: Sequence[Return]) -> None:
        """Puts messages back, in the order given; it is done when this returns."""
        self._busy = True
        try:
            self._settlement.give_back(returns)
            self._connection.settle()
        finally:
            self._busy = False

    def return_soon(self, message: Return) -> None:
        """Puts a message back with the loop's next turn, or at once where that may not come."""
        self._settlement.note(message)
        self._waker.wake()
        self._hurry()

    # -- stopping ------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """No queue is consumed any more: what no task has seen goes back; from now on acks do not wait for the loop."""
        self.draining = True
        if not self._busy:  # else with the end
            self._settle_and_return_inbox()

    def probe(self) -> None:
        """Finds out whether the line is lost, where nobody has noticed so far: what runs is not given back then."""
        self._busy = True
        try:
            self._connection.call("PING")
        except exceptions.RedisError as error:
            logger.warning("the connection to the broker was lost: %s", error)
        finally:
            self._busy = False

    def close(self, leaving: Callable[[], object]) -> None:
        """Hangs up. What could not be told is told over the next connection of this process.

        `leaving` is called where everything was told, before the lease is given up.
        """
        try:
            if self._connection.lost is None:
                self._settlement.give_back_orphans()
                self._settle_and_return_inbox()
        except exceptions.ConnectionError as error:
            logger.warning("the connection to the broker was lost while it was closed: %s", error)
        if self._connection.lost is None and not self._holdings.acks_waiting:
            leaving()
            self._give_up_lease()
        else:
            self._settlement.take_back_unconfirmed()
            self._holdings.lines_before.append(self.line)
        self._intake.inbox.clear()
        try:
            self._hub.remove(self._waker)
        finally:
            self._waker.close()
            self._connection.close()

    def _give_up_lease(self) -> None:
        """Unless something is held all the same: the lease's end brings it back, and nothing else would for an hour."""
        keys = self._keys
        try:
            held = self._connection.call("HLEN", keys.owner(self.line))
            if held:
                logger.error("%d messages are left behind; they are back when the lease ends", held)
            else:
                self._connection.call("ZREM", keys.leases, self.line)
        except exceptions.RedisError as error:
            logger.warning("the lease could not be given up, and ends by itself: %s", error)

    @property
    def lost(self) -> bool:
        """Whether the connection is lost."""
        return self._connection.lost is not None

    def _settle_and_return_inbox(self) -> None:
        self._busy = True
        try:
            self._settlement.tell(time.monotonic(), last=True)
            self._connection.settle()
            unseen = [Return(taken.tag) for taken in reversed(self._intake.inbox)]
            self._intake.inbox.clear()
            self._settlement.give_back(unseen)
            self._connection.settle()
        finally:
            self._busy = False

    def _tell(self) -> None:
        now_s = time.monotonic()
        self._come_back(now_s, self._settlement.tell(now_s))

    def _ask(self) -> None:
        now_s = time.monotonic()
        self._come_back(now_s, self._intake.ask(now_s))

    def _come_back(self, now_s: float, after_s: float | None) -> None:
        """Makes the loop come round again, at the latest then; None: no need."""
        if after_s is None:
            return
        at_s = now_s + after_s
        if self._again_at_s is None or at_s < self._again_at_s or now_s >= self._again_at_s:
            self._again_at_s = at_s
            self._hub.call_later(after_s, _nothing)

    def __repr__(self) -> str:
        return f"<Consumer {self.line[:8]}, {self._intake!r}, {self._connection!r}>"


def require_message(payload: Any) -> dict[str, Any]:
    """What kombu can make a message of.

    Raises:
        ValueError: it is none.
    """
    properties = payload.get("properties") if isinstance(payload, dict) else None
    if not isinstance(properties, dict) or "delivery_tag" not in properties:
        raise ValueError("no properties, or no delivery tag among them")
    found: dict[str, Any] = payload
    return found


def _nothing() -> None:
    """A timer's: the loop's turn is what it is for."""

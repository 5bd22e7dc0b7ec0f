"""The flow of a message: taken from its queue, delivered, acknowledged or given back.

All on the event loop's thread, but for `ack`. Everything that is sent in one turn of the loop goes out together.

Celery begins a cold shutdown in a signal's handler, which may have interrupted us between any two lines, and cancels
the consumer there. So what reads or writes is marked as busy, and who comes meanwhile leaves a note for the next turn.
"""

import itertools
import json
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kombu.utils.json import loads
from redis import exceptions

from legit_embedding.broker.connection import Argument, PipelinedConnection, Reply, is_error, passing
from legit_embedding.broker.holdings import Holdings, Taken
from legit_embedding.broker.names import Keys
from legit_embedding.broker.scripts import GIVE_BACK, OPEN, TAKE
from legit_embedding.broker.takes import Takes
from legit_embedding.waker import Waker

logger = logging.getLogger(__name__)

ACKS_A_COMMAND = 500
GIVE_BACK_A_COMMAND = 200
SLICE_S = 0.005
"""How long messages are delivered at a stretch: acks, timers and signals have their turn in between."""

REFUSED_PAUSE_S = 1.0

FRONT, BACK = "R", "L"
"""The sides of a kombu list: where the next message is taken, and where a new one is put."""


@dataclass(frozen=True, slots=True)
class Options:
    """Of the transport: messages and bytes a take, takes in flight, seconds of a lease, whether to ask for pushes."""

    take_messages: int = 256
    take_bytes: int = 1 << 20
    takes_in_flight: int = 4
    lease_s: float = 30.0
    pushes: bool = True
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Return:
    """A message on its way back; `text` None: as it was taken. `counted`: somebody may have worked on it."""

    tag: str
    side: str = FRONT
    counted: bool = False
    text: str | None = None


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
        self._closing = False
        self._busy = False
        self._notes: deque[Return] = deque()
        self._channel = channel
        self._hub = hub
        self._thread: int | None = None
        self._keys = keys
        self._holdings = holdings
        self._options = options
        self._numbers = itertools.count(1)
        self._inbox: deque[Taken] = deque()
        self._unconfirmed: deque[list[str]] = deque()
        self._rotates = channel.queue_order_strategy == "round_robin"
        self._again_at_s: float | None = None
        self._acks_from_s = 0.0
        self._waker = Waker()
        self._connection = PipelinedConnection(connection, timeout_s=options.timeout_s, on_push=self._on_push)
        try:
            pushes = options.pushes and self._ask_for_pushes()
            self._takes = Takes(messages=options.take_messages, in_flight=options.takes_in_flight, pushes=pushes)
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
            self._return_dropped()
            self._return_noted()
            self._send_acks()
            self._take()
            self._connection.flush()
        finally:
            self._busy = False
        if self._inbox and self._channel.qos.can_consume():
            # Not from here: what Celery queues on the loop meanwhile, acks above all, would wait as long as the loop.
            self._waker.wake()

    def _on_readable(self) -> None:
        self._busy = True
        try:
            self._connection.read()
            if self._inbox:
                # First of all the next takes go out, so that their way and our work overlap.
                self._take()
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
            self._connection.send(_log_refusal, "PUBLISH", self._keys.of(topic), payload)
        finally:
            self._busy = False
        self._waker.wake()  # the next turn sends it, together with what else there is
        return True

    # -- opening -------------------------------------------------------------------------------------------------------

    def _ask_for_pushes(self) -> bool:
        try:
            self._connection.call("HELLO", "3")
            self._connection.call("CLIENT", "TRACKING", "ON", "NOLOOP")
        except exceptions.ResponseError as error:
            logger.info("the broker does not tell of new messages (%s): looking for them every %.1f s", error, 0.1)
            return False
        return True

    def _open(self) -> None:
        """Gets a lease, and settles what the line before has left."""
        self._connection.load(TAKE, GIVE_BACK, OPEN)
        for before in self._holdings.lines_before or [""]:
            # A probe as well: the first script that runs.
            replies: list[Reply] = []
            self._connection.run(replies.append, OPEN, self._names_to_open(before), *self._opening(before))
            self._connection.settle()
            if passing(replies[0]):
                raise exceptions.ConnectionError(f"the broker takes no commands for now: {replies[0]}")
            if is_error(replies[0]):
                raise exceptions.ResponseError(str(replies[0]))
            if replies[0]:
                logger.info("%d messages of a connection that was lost went back to their queues", replies[0])

    def _names_to_open(self, before: str) -> list[str]:
        keys = self._keys
        return [keys.unacked, keys.index, keys.leases, keys.owner(self.line), keys.owner(before), keys.deliveries]

    def _opening(self, before: str) -> list[Argument]:
        kept = self._holdings.living if before else []
        return [self.line, self._options.lease_s, before, *kept]

    # -- taking --------------------------------------------------------------------------------------------------------

    def _room(self) -> int:
        qos = self._channel.qos
        spoken_for = len(self._inbox) + self._takes.reserved
        if "can_consume" in vars(qos):  # Celery's `worker_disable_prefetch` puts its own there: only a yes or no
            return 1 - spoken_for if qos.can_consume() else 0
        prefetch = qos.prefetch_count
        if not prefetch:
            return self._options.take_messages * self._options.takes_in_flight - spoken_for
        return int(prefetch - (len(qos._delivered) - len(qos._dirty)) - spoken_for)  # noqa: SLF001  kombu's own subclass

    def _take(self) -> None:
        if not self._channel.active_queues:
            return
        now_s = time.monotonic()
        while True:
            decision = self._takes.decide(now_s, room=self._room(), prefetch=self._channel.qos.prefetch_count)
            if not decision.messages:
                if decision.again_s is not None:
                    self._come_back(now_s, decision.again_s)
                return
            self._send_take(now_s, decision.messages)

    def _send_take(self, now_s: float, messages: int) -> None:
        channel, keys = self._channel, self._keys
        queues = channel._queue_cycle.consume(len(channel.active_queues))  # noqa: SLF001
        lists = [keys.of(channel._q_for_pri(queue, step)) for step in channel.priority_steps for queue in queues]  # noqa: SLF001
        # What stock kombu needs to restore the message: the default exchange, and the queue itself.
        ends = [f', "", {json.dumps(queue)}]' for queue in queues]
        first_of_tags = f"{self.line}.{next(self._numbers)}."
        names = [keys.unacked, keys.index, keys.leases, keys.owner(self.line), keys.deliveries, *lists]

        def answered(reply: Reply) -> None:
            self._on_taken(reply, asked=messages, queues=queues, first_of_tags=first_of_tags)

        rotate = "1" if self._rotates else "0"
        bytes_ = self._options.take_bytes
        self._takes.sent(now_s, messages)
        self._connection.run(
            answered, TAKE, names, len(queues), messages, bytes_, rotate, self.line, first_of_tags, *ends
        )

    def _on_taken(self, reply: Reply, *, asked: int, queues: Sequence[str], first_of_tags: str) -> None:
        now_s = time.monotonic()
        if is_error(reply):
            self._takes.refused(now_s, asked)
            if not passing(reply):
                raise exceptions.ConnectionError(f"the broker refuses to hand out messages: {reply}")
            logger.warning("the broker hands out no messages for now: %s", reply)
            return
        if reply is None:
            self._takes.answered(now_s, asked, 0, full=True)
            logger.warning("the lease had run out: messages that were held may run a second time elsewhere")
            self._renew()
            return
        found, *counts = reply
        size = 0
        active = self._channel._active_queues  # noqa: SLF001
        unwanted = []
        for i in range(0, len(found), 2):
            number, text = i // 2, found[i + 1]
            size += len(text)
            queue = queues[(found[i] - 1) % len(queues)]
            taken = Taken(
                tag=f"{first_of_tags}{number + 1}",
                queue=queue,
                text=text,
                deliveries=counts[0][number] if counts else 0,
            )
            if queue in active:
                self._inbox.append(taken)
            else:  # cancelled meanwhile
                unwanted.append(Return(taken.tag))
        self.give_back(unwanted[::-1])
        if self._takes.answered(now_s, asked, len(found) // 2, full=size >= self._options.take_bytes):
            self._arm()

    def _arm(self) -> None:
        channel = self._channel
        lists = [
            self._keys.of(channel._q_for_pri(queue, step))  # noqa: SLF001
            for step in channel.priority_steps
            for queue in channel.active_queues
        ]
        if not lists:
            self._takes.armed(time.monotonic(), empty=True)
            return
        self._connection.send(self._on_armed, "EXISTS", *lists)

    def _on_armed(self, reply: Reply) -> None:
        if is_error(reply):
            logger.warning("the broker cannot tell of new messages any more: %s", reply)
            self._takes.pushes = False
        self._takes.armed(time.monotonic(), empty=reply == 0)

    def _on_push(self) -> None:
        self._takes.woken()

    def _renew(self) -> None:
        self._connection.run(_log_refusal, OPEN, self._names_to_open(""), *self._opening(""))

    # -- delivering ----------------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        if not self._inbox:
            return
        channel, qos = self._channel, self._channel.qos
        rotate = channel._queue_cycle.rotate if len(channel._active_queues) > 1 else None  # noqa: SLF001
        until_s = time.monotonic() + SLICE_S
        while self._inbox and qos.can_consume():
            taken = self._inbox.popleft()
            if taken.queue not in channel._active_queues:  # noqa: SLF001  cancelled meanwhile
                self._notes.append(Return(taken.tag))
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
            payload = require_message(loads(text) if '"__type__"' in text else json.loads(text))
        except ValueError:
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
        if not self.draining:
            if self._thread != threading.get_ident():
                self._waker.wake()
            return
        if self._busy or self._thread != threading.get_ident():
            self._waker.wake()
            return
        self._busy = True
        try:
            self._return_noted()
            self._send_acks()
            self._connection.flush()
            self._connection.read()  # so that the replies of a long drain do not pile up
        except exceptions.ConnectionError as error:  # told over the next one
            logger.warning("the connection to the broker was lost while the worker drains: %s", error)
        finally:
            self._busy = False

    def _send_acks(self) -> None:
        keys = self._keys
        if not self._holdings.acks_waiting:
            return
        wait_s = self._acks_from_s - (now_s := time.monotonic())
        if wait_s > 0 and not self._closing:
            self._come_back(now_s, wait_s)
            return
        while self._holdings.acks_waiting:
            tags, digests = self._holdings.take_acks(ACKS_A_COMMAND)
            self._unconfirmed.append(tags)
            replies: list[Reply] = []
            self._connection.send(replies.append, "HDEL", keys.unacked, *tags)
            self._connection.send(replies.append, "ZREM", keys.index, *tags)
            if digests:
                self._connection.send(None, "HDEL", keys.deliveries, *digests)
            self._connection.send(partial(self._on_acked, replies), "HDEL", keys.owner(self.line), *tags)

    def _on_acked(self, replies: list[Reply], last: Reply) -> None:
        tags = self._unconfirmed.popleft()
        refusal = next((reply for reply in (*replies, last) if is_error(reply)), None)
        if refusal is not None:
            logger.error("%d acks were refused and will be repeated: %s", len(tags), refusal)
            self._holdings.take_back_acks(tags)
            self._acks_from_s = time.monotonic() + REFUSED_PAUSE_S

    def give_back(self, returns: Sequence[Return]) -> None:
        """Puts messages back, the last one first where they go to the front: it is taken last again."""
        keys = self._keys
        for first in range(0, len(returns), GIVE_BACK_A_COMMAND):
            chunk = returns[first : first + GIVE_BACK_A_COMMAND]
            arguments: list[str] = []
            for each in chunk:
                arguments += [each.tag, each.side, "1" if each.counted else "0", each.text or ""]
            names = [keys.unacked, keys.index, keys.owner(self.line), keys.deliveries]
            self._connection.run(_log_refusal, GIVE_BACK, names, *arguments)
        if returns:
            self._takes.woken()  # what this connection pushes itself it is not told of

    def return_now(self, returns: Sequence[Return]) -> None:
        """As `give_back`, and it is done when this returns, or the connection is lost."""
        self._busy = True
        try:
            self.give_back(returns)
            self._connection.settle()
        finally:
            self._busy = False

    def return_soon(self, message: Return) -> None:
        """As `give_back`, with the loop's next turn, or at once where that may not come."""
        self._notes.append(message)
        self._waker.wake()
        self._hurry()

    def _return_noted(self) -> None:
        notes = []
        while self._notes:
            notes.append(self._notes.popleft())
        # They are noted in the order in which they were taken: what goes to the front goes last one first.
        self.give_back([each for each in notes if each.side == BACK])
        self.give_back([each for each in reversed(notes) if each.side == FRONT])

    def _return_dropped(self) -> None:
        dropped = self._holdings.take_dropped()
        if dropped:
            logger.info("%d messages whose tasks were forgotten with a lost connection go back", len(dropped))
            self.give_back([Return(tag) for tag in reversed(dropped)])

    # -- stopping ------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """No queue is consumed any more: what no task has seen goes back; from now on acks do not wait for the loop."""
        self.draining = True
        if not self._busy:  # else with the end
            self._settle_and_return_inbox()

    def close(self, leaving: Callable[[], object]) -> None:
        """Hangs up. What could not be told is told over the next connection of this process.

        `leaving` is called where everything was told, before the lease is given up.
        """
        self._closing = True
        try:
            if self._connection.lost is None:
                self._send_acks()
                self._settle_and_return_inbox()
        except exceptions.ConnectionError as error:
            logger.warning("the connection to the broker was lost while it was closed: %s", error)
        if self._connection.lost is None and not self._holdings.acks_waiting:
            leaving()
            keys = self._keys
            try:
                self._connection.call("ZREM", keys.leases, self.line)
            except exceptions.RedisError as error:
                logger.warning("the lease could not be given up, and ends by itself: %s", error)
        else:
            for tags in reversed(self._unconfirmed):
                self._holdings.take_back_acks(tags)
            self._holdings.lines_before.append(self.line)
        self._unconfirmed.clear()
        self._inbox.clear()
        try:
            self._hub.remove(self._waker)
        finally:
            self._waker.close()
            self._connection.close()

    @property
    def lost(self) -> bool:
        """Whether the connection is lost."""
        return self._connection.lost is not None

    def _settle_and_return_inbox(self) -> None:
        self._busy = True
        try:
            self._settle()
        finally:
            self._busy = False

    def _settle(self) -> None:
        self._return_noted()
        self._connection.settle()
        unseen = [Return(taken.tag) for taken in reversed(self._inbox)]
        self._inbox.clear()
        if unseen:
            self.give_back(unseen)
            self._connection.settle()

    def _come_back(self, now_s: float, after_s: float) -> None:
        """Makes the loop come round again, at the latest then."""
        at_s = now_s + after_s
        if self._again_at_s is None or at_s < self._again_at_s or now_s >= self._again_at_s:
            self._again_at_s = at_s
            self._hub.call_later(after_s, _nothing)

    def __repr__(self) -> str:
        return f"<Consumer {self.line[:8]}, {self._takes!r}, {len(self._inbox)} in the inbox, {self._connection!r}>"


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


def _log_refusal(reply: Reply) -> None:
    if is_error(reply):
        logger.error("the broker refused: %s", reply)

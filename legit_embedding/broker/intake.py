"""From the queues of a channel into its inbox: asks the server for messages, and to be told when there are some."""

import itertools
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis import exceptions

from legit_embedding.broker.connection import PipelinedConnection, Reply, is_error, passing
from legit_embedding.broker.holdings import Taken
from legit_embedding.broker.names import Keys
from legit_embedding.broker.scripts import TAKE
from legit_embedding.broker.takes import Takes

logger = logging.getLogger(__name__)


class Intake:
    """Of one line. `takes` decides when and how many; what has come waits in `inbox`, taken and recorded.

    `unleased` is called where the server has taken the line for dead.
    """

    def __init__(
        self,
        connection: PipelinedConnection,
        channel: Any,
        *,
        line: str,
        keys: Keys,
        takes: Takes,
        bytes_a_take: int,
        unleased: Callable[[], object],
    ) -> None:
        self.inbox: deque[Taken] = deque()
        self._connection = connection
        self._channel = channel
        self._line = line
        self._keys = keys
        self._takes = takes
        self._bytes_a_take = bytes_a_take
        self._unleased = unleased
        self._numbers = itertools.count(1)
        self._accepted = True
        self._rotate = "1" if channel.queue_order_strategy == "round_robin" else "0"

    def ask(self, now_s: float) -> float | None:
        """Sends the takes that there is room for; after how many seconds to come again, None: no need."""
        # Asked for anew each time: a signal's handler may cancel the consumers between any two lines.
        while queues := self._queues():
            decision = self._takes.decide(now_s, room=self._room(), prefetch=self._channel.qos.prefetch_count)
            if decision.look:
                self._ask_to_be_told()
            if not decision.messages:
                return decision.again_s
            self._send_take(now_s, decision.messages, queues)
        return None

    def woken(self) -> None:
        """The server has told that there is something."""
        self._takes.told()

    def _room(self) -> int:
        qos = self._channel.qos
        spoken_for = len(self.inbox) + self._takes.reserved
        if "can_consume" in vars(qos):  # Celery's `worker_disable_prefetch` puts its own there: only a yes or no
            return 1 - spoken_for if qos.can_consume() else 0
        if not qos.prefetch_count:
            return self._takes.most - spoken_for
        return int(qos.prefetch_count - (len(qos._delivered) - len(qos._dirty)) - spoken_for)  # noqa: SLF001

    def _queues(self) -> list[str]:
        """Those consumed, in the order in which they are to be looked at."""
        found: list[str] = self._channel._queue_cycle.consume(len(self._channel.active_queues))  # noqa: SLF001
        return found

    def _lists(self, queues: Sequence[str]) -> list[str]:
        """Of each priority, of each queue."""
        channel = self._channel
        return [self._keys.of(channel._q_for_pri(queue, step)) for step in channel.priority_steps for queue in queues]  # noqa: SLF001

    def _send_take(self, now_s: float, messages: int, queues: Sequence[str]) -> None:
        keys = self._keys
        names = [keys.unacked, keys.index, keys.leases, keys.owner(self._line), keys.deliveries, *self._lists(queues)]
        # What stock kombu needs to restore the message: the default exchange, and the queue itself.
        ends = [f', "", {json.dumps(queue)}]' for queue in queues]
        first_of_tags = f"{self._line}.{next(self._numbers)}."

        def answered(reply: Reply) -> None:
            self._on_taken(reply, asked=messages, queues=queues, first_of_tags=first_of_tags)

        self._takes.sent(now_s, messages)
        self._connection.run(
            answered,
            TAKE,
            names,
            len(queues),
            messages,
            self._bytes_a_take,
            self._rotate,
            self._line,
            first_of_tags,
            *ends,
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
            self._unleased()
            return
        found, *counts = reply
        places, texts = found[::2], found[1::2]
        deliveries = counts[0] if counts else itertools.repeat(0)
        for number, (place, text, before) in enumerate(zip(places, texts, deliveries, strict=False), 1):
            self.inbox.append(Taken(f"{first_of_tags}{number}", queues[(place - 1) % len(queues)], text, before))
        full = sum(map(len, texts)) >= self._bytes_a_take
        if self._takes.answered(now_s, asked, len(texts), full=full):
            self._ask_to_be_told()

    def _ask_to_be_told(self) -> None:
        lists = self._lists(self._channel.active_queues)
        if lists:
            # For the next command's keys.
            self._connection.send(self._on_accepted, "CLIENT", "CACHING", "YES")
            self._connection.send(self._on_told, "EXISTS", *lists)
            if self._takes.patience.to_count(time.monotonic()):
                self._connection.send(self._on_counted, "ZCARD", self._keys.leases)
        else:
            self._takes.armed(time.monotonic(), empty=True)

    def _on_accepted(self, reply: Reply) -> None:
        self._accepted = not is_error(reply)
        if not self._accepted and not passing(reply):
            logger.warning("the broker cannot tell of new messages any more: %s", reply)
            self._takes.pushes = False

    def _on_told(self, reply: Reply) -> None:
        accepted = self._accepted
        self._on_accepted(reply)
        if accepted and self._accepted:
            self._takes.armed(time.monotonic(), empty=reply == 0)
        else:
            self._takes.not_armed(time.monotonic())

    def _on_counted(self, reply: Reply) -> None:
        if not is_error(reply):  # where it is not allowed, many are assumed
            self._takes.patience.counted(reply)

    def __repr__(self) -> str:
        return f"{self._takes!r}, {len(self.inbox)} in the inbox"

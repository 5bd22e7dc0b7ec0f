"""What the server is told of messages that were taken: their acks, and which of them go back.

Nothing here waits: what is told goes out with the connection's next `flush`.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from legit_embedding.broker.connection import PipelinedConnection, Reply, is_error
from legit_embedding.broker.holdings import Holdings
from legit_embedding.broker.names import Keys
from legit_embedding.broker.scripts import GIVE_BACK

logger = logging.getLogger(__name__)

ACKS_A_COMMAND = 500
GIVE_BACK_A_COMMAND = 200
REFUSED_PAUSE_S = 1.0

FRONT, BACK = "R", "L"
"""The sides of a kombu list: where the next message is taken, and where a new one is put."""


@dataclass(frozen=True, slots=True)
class Return:
    """A message on its way back; `text` None: as it was taken. `counted`: somebody may have worked on it."""

    tag: str
    side: str = FRONT
    counted: bool = False
    text: str | None = None


class Settlement:
    """Of one line. `returned` is called when messages were given back over it."""

    def __init__(
        self,
        connection: PipelinedConnection,
        *,
        line: str,
        keys: Keys,
        holdings: Holdings,
        returned: Callable[[], object],
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._owner = keys.owner(line)
        self._holdings = holdings
        self._returned = returned
        self._unconfirmed: deque[list[str]] = deque()
        self._notes: deque[Return] = deque()
        self._refused = False
        self._again_from_s = 0.0

    def tell(self, now_s: float, *, last: bool = False) -> float | None:
        """Everything that there is to tell; after how many seconds to come again, None: no need.

        What was refused waits a second before it is repeated, but not for the `last` time.
        """
        self._give_back_dropped()
        if self._refused:
            self._refused, self._again_from_s = False, now_s + REFUSED_PAUSE_S
        if not self._holdings.acks_waiting and not self._notes:
            return None
        if now_s < self._again_from_s and not last:
            return self._again_from_s - now_s
        self._give_back_noted()
        self._send_acks()
        return None

    def note(self, message: Return) -> None:
        """It is to be given back, with what is told next."""
        self._notes.append(message)

    def give_back(self, returns: Sequence[Return]) -> None:
        """Puts messages back, in the order given: of what goes to the front, the last one is taken first."""
        keys = self._keys
        names = [keys.unacked, keys.index, self._owner, keys.deliveries]
        for first in range(0, len(returns), GIVE_BACK_A_COMMAND):
            together = returns[first : first + GIVE_BACK_A_COMMAND]
            arguments: list[str] = []
            for each in together:
                arguments += [each.tag, each.side, "1" if each.counted else "0", each.text or ""]
            self._connection.run(partial(self._on_given_back, together), GIVE_BACK, names, *arguments)
        if returns:
            self._returned()

    def give_back_orphans(self) -> None:
        """What still runs since a connection before was lost: this line takes leave, and nobody keeps it any more."""
        self.give_back([Return(tag, counted=True) for tag in reversed(self._holdings.take_orphans())])

    def take_back_unconfirmed(self) -> None:
        """The connection is lost: what it did not confirm is told over the next one."""
        while self._unconfirmed:
            self._holdings.take_back_acks(self._unconfirmed.pop())

    def _send_acks(self) -> None:
        keys, send = self._keys, self._connection.send
        while self._holdings.acks_waiting:
            tags, digests = self._holdings.take_acks(ACKS_A_COMMAND)
            self._unconfirmed.append(tags)
            replies: list[Reply] = []
            send(replies.append, "HDEL", keys.unacked, *tags)
            send(replies.append, "ZREM", keys.index, *tags)
            if digests:
                send(None, "HDEL", keys.deliveries, *digests)
            send(partial(self._on_acked, replies), "HDEL", self._owner, *tags)

    def _on_acked(self, replies: list[Reply], last: Reply) -> None:
        tags = self._unconfirmed.popleft()
        refusal = next((reply for reply in (*replies, last) if is_error(reply)), None)
        if refusal is not None:
            logger.error("%d acks were refused and will be repeated: %s", len(tags), refusal)
            self._holdings.take_back_acks(tags)
            self._refused = True

    def _on_given_back(self, returns: Sequence[Return], reply: Reply) -> None:
        if not is_error(reply):
            return
        logger.error("%d messages could not be given back, which will be repeated: %s", len(returns), reply)
        # As they were noted: in the order in which they were taken. To give one back twice does nothing.
        self._notes.extendleft(each for each in returns if each.side == FRONT)
        self._notes.extendleft(each for each in reversed(returns) if each.side == BACK)
        self._refused = True

    def _give_back_noted(self) -> None:
        if not self._notes:
            return
        notes = []
        while self._notes:
            notes.append(self._notes.popleft())
        # They are noted in the order in which they were taken: what goes to the front goes last one first.
        self.give_back([each for each in notes if each.side == BACK])
        self.give_back([each for each in reversed(notes) if each.side == FRONT])

    def _give_back_dropped(self) -> None:
        dropped = self._holdings.take_dropped()
        if dropped:
            logger.info("%d messages whose tasks were forgotten with a lost connection go back", len(dropped))
            self.give_back([Return(tag, counted=True) for tag in reversed(dropped)])

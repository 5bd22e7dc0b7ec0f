"""What this process holds of a broker's messages, whatever becomes of its connections.

A connection comes and goes; a task that runs meanwhile is still acknowledged when it is done, over the next one.
"""

import hashlib
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from legit_embedding.broker.caretaker import Caretaker
    from legit_embedding.broker.consumer import Consumer


class Taken(NamedTuple):  # one for each message: a frozen dataclass takes three times as long to make
    """A message that is recorded on the server: its list's queue, its text, and how often it was given back before."""

    tag: str
    queue: str
    text: bytes
    deliveries: int


@dataclass(slots=True)
class Held:
    """A message that somebody works on, the `number`th to be delivered.

    `digest` is the name of its count, None where it has none.
    """

    digest: str | None
    number: int
    orphaned: bool = False


class Holdings:
    """Of one broker. Any thread may acknowledge; all else is the event loop's.

    An ack that was not confirmed is told again. It does no harm, because a tag is never used again.
    """

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._numbers = itertools.count()
        self._acks: deque[str] = deque()
        self._dropped: deque[str] = deque()
        self._digests: deque[str] = deque()
        self.publisher: Consumer | None = None
        """What sends events without waiting, while there is one."""
        self.caretaker: Caretaker | None = None
        self.lines_before: list[str] = []
        """Lines that were lost, and still own what is held of them."""

    def hold(self, taken: Taken) -> None:
        """It has been delivered."""
        digest = hashlib.sha1(taken.text, usedforsecurity=False).hexdigest() if taken.deliveries else None
        self._held[taken.tag] = Held(digest, next(self._numbers))

    def __contains__(self, tag: str) -> bool:
        """Whether `tag` is one of ours, delivered and not settled."""
        return tag in self._held

    def ack(self, tag: str) -> None:
        """Its work is done. Any thread."""
        held = self._held.pop(tag, None)
        self._acks.append(tag)
        if held is not None and held.digest is not None:
            self._digests.append(held.digest)

    def let_go(self, tag: str) -> bool:
        """It is about to be given back; False where it is not held."""
        return self._held.pop(tag, None) is not None

    def orphan(self, tag: str, message: Any) -> None:
        """Its connection is lost. While somebody still holds `message`, it may be acknowledged; after that, nobody can.

        Celery forgets the tasks that wait when it loses a connection, and lets those go on that run.
        """
        held = self._held.get(tag)
        if held is not None and not held.orphaned:
            held.orphaned = True
            weakref.finalize(message, self.drop, tag).atexit = False

    def drop(self, tag: str) -> None:
        """It is to be given back, over the next connection. Any thread, and in the garbage collector: takes no lock."""
        self._dropped.append(tag)

    def take_dropped(self) -> list[str]:
        """Those that nobody can acknowledge any more, to be given back, in the order in which they were delivered."""
        found = []
        while self._dropped:
            tag = self._dropped.popleft()
            held = self._held.pop(tag, None)
            if held is not None:
                found.append((held.number, tag))
        # They were collected in no order.
        return [tag for _, tag in sorted(found)]

    def take_orphans(self) -> list[str]:
        """Those of lost connections that are still worked on, to be given back: nobody keeps them any more."""
        orphans = [(held.number, tag) for tag, held in self._held.items() if held.orphaned]
        for _, tag in orphans:
            del self._held[tag]
        return [tag for _, tag in sorted(orphans)]

    def take_acks(self, most: int) -> tuple[list[str], list[str]]:
        """Up to `most` tags to acknowledge, and the names of counts that have become useless."""
        tags: list[str] = []
        while self._acks and len(tags) < most:
            tags.append(self._acks.popleft())
        digests = []
        while self._digests:
            digests.append(self._digests.popleft())
        return tags, digests

    def take_back_acks(self, tags: list[str]) -> None:
        """The server did not confirm them: they go out again, first."""
        self._acks.extendleft(reversed(tags))

    @property
    def acks_waiting(self) -> bool:
        """Whether there is anything to acknowledge."""
        return bool(self._acks)

    @property
    def living(self) -> list[str]:
        """All tags that are worked on, or acknowledged and not yet confirmed."""
        return [*self._held, *self._acks]

    def __repr__(self) -> str:
        return f"<Holdings {len(self._held)} held, {len(self._acks)} to acknowledge>"


_all: dict[Hashable, Holdings] = {}
_lock = threading.Lock()


def holdings_of(broker: Hashable) -> Holdings:
    """This process's holdings of a broker, which outlive every connection to it."""
    with _lock:
        return _all.setdefault(broker, Holdings())


def forget_all() -> None:
    """In a forked child: what the parent holds is the parent's."""
    _all.clear()

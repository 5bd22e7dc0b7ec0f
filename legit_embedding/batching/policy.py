"""Who goes when: pure, without a loop, a clock or a thread.

Round robin over tasks (Nagle, RFC 970, 1985): a batch takes one ticket of each task in turn, from the task that has
been without one the longest, and goes round again while there is room. So the one text of a search does not wait behind
a task with ten thousand, bulk fills what is left, and nobody starves: on a device with one model, a task with n others
in front of it is in one of the next n // cap + 1 batches. Where a bound of tokens makes batches of similar lengths, a
task that was passed over once has the first claim on the next batch, and is in one of n + 1 whatever the lengths are.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from legit_embedding.values import BatchLimits, Options, Prepared

WINDOW = 4
"""A batch bounded by tokens is chosen out of at most this many times its items, in fair order."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """An item that waits for its batch.

    `task` is whom fairness is for, `tag` the submitter's own, `deadline_s` on the monotonic clock.
    """

    prepared: Prepared
    options: Options
    task: str
    tag: Any
    deadline_s: float | None = None


class Owner(Protocol):
    """Who waits for a ticket; one that has `withdrawn` waits no more, and its tickets are passed over."""

    withdrawn: bool


@dataclass(slots=True, eq=False)
class Waiting:
    """A ticket in the queue; a `settled` one has its outcome."""

    ticket: Ticket
    model: Any
    owner: Any
    queued_s: float
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Formed:
    """What goes now: the lane, its tickets in fair order, and those whose deadline has passed."""

    lane: str
    batch: Sequence[Waiting]
    expired: Sequence[Waiting]


@dataclass(slots=True, eq=False)
class _Lane:
    """One model, and how many items a batch of it may have now."""

    name: str
    limits: BatchLimits
    cap: int


@dataclass(slots=True, eq=False)
class _Flow:
    """One task's tickets for one model, first come first served."""

    lane: _Lane
    task: str
    waiting: deque[Waiting] = field(default_factory=deque)
    passed_over: bool = False


_Candidate = tuple[_Flow, Waiting]


class FairQueue:
    """The tickets of all models of one device."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._ring: dict[tuple[str, str], _Flow] = {}  # in order: the flow that has been without a ticket the longest

    def __len__(self) -> int:
        return sum(len(flow.waiting) for flow in self._ring.values())

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits."""
        return not self._ring

    def put(self, lane: str, limits: BatchLimits, waiting: Iterable[Waiting]) -> None:
        """Tickets of one model, behind those of the same task that wait already."""
        place = self._lanes.get(lane)
        if place is None:
            place = self._lanes[lane] = _Lane(lane, limits, limits.max_items)
        elif place.limits != limits:  # the model was unloaded and came back with others
            place.limits, place.cap = limits, limits.max_items
        for one in waiting:
            key = (lane, one.ticket.task)
            flow = self._ring.get(key)
            if flow is None:
                flow = self._ring[key] = _Flow(place, one.ticket.task)
            flow.waiting.append(one)

    def form(self, now_s: float) -> Formed | None:
        """The next batch, of the model whose task has waited the longest. None where nobody waits."""
        expired: list[Waiting] = []
        while self._ring:
            lane = next(iter(self._ring.values())).lane
            batch = self._gather(lane, now_s, expired)
            if batch:
                return Formed(lane.name, batch, expired)
        return Formed("", (), expired) if expired else None

    def drain(self) -> list[Waiting]:
        """Everybody who waits; the queue is empty afterwards."""
        left = [one for flow in self._ring.values() for one in flow.waiting]
        self._ring.clear()
        return left

    def lower_cap(self, lane: str, items: int) -> None:
        """A batch of `items` was too much for the device: the next ones have at most half of them."""
        place = self._lanes[lane]
        place.cap = max(1, min(place.cap, items // 2))

    def raise_cap(self, lane: str, items: int) -> None:
        """A batch of `items` went well: one that reached a lowered cap raises it by one."""
        place = self._lanes[lane]
        if place.cap <= items < place.limits.max_items:
            place.cap += 1

    def cap(self, lane: str) -> int:
        """How many items a batch of this model may have now."""
        return self._lanes[lane].cap

    def _gather(self, lane: _Lane, now_s: float, expired: list[Waiting]) -> list[Waiting]:
        """Takes the batch out of the ring, and moves to the ring's end whoever has a ticket in it."""
        bound = lane.limits.max_tokens
        flows = [flow for flow in self._ring.values() if flow.lane is lane]
        candidates = _candidates(flows, lane.cap if bound is None else lane.cap * WINDOW, now_s, expired)
        chosen: Sequence[_Candidate] = ()
        try:
            chosen = candidates if bound is None else _fit(candidates, lane.cap, bound)
        finally:  # whatever went wrong in choosing: what was not chosen waits on
            taken = {id(one) for _, one in chosen}
            for flow, one in reversed(candidates):
                if id(one) not in taken:
                    flow.waiting.appendleft(one)
                    flow.passed_over = True
        for flow, _ in chosen:
            flow.passed_over = False
            self._ring[lane.name, flow.task] = self._ring.pop((lane.name, flow.task))
        for flow in flows:
            if not flow.waiting:
                del self._ring[lane.name, flow.task]
        return [one for _, one in chosen]


def _candidates(flows: Iterable[_Flow], wanted: int, now_s: float, expired: list[Waiting]) -> list[_Candidate]:
    """Up to `wanted` live tickets taken out of `flows`, one of each in turn, round and round."""
    found: list[_Candidate] = []
    turn = deque(flows)
    while turn and len(found) < wanted:
        flow = turn.popleft()
        one = _first_alive(flow, now_s, expired)
        if one is not None:
            found.append((flow, one))
            turn.append(flow)
    return found


def _first_alive(flow: _Flow, now_s: float, expired: list[Waiting]) -> Waiting | None:
    while flow.waiting:
        one = flow.waiting.popleft()
        if one.owner.withdrawn:
            continue
        deadline_s = one.ticket.deadline_s
        if deadline_s is None or deadline_s > now_s:
            return one
        expired.append(one)
    return None


def _fit(candidates: Sequence[_Candidate], cap: int, max_tokens: int) -> Sequence[_Candidate]:
    """The first candidate and those closest to it in length, within `cap` items and `max_tokens` once padded.

    The first ticket of each task that was passed over comes before all others. In the order of the candidates.
    """
    if not candidates:
        return ()
    lengths = [one.ticket.prepared.tokens for _, one in candidates]
    urgent: dict[str, int] = {}
    for place, (flow, _) in enumerate(candidates):
        if flow.passed_over:
            urgent.setdefault(flow.task, place)
    ranked = sorted(
        range(1, len(candidates)),
        key=lambda place: (urgent.get(candidates[place][0].task) != place, abs(lengths[place] - lengths[0]), place),
    )
    chosen, longest = [0], lengths[0]
    for place in ranked:
        if len(chosen) == cap:
            break
        padded = max(longest, lengths[place])
        if padded * (len(chosen) + 1) <= max_tokens:
            chosen.append(place)
            longest = padded
    return [candidates[place] for place in sorted(chosen)]

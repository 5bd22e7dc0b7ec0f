"""When to take messages, and how many. Pure: told what happens and what time it is, it decides."""

from dataclasses import dataclass
from enum import Enum

from legit_embedding.broker.patience import Patience

SMALL_TAKE_PAUSE_S = 0.005
"""How often at most a take is sent that has little room: each costs a round trip, and more room comes by itself."""

FIRST_PAUSE_S = 0.005
LONGEST_PAUSE_S = 0.1
"""Between looks at empty queues, where the server cannot tell us; doubled from the first to the longest."""

SAFETY_PAUSE_S = 1.0
"""Between looks at empty queues where it can: a wake-up that were lost would cost this."""

REFUSED_PAUSE_S = 1.0


class State(Enum):
    """What there is to wait for."""

    TAKING = "taking"
    ARMING = "arming"
    """Until the server has seen that we want to know of the next message."""
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Decision:
    """How many messages to ask for, 0: none now; `again_s` is when to ask this question again, None: no need.

    `look`: to ask whether there is something, and to be told when there is.
    """

    messages: int
    again_s: float | None = None
    look: bool = False


class Takes:
    """`messages` a take at most, `in_flight` takes at once; `pushes`: whether the server tells of new messages."""

    def __init__(self, *, messages: int, in_flight: int, pushes: bool, patience: Patience | None = None) -> None:
        self._most = messages
        self._most_in_flight = in_flight
        self.pushes = pushes
        self.in_flight = 0
        self.reserved = 0
        """Messages asked for and not yet answered: room that is spoken for."""
        self.patience = patience or Patience()
        self._state = State.TAKING
        self._woken = False
        self._told = False
        self._waits_to_look = False
        self._in_question = False
        """Whether the server has told, and it is not yet known whether for nothing."""
        self._look_at_s = 0.0
        self._last_s = float("-inf")
        self._pause_s = FIRST_PAUSE_S

    @property
    def most(self) -> int:
        """Messages that all takes together may ask for, where nothing else bounds them."""
        return self._most * self._most_in_flight

    @property
    def state(self) -> State:
        """What there is to wait for."""
        return self._state

    def decide(self, now_s: float, *, room: int, prefetch: int) -> Decision:
        """With `room` for so many messages, of `prefetch` in all (0: without bound)."""
        if self._state is State.IDLE:
            if self._told and room > 0:
                self._hear(now_s)
            if not self._woken and now_s < self._look_at_s:
                return Decision(0, self._look_at_s - now_s)
        if self._state is State.ARMING or self.in_flight >= self._most_in_flight or room < 1:
            return Decision(0)
        if self._waits_to_look and not self._woken:
            self._begin_to_look()
            return Decision(0, look=True)
        size = min(room, self._most)
        if size < max(1, min(self._most, prefetch // 4)):
            if self.in_flight:
                return Decision(0)
            wait_s = self._last_s + SMALL_TAKE_PAUSE_S - now_s
            if wait_s > 0:
                return Decision(0, wait_s)
        self._state = State.TAKING
        self._woken = self._told = self._waits_to_look = False
        return Decision(size)

    def sent(self, now_s: float, messages: int) -> None:
        """A take is under way."""
        self.in_flight += 1
        self.reserved += messages
        self._last_s = now_s

    def answered(self, now_s: float, asked: int, got: int, *, full: bool) -> bool:
        """A take's reply; `full` where it holds as much as it might. Whether the server is to be asked to tell us."""
        self.in_flight -= 1
        self.reserved -= asked
        if got:
            self._pause_s, self._in_question = FIRST_PAUSE_S, False
            self.patience.win()
        if got >= asked or full or self.in_flight or self._state is not State.TAKING:
            return False  # there is more, or another take will tell
        if self.pushes:
            self._begin_to_look()
            return True
        if not got:
            self._rest(now_s, self._pause_s)
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        return False

    def refused(self, now_s: float, asked: int) -> None:
        """The server takes no commands of this kind for now."""
        self.in_flight -= 1
        self.reserved -= asked
        self._rest(now_s, REFUSED_PAUSE_S)

    def armed(self, now_s: float, *, empty: bool) -> None:
        """The server will tell; `empty` is what it saw in that moment."""
        self._state = State.TAKING
        if empty:
            if self._in_question:
                self.patience.lose()
            self._rest(now_s, SAFETY_PAUSE_S)

    def not_armed(self, now_s: float) -> None:
        """The server would not say, and will not tell."""
        self._rest(now_s, REFUSED_PAUSE_S if self.pushes else FIRST_PAUSE_S)

    def told(self) -> None:
        """The server has told that there is something, as it has told all others."""
        self._told = True

    def woken(self) -> None:
        """There is something that the server does not tell this worker of: its own, given back."""
        self._woken = True

    def _hear(self, now_s: float) -> None:
        """When to look, and how."""
        self._told, self._in_question = False, True
        if self._waits_to_look:
            return
        after_s = self.patience.wait_s()
        if after_s:
            self._waits_to_look, self._look_at_s = True, min(self._look_at_s, now_s + after_s)
        else:
            self._woken = True

    def _begin_to_look(self) -> None:
        # What was told so far the look will see.
        self._state = State.ARMING
        self._woken = self._told = self._waits_to_look = False

    def _rest(self, now_s: float, pause_s: float) -> None:
        self._state, self._look_at_s = State.IDLE, now_s + pause_s
        self._in_question = self._waits_to_look = False

    def __repr__(self) -> str:
        return f"<Takes {self._state.value}, {self.in_flight} in flight for {self.reserved} messages>"

"""Who looks first, where many idle workers are told of one message. Pure.

The server tells every idle worker of each message, and one of them gets it. So a worker that was told for nothing many
times in a row draws a lot: one in twenty takes at once, the others ask a little later, by a command that only reads,
whether there still is something. Who wins is patient again: it, or one of the few, is at once there for the next one,
and nobody has to know how many are idle. Where none of them is, the first of the others is, within `LONGEST_SPREAD_S`.
Where there are a few workers in all, each takes at once.
"""

import random
from collections.abc import Callable

PATIENCE = 10
"""How often in a row a worker is told for nothing before it draws lots. Where four win equally often, one in twenty has
lost so often; where a hundred do, nine in ten."""

FEW_LINES = 4
COUNT_PAUSE_S = 1.0
"""How often at most a worker that draws lots asks how many lines to the broker there are."""

LONGEST_SPREAD_S = 0.02
"""Over how long at most those look who lose: from `AT_ONCE_S`, doubled with each loss."""

AT_ONCE_S = 0.001
"""A lot up to this is a take at once."""


class Patience:
    """Of one worker. `draw` gives lots between 0 and 1."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self._lost = 0
        self._few = False
        self._count_at_s = 0.0

    def lose(self) -> None:
        """It was told for nothing."""
        self._lost += 1

    def win(self) -> None:
        """There was something."""
        self._lost = 0

    def wait_s(self) -> float:
        """After how many seconds to look for what it has just been told of; 0: to take at once."""
        wait_s = self._draw() * self._spread_s()
        return wait_s if wait_s > AT_ONCE_S else 0.0

    def to_count(self, now_s: float) -> bool:
        """Whether to ask, with this look, how many lines to the broker there are."""
        if self._lost < PATIENCE or now_s < self._count_at_s:
            return False
        self._count_at_s = now_s + COUNT_PAUSE_S
        return True

    def counted(self, lines: int) -> None:
        """How many there are, whatever they do."""
        self._few = lines <= FEW_LINES

    def _spread_s(self) -> float:
        if self._few:
            return 0.0
        doublings = max(0, self._lost - PATIENCE)
        return min(LONGEST_SPREAD_S, AT_ONCE_S * 2.0 ** min(doublings, 10))

    def __repr__(self) -> str:
        return f"<Patience lost {self._lost}>"

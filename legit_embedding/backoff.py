"""Pauses between attempts: exponential, capped, with full jitter (Brooker, "Exponential Backoff And Jitter", 2015)."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before each further attempt.

    `tries` is how many further attempts there are (None: without end). Before attempt n, from 0, comes a pause between
    0 and min(max_s, base_s * 2**n) seconds; `uniform` draws it.
    """

    base_s: float
    max_s: float
    tries: int | None = None
    uniform: Callable[[float, float], float] = random.uniform

    def pause_s(self, attempt: int) -> float:
        """The pause before further attempt number `attempt`, from 0."""
        ceiling_s = min(self.max_s, self.base_s * 2 ** min(attempt, 62))
        return self.uniform(0.0, ceiling_s)

    def pauses_s(self) -> Iterator[float]:
        """The pause before each further attempt."""
        attempt = 0
        while self.tries is None or attempt < self.tries:
            yield self.pause_s(attempt)
            attempt += 1

"""The garbage collector's part in a worker: it looks less often, and not at what was there before the first task."""

import asyncio
import gc

LEAST_THRESHOLD = 10_000
"""Of new containers, between two looks. Python's own 700 are those of ten tasks."""

CONTAINERS_A_TASK = 100
"""About what a task in flight holds, its message included. A threshold below what comes and goes with all of them makes
the collector look at each task several times while it runs, which costs as much as a tenth of the work."""


def default_threshold(concurrency: int) -> int:
    """New containers between two looks, for so many tasks in flight."""
    return max(LEAST_THRESHOLD, CONTAINERS_A_TASK * concurrency)


LOOK_S = 5.0
"""So often it looks whatever the threshold. Tasks that come and go leave no new containers on balance, only cycles of
theirs do, and a few thousand may be all the memory there is where each holds an image."""

YOUNG = 1
"""Of the collector's generations, the one that holds what has been looked at once: tasks live about that long."""


class Collector:
    """Settings of the whole process, put back when the pool stops; a threshold of 0 leaves all as it is."""

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._before: tuple[int, int, int] | None = None
        self._froze = False

    def start(self) -> None:
        """Called when the app is complete. Where it has set a higher threshold itself, that one stays."""
        before = gc.get_threshold()
        turned_off = not gc.isenabled() or not before[0]
        if not self._threshold or self._before is not None or turned_off:
            return
        self._before = before
        if not gc.get_freeze_count():  # else the app has done so itself, and the pool's stop must not undo it
            gc.collect()
            gc.freeze()
            self._froze = True
        gc.set_threshold(max(self._threshold, before[0]), *before[1:])

    def attend(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the thread of `loop`: looks every few seconds, too, until it is stopped."""
        if self._before is not None:
            loop.call_later(LOOK_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._before is None:
            return
        if gc.isenabled():  # else the app has turned it off meanwhile
            gc.collect(YOUNG)
        self.attend(loop)

    def stop(self) -> None:
        """Idempotent."""
        before, self._before = self._before, None
        if before is not None:
            gc.set_threshold(*before)
            if self._froze:
                self._froze = False
                gc.unfreeze()

    def __repr__(self) -> str:
        return f"<Collector {self._threshold}>"

"""Threads for plain tasks, as few at work as will do.

Python lets one thread run at a time, and each that reads or writes a socket loses its turn to another that waits for
one. With eight threads at work on short tasks the consumer's thread waits behind all of them; with one it does not, and
nothing is slower for it. So what is handed over waits a moment for a thread that is at work already.
"""

import itertools
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread

from legit_embedding.threads import DaemonThreads, Work

PATIENCE_S = 0.002
"""Some four of the shortest tasks with a stored result; not to be noticed beside the way of a message."""

WINDOW = 10
"""Over how many looks the pace is taken: within one, Python may not have let the threads run at all."""

LONG = 25
"""In how many looks all that waits should have begun, at the pace of the window."""


class Pace:
    """How many threads to wake, from looks at regular times at how many calls wait and how many were begun ever.

    One more, then twice as many each time, while those at work begin nothing: they are blocked. As many again as are at
    work where they do go on, but at a pace at which the last one would wait for long.
    """

    def __init__(self, begun: int) -> None:
        self._begun = self._window_begun = begun
        self._looks = 0
        self._woken = 0

    def look(self, *, waiting: int, begun: int, at_work: int) -> int:
        """How many to wake now."""
        since, self._begun = begun - self._begun, begun
        self._looks += 1
        if since <= self._woken:  # what the woken ones took is no sign that the others go on
            self._woken = min(waiting, self._woken * 2 or 1)
            return self._woken
        self._woken = 0
        if self._looks < WINDOW:
            return 0
        in_window, self._window_begun = begun - self._window_begun, begun
        self._looks = 0
        return at_work if waiting * WINDOW > in_window * LONG else 0


class PatientThreads(DaemonThreads):
    """What is handed over while a thread is at work waits for it, and after `patience_s` seconds wakes others.

    A watcher sees to that, a thread of its own, which sleeps where nothing waits. `pause` is how it passes the time.
    """

    def __init__(
        self,
        size: int,
        name: str,
        initializer: Callable[[], object] = lambda: None,
        *,
        patience_s: float = PATIENCE_S,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(size, name, initializer)
        self._patience_s = patience_s
        self._pause = pause
        self._at_work = 0
        self._waking = False
        self._watched = False
        self._takes = itertools.count(1)
        self._taken = 0
        # Queues, because their `put` takes no lock that a signal's handler could find taken.
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._alarms: SimpleQueue[None] = SimpleQueue()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: D102  as its base's
        super().shutdown(wait, cancel_futures=cancel_futures)
        for _ in range(self._size):
            self._wakes.put(None)
        self._alarms.put(None)

    def _too_few(self, calls: int) -> bool:
        return self._serving < min(calls, 1)

    def _start_thread(self) -> None:
        if not self._started:
            Thread(target=self._watch, name=f"{self._name}-watcher", daemon=True).start()
        super()._start_thread()
        self._at_work += 1

    def _lose_thread(self) -> None:
        super()._lose_thread()
        self._at_work -= 1

    def _put(self, work: Work) -> None:
        self._queue.put(work)
        if not self._at_work and not self._waking:
            self._waking = True
            self._wakes.put(None)
        elif not self._watched:
            self._watched = True
            self._alarms.put(None)

    def _take(self) -> Work | None:
        while True:
            try:
                work = self._queue.get_nowait()
            except Empty:
                self._rest()
            else:
                self._taken = next(self._takes)
                return work

    def _rest(self) -> None:
        with self._lock:
            self._at_work -= 1
        # Looked at again, now that whoever puts something in sees one fewer at work.
        if self._queue.empty():
            self._wakes.get()
        with self._lock:
            self._at_work += 1
            self._waking = False

    def _watch(self) -> None:
        while not self._closed:
            self._alarms.get()
            pace = Pace(self._taken)
            while not self._closed:
                self._pause(self._patience_s)
                self._watched = False  # before the look: whoever puts something in from now on raises an alarm again
                waiting = self._queue.qsize()
                if not waiting:
                    break
                self._watched = True
                self._wake(pace.look(waiting=waiting, begun=self._taken, at_work=self._at_work))

    def _wake(self, count: int) -> None:
        with self._lock:
            for _ in range(count):
                if self._wakes.qsize() < self._serving - self._at_work:
                    self._wakes.put(None)
                elif self._serving < self._size and not self._closed:
                    try:
                        self._start_thread()
                    except RuntimeError:  # none can be started: they wait for those that there are
                        break
                else:
                    break

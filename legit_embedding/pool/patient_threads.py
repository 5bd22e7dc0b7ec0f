"""The threads of plain tasks, as few of them at work as will do: see `patience` for when that is."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

from legit_embedding.pool.patience import Patience
from legit_embedding.threads import DaemonThreads, Work

LOOK_AGAIN: Work = (Future(), lambda: None)
"""For a thread that rests: something has been held back that none at work will take."""


class CpuTime:
    """The CPU time of the threads that have joined it, and live; of none where the system does not tell (macOS)."""

    def __init__(self) -> None:
        self._clocks: set[int] = set()

    def join(self) -> None:
        """The calling thread's counts from now on."""
        if hasattr(time, "pthread_getcpuclockid"):
            self._clocks.add(time.pthread_getcpuclockid(threading.get_ident()))

    def total_s(self) -> float:
        """In seconds; less than before where a thread has ended."""
        total_s = 0.0
        for clock in self._clocks.copy():
            try:
                total_s += time.clock_gettime(clock)
            except OSError:  # its thread has ended
                self._clocks.discard(clock)
        return total_s


class Seen(NamedTuple):
    """What a look has found."""

    at_s: float
    cpu_s: float
    offered: int


class PatientThreads(DaemonThreads):
    """While it is patient, a call that is offered while others run waits for the first thread that has done its own.

    A thread of its own looks after that, and lets go of what waits in vain; it sleeps where nothing is offered. Built
    on the thread that offers, whose CPU time counts, too.
    """

    def __init__(
        self,
        size: int,
        name: str,
        initializer: Callable[[], object] = lambda: None,
        *,
        cpu_time: CpuTime | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cpu_time = cpu_time or CpuTime()
        self._cpu_time.join()

        def enter() -> None:
            self._cpu_time.join()
            initializer()

        super().__init__(size, name, enter)
        self._clock = clock
        self._patience = Patience()
        self._held: deque[Work] = deque()
        self._offered = 0
        self._seen = Seen(0.0, 0.0, 0)
        self._watched = False
        # Not an Event: a signal's handler could find its lock taken.
        self._alarms: SimpleQueue[None] = SimpleQueue()

    def watch(self) -> None:
        """Starts looking. Without it nothing is ever held back; nor without an interpreter's lock to wait for."""
        if getattr(sys, "_is_gil_enabled", lambda: True)():
            threading.Thread(target=self._watch, name=f"{self._name}-watch", daemon=True).start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: D102  as its base's
        super().shutdown(wait, cancel_futures=cancel_futures)
        with suppress(IndexError):
            while True:
                self._held.popleft()[0].cancel()
        self._alarms.put(None)

    def _put(self, work: Work) -> None:
        self._offered += 1
        if self._patience.holds:
            self._held.append(work)
            if not self._may_wait():  # asked now that a thread which has done its call finds it
                # Not let go of here: a signal's handler could wait for a call that this thread has in its hands.
                super()._put(LOOK_AGAIN)
        else:
            super()._put(work)
        if not self._watched:
            self._watched = True
            self._alarms.put(None)

    def _take(self) -> Work | None:
        while True:
            # What is in the queue has not been held back, or has been for long enough.
            if self._held and self._queue.empty():
                with suppress(IndexError):
                    return self._held.popleft()
            work = super()._take()
            if work is not LOOK_AGAIN:
                return work

    def _may_wait(self) -> bool:
        """Whether it is patient still, and another call runs, or is in the queue, whose thread comes back for more."""
        return self._patience.holds and len(self._unfinished) > len(self._held)

    def _let_go(self) -> None:
        """On the watcher's thread: whoever is free takes what has been held back."""
        with suppress(IndexError):
            while True:
                work = self._held.popleft()
                super()._put(work)
                if self._closed:  # it may have been put behind what a shutdown has emptied
                    work[0].cancel()

    def _watch(self) -> None:
        try:
            while not self._closed:
                self._alarms.get()
                pause_s: float | None = self.begin()
                while pause_s is not None and not self._closed:
                    with suppress(Empty):
                        self._alarms.get(timeout=pause_s)
                    pause_s = self.look()
        finally:  # nobody looks any more: nothing may wait
            self._patience.holds = False
            self._let_go()

    def begin(self) -> float:
        """Something has been offered: how long until the first look."""
        self._seen = self._see()
        return self._patience.next_look_s

    def look(self) -> float | None:
        """Decides, and lets go of what must not wait: how long until the next look; None where nothing is offered."""
        before, self._seen = self._seen, self._see()
        offered = self._seen.offered - before.offered
        self._patience.look(
            elapsed_s=self._seen.at_s - before.at_s,
            cpu_s=self._seen.cpu_s - before.cpu_s,
            late=len(self._held) > offered,
            idle=not offered and not self._held,
        )
        if not self._patience.holds:
            self._let_go()
            if not offered:
                self._watched = False
                if self._offered == self._seen.offered:  # looked at again: whoever offers from now on raises an alarm
                    return None
        return self._patience.next_look_s

    def _see(self) -> Seen:
        return Seen(self._clock(), self._cpu_time.total_s(), self._offered)

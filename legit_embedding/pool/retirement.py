"""When a worker has done enough: `--max-tasks-per-child` and `--max-memory-per-child`, for a pool without children.

Celery's prefork pool replaces a child that has reached a limit. Here the process is the only child there is: it takes
nothing more, finishes what runs, and ends with code 0, for its supervisor to start another one.
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from celery.exceptions import ImproperlyConfigured

STATM = Path("/proc/self/statm")

LOOK_S = 1.0
"""How often the memory is looked at, at most."""


def resident_kib() -> int:
    """Memory that this process has in RAM now, in KiB; where the system does not tell, the most it ever had."""
    try:
        pages = int(STATM.read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most // 1024 if sys.platform == "darwin" else most  # bytes there
    return pages * resource.getpagesize() // 1024


class Retirement:
    """Says when a limit has been reached, once.

    `max_tasks` counts tasks, `max_memory_kib` is Celery's own unit; None or 0 is no limit.
    """

    def __init__(
        self,
        *,
        max_tasks: int | None,
        max_memory_kib: int | None,
        resident_kib: Callable[[], int] = resident_kib,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_tasks = max_tasks
        self._max_memory_kib = max_memory_kib
        self._resident_kib = resident_kib
        self._now_s = now_s
        self._next_look_s = 0.0
        self._said = False

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return bool(self._max_tasks or self._max_memory_kib)

    def require_room(self) -> None:
        """Called before the first task.

        Raises:
            ImproperlyConfigured: the memory limit is exceeded already: the worker could do one task in each life.
        """
        if self._max_memory_kib and (found := self._resident_kib()) >= self._max_memory_kib:
            raise ImproperlyConfigured(
                f"worker_max_memory_per_child is {self._max_memory_kib} KiB, but this worker takes {found} KiB before "
                "its first task, with all that its lifespan has loaded: set it well above that, or take it away"
            )

    def reason(self, served: int) -> str | None:
        """Why the worker has to end, now that it has done `served` tasks; told once."""
        if self._said or not self.limited:
            return None
        found = self._reason(served)
        self._said = found is not None
        return found

    def _reason(self, served: int) -> str | None:
        if self._max_tasks and served >= self._max_tasks:
            return f"it has done {served} tasks, and worker_max_tasks_per_child is {self._max_tasks}"
        if self._max_memory_kib and self._now_s() >= self._next_look_s:
            self._next_look_s = self._now_s() + LOOK_S
            found = self._resident_kib()
            if found > self._max_memory_kib:
                return f"it takes {found} KiB, and worker_max_memory_per_child is {self._max_memory_kib} KiB"
        return None

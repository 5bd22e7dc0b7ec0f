"""A task in the pool: what Celery handed over, and what has become of it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

SOFT, HARD, TERMINATED, ABANDONED = "soft", "hard", "terminated", "abandoned"
"""Why a job is interrupted: a time limit, a revoke with `terminate`, or a cold shutdown, which leaves it unacked."""


class Pid(int):
    """The process that Celery shows as running a task; and which job is meant where Celery asks to end the process."""

    job_id: int

    @classmethod
    def of(cls, pid: int, job_id: int) -> "Pid":
        """`pid`, for one job."""
        made = cls(pid)
        made.job_id = job_id
        return made


@dataclass(slots=True, eq=False, weakref_slot=True)
class Job:
    """One call of `apply_async`. Celery holds it weakly and calls its `terminate`."""

    id: int
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    callback: Callable[..., Any] | None
    error_callback: Callable[..., Any] | None
    timeout_callback: Callable[..., Any] | None
    soft_limit_s: float | None
    hard_limit_s: float | None
    interrupt: Callable[["Job", str, int | None], None]
    is_async: bool = False
    handed_over: bool = False
    reason: str | None = None
    signal: int | None = None
    task: "asyncio.Task[None] | None" = None
    future: "Future[None] | None" = None
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    over: bool = False
    """Reported, or dropped; nothing is reported of it any more."""

    @property
    def limited(self) -> bool:
        """Whether it has a time limit."""
        return bool(self.soft_limit_s or self.hard_limit_s)

    @property
    def doomed(self) -> bool:
        """Whether it has been interrupted for good; a soft limit leaves the choice to the body."""
        return self.reason is not None and self.reason != SOFT

    def terminate(self, signal: int | None = None) -> None:
        """Interrupts the job; Celery calls it twice, and the second time does nothing."""
        self.interrupt(self, TERMINATED, signal)

    def run(self) -> tuple[bool, Any]:
        """Calls the tracer: (True, its result) or (False, the exception). Nothing crosses into the event loop."""
        try:
            return True, self.target(*self.args, **self.kwargs)
        except BaseException as error:  # noqa: BLE001  SystemExit of a body must end the task, not the loop
            return False, error

    def translate(self, error: BaseException) -> BaseException:
        """A cancellation that stands for the soft limit reaches the body as `SoftTimeLimitExceeded`."""
        if isinstance(error, asyncio.CancelledError) and self.reason == SOFT and self.task is not None:
            self.reason = None
            self.task.uncancel()
            return SoftTimeLimitExceeded()
        return error

    def cancel_timers(self) -> None:
        """The limits no longer count."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

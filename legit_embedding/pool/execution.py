"""What runs a job, and what interrupts it: `async def` bodies on the loop, plain ones in threads.

On the loop's thread, but for `start_at_once`.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from functools import partial
from typing import Any, Protocol

from celery.exceptions import Terminated, WorkerLostError

from legit_embedding.pool import identity
from legit_embedding.pool.bridge import Drive
from legit_embedding.pool.job import HARD, SOFT, Job
from legit_embedding.threads import DaemonThreads

logger = logging.getLogger(__name__)

NOBODYS = Context()
"""The timers' own. A cancelled one stays in asyncio's heap for as long as it would have run, and its context with it:
the job's would keep the message."""

GRACE_S = 5.0
"""How long an interrupted body may clean up before its outcome is reported without it."""


class Report(Protocol):
    """Told what became of a job, on any thread but the consumer's. The first report of a job counts."""

    def __call__(self, job: Job, *, ok: bool, result: Any) -> None: ...  # noqa: D102


class Execution:
    """Starts jobs, counts their limits, interrupts them; reports each.

    `threads` run the plain ones, `call` runs a function on the loop soon, `tell` passes a callback of Celery's and its
    arguments on to the consumer's thread.
    """

    def __init__(
        self,
        *,
        threads: DaemonThreads,
        call: Callable[..., bool],
        report: Report,
        tell: Callable[[Callable[..., Any] | None, tuple[Any, ...]], None],
    ) -> None:
        self._threads = threads
        self._call = call
        self._report = report
        self._tell = tell

    def start_at_once(self, job: Job) -> bool:
        """On the consumer's thread: a plain job goes straight to a thread that runs already; whether it did."""
        if job.is_async:
            return False
        # Set before anybody can run it: who interrupts it from now on cancels the future.
        job.future = Future()
        if self._threads.offer(job.future, partial(self._run_in_thread, job)):
            return True
        job.future = None
        return False

    def start(self, job: Job) -> None:
        """Lets it run; one that has been interrupted on its way here never does."""
        try:
            self._start(job)
        except Exception as error:
            logger.exception("a task could not be started")
            self._report(job, ok=False, result=WorkerLostError(f"the task could not be started: {error!r}"))

    def interrupt(self, job: Job, reason: str, signal: int | None = None) -> None:
        """Once: a second cancellation would hit the body in its cleaning up."""
        if job.over or job.doomed:
            return
        job.reason, job.signal = reason, signal
        job.cancel_timers()
        if job.task is not None:
            job.task.cancel()
            # A body that will not end has its outcome reported without it, so that its slot is free.
            job.timers.append(asyncio.get_running_loop().call_later(GRACE_S, self._give_up, job, context=NOBODYS))
        elif (future := job.future) is not None:  # looked up once: the consumer's thread may be taking it away again
            try:
                if not future.cancel():  # it runs, and a thread cannot be stopped
                    self._threads.leave_behind(future)
            finally:
                self._give_up(job)

    def _start(self, job: Job) -> None:
        if job.over:
            return
        if job.doomed:
            self._give_up(job)
            return
        if job.is_async:
            job.task = asyncio.get_running_loop().create_task(self._run(job), name=f"legit-job-{job.id}")
            # One that is cancelled before its first step, by whomever, never reports by itself.
            job.task.add_done_callback(partial(self._ended, job))
        else:
            job.future = self._threads.submit(self._run_in_thread, job)

    async def _run(self, job: Job) -> None:
        identity.enter_scope(job)
        if job.limited:
            self._arm(job)
        try:
            ok, result = await Drive(job.run, translate=job.translate)
        except BaseException as error:  # noqa: BLE001  a cancellation that no body was there to see
            ok, result = False, error
        if job.timers:
            job.cancel_timers()
        self._report(job, ok=ok, result=result)

    def _ended(self, job: Job, _task: "asyncio.Task[None]") -> None:
        job.task = None  # its context holds the job: as a cycle both, and the message, would wait for the collector
        if not job.over:
            self._report(job, ok=False, result=asyncio.CancelledError())

    def _run_in_thread(self, job: Job) -> None:
        if job.over:  # given up in the moment in which this thread took it
            return
        if job.doomed:  # interrupted before it had a future
            self._give_up(job)
            return
        if job.limited:
            self._call(self._arm, job)
        ok, result = job.run()
        if job.limited:
            self._call(job.cancel_timers)
        self._report(job, ok=ok, result=result)

    def _arm(self, job: Job) -> None:
        """The limits count from the start of the body, not from when it began to wait for a thread."""
        loop = asyncio.get_running_loop()
        for limit_s, reason in ((job.soft_limit_s, SOFT), (job.hard_limit_s, HARD)):
            if limit_s and not job.doomed:
                job.timers.append(loop.call_later(limit_s, self._exceed, job, reason, limit_s, context=NOBODYS))

    def _exceed(self, job: Job, reason: str, limit_s: float) -> None:
        if reason == HARD:
            self.interrupt(job, HARD)
        elif not job.over:
            self._tell(job.timeout_callback, (True, limit_s))
            if job.task is not None and not job.task.done():
                job.reason = SOFT
                job.task.cancel()

    def _give_up(self, job: Job) -> None:
        self._report(job, ok=False, result=Terminated(job.signal))

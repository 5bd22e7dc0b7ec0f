"""The pool: `async def` tasks on the event loop, plain `def` tasks in threads, every callback on the consumer's thread.

Celery's state sets and its request callbacks know no locks, so nothing of Celery's is called from the loop: what is
done goes into a deque, one wake-up of the consumer's thread empties it, and acks happen there.

A signal may interrupt the consumer's thread between any two lines, and Celery shuts down inside its handler. So that
thread takes no lock here, and what waits in a shutdown waits for nothing that the interrupted line had still to do.
"""

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from celery.concurrency.base import BasePool
from celery.exceptions import WorkerLostError
from celery.platforms import EX_FAILURE, EX_OK
from celery.signals import worker_process_init, worker_process_shutdown
from celery.worker import state as worker_state

from legit_embedding.pool import identity
from legit_embedding.pool.collector import Collector, default_threshold
from legit_embedding.pool.controller import allow_reentry, cancel_requests, serve_acks_and_timers
from legit_embedding.pool.execution import GRACE_S, Execution
from legit_embedding.pool.job import ABANDONED, Job, Pid
from legit_embedding.pool.logs import others_may_log
from legit_embedding.pool.loop import LoopThread
from legit_embedding.pool.outcomes import callback_of, let_go
from legit_embedding.pool.patient_threads import PatientThreads
from legit_embedding.pool.retirement import Retirement
from legit_embedding.pool.slots import Slots
from legit_embedding.threads import DaemonThreads
from legit_embedding.waker import Waker

logger = logging.getLogger(__name__)

DEFAULT_THREADS = 16
DEFAULT_EXIT_TIMEOUT_S = 30.0
COLD_TIMEOUT_S = GRACE_S + 1.0
"""How long a cold shutdown waits for interrupted bodies, should a body block the loop, which counts the grace."""

REQUEST = 2
"""Where a task's request stands among the tracer's arguments: name, id, request, body, ..."""

LOOK_S = 0.5
"""How often a thread that waits for jobs looks whether the loop still lives."""


def _asked(flag: bool | int | None) -> bool:
    """Celery's own reading of its two flags: an exit code is a yes, 0 too."""
    return flag is not None and flag is not False


def _limits(task: Any, args: tuple[Any, ...], soft_s: float | None, hard_s: float | None) -> tuple[Any, Any]:
    """The limits of a call, soft and hard, else those that its task has now.

    Celery passes those that the task had when the worker connected: its remote command `time_limit` would change
    nothing before the next connection.
    """
    if task is None or len(args) <= REQUEST:
        return soft_s, hard_s
    hard_of_call, soft_of_call = args[REQUEST].get("timelimit") or (None, None)
    return soft_of_call or task.soft_time_limit, hard_of_call or task.time_limit


class TaskPool(BasePool):
    """`-P legit_async`. Built by Celery's worker, which calls every public method on the consumer's thread."""

    signal_safe = False
    is_green = False
    task_join_will_block = True
    body_can_be_buffer = True
    # The worker's own semaphore holds back what exceeds the concurrency, where it can still be revoked.
    uses_semaphore = True
    limit: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count(1)
        self._new: deque[Job] = deque()
        self._done: deque[tuple[Callable[..., Any] | None, tuple[Any, ...], Job | None]] = deque()
        self._freed: deque[int] = deque()
        self._claim = threading.Lock()  # never taken on the consumer's thread
        self._loop_woken = False
        self._waker = Waker()
        self._hub: Any = None
        self._slots = Slots(self.options.get("semaphore"))
        self._loop: LoopThread | None = None
        self._execution: Execution | None = None
        self._tasks: Mapping[str, Any] = {}
        self._threads: DaemonThreads | None = None
        self._calls: DaemonThreads | None = None
        self._closing = False
        self._pid = os.getpid()
        self._finished = itertools.count(1)  # where there is no hub, many threads count
        self._served = 0
        threshold = self.app.conf.get("legit_async_gc_threshold")
        self._collector = Collector(default_threshold(self.limit or 0) if threshold is None else threshold)
        self._retirement = Retirement(
            max_tasks=self.options.get("maxtasksperchild"), max_memory_kib=self.options.get("max_memory_per_child")
        )

    # -- life cycle, on the consumer's thread --------------------------------------------------------------------------

    def on_start(self) -> None:
        """Returns when the loop runs and the app's lifespan has been entered.

        Raises:
            Exception: what entering the lifespan raised.
            ImproperlyConfigured: USE_FAST_LOCALS is set, or the process takes more memory already than
                `worker_max_memory_per_child` gives it.
            WorkerShutdown, WorkerTerminate: a signal came first.
        """
        # As in each of prefork's children: tracing, Django and others set themselves up on it.
        worker_process_init.send(sender=None)
        conf = self.app.conf
        # One for plain tasks and one for the tracer's blocking calls: a hundred slow plain tasks must not keep the
        # results of others from being stored.
        size = conf.get("legit_async_threads") or DEFAULT_THREADS
        self._threads = PatientThreads(size, "legit-task", self.app.set_current)
        self._calls = DaemonThreads(size, "legit-io", self.app.set_current)
        self._loop = LoopThread(self.app, executor=self._calls, on_death=self._on_loop_death)
        self._tasks = self.app.tasks  # a cached property whose every look-up is slow
        self._execution = Execution(
            threads=self._threads,
            call=self._loop.call,
            report=self._report,
            tell=self._tell,
        )
        self._loop.start()
        try:
            identity.install(self.app)  # now, when the lifespan may have brought tasks of its own
            self._retirement.require_room()
            self._threads.watch()
        except Exception:
            self._close()
            raise
        self._collector.start()
        self._loop.call(self._collector.attend, self._loop.loop)

    def register_with_event_loop(self, loop: Any) -> None:
        """Completions wake this hub from now on; called again after each lost connection."""
        self._hub = loop
        allow_reentry(loop)
        loop.add_reader(self._waker, self._on_wake)

    def flush(self) -> None:
        """Celery has lost its connection, and cleared its semaphore."""
        self._slots.recount()

    @others_may_log()
    def on_stop(self) -> None:
        """Warm: returns when every job is done and reported, or the time for it is up; cold: at the latest soon.

        What is left of a warm stop is cancelled, and its messages go back to their queues.
        """
        cold = _asked(worker_state.should_terminate)
        self._closing = True
        timeout_s = COLD_TIMEOUT_S if cold else self.app.conf.get("legit_async_drain_timeout_s")
        self._await_jobs(timeout_s, hub=None if cold else self._hub)
        if self._jobs and timeout_s is not None and not cold and self._loop is not None:
            logger.warning("%d tasks still run after %g s: their messages go back", len(self._jobs), timeout_s)
            cancel_requests(self)
            self._give_back()
        self._close()

    @others_may_log()
    def on_terminate(self) -> None:
        """Cold: interrupts every job, leaves its message unacknowledged, and does not wait for long."""
        self._closing = True
        self._give_back()
        self._close()

    @others_may_log()
    def wait_until_idle(self, timeout_s: float) -> None:
        """Returns when no job runs any more, or after that many seconds; a cold shutdown has to follow."""
        self._closing = True
        self._await_jobs(timeout_s)

    def _give_back(self) -> None:
        for job in list(self._jobs.values()):
            self._interrupt(job, ABANDONED, None)
        self._await_jobs(COLD_TIMEOUT_S)

    def _await_jobs(self, timeout_s: float | None, *, hub: Any = None) -> None:
        """Reports what gets done. The hub no longer runs; where one is given, its acks and timers are served."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        # In a signal's handler that has interrupted `on_apply`, which goes on only after us. Unless a thread has its
        # job already, that never starts, and its message, unacknowledged, goes back to its queue.
        for job in list(self._jobs.values()):
            if not job.handed_over:
                if job.future is not None and not job.future.cancel():
                    job.handed_over = True
                else:
                    job.over = True
                    self._jobs.pop(job.id, None)
        loop = self._loop
        # The handler of another signal may stop the pool meanwhile: then there is no loop any more to wait for.
        while self._jobs and loop is not None and loop is self._loop and loop.alive:
            self._waker.clear()
            self._drain()
            if hub is not None:
                serve_acks_and_timers(hub)
            loop.call(self._start_new)  # to wake it may be what `on_apply` had still to do
            if not self._jobs or (deadline_s is not None and time.monotonic() >= deadline_s):
                break
            self._waker.wait(LOOK_S)
        self._drain()

    def _close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None:
            return
        loop.stop(self.app.conf.get("legit_async_lifespan_exit_timeout_s") or DEFAULT_EXIT_TIMEOUT_S)
        self._drain()
        for threads in (self._threads, self._calls):
            if threads is not None:
                threads.shutdown(cancel_futures=True)
        if self._hub is not None:
            self._hub.remove_reader(self._waker)
        self._waker.close()
        self._collector.stop()
        worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=0)

    def _on_loop_death(self) -> None:
        """On the loop's dying thread: fails every job and stops the worker, which could only hang."""
        logger.critical("the event loop of the pool has ended; the worker stops")
        self._closing = True
        worker_state.should_stop = EX_FAILURE
        self._waker.wake()
        for job in list(self._jobs.values()):
            self._report(job, ok=False, result=WorkerLostError("the event loop of the pool has ended"))

    # -- size ----------------------------------------------------------------------------------------------------------

    def grow(self, n: int = 1) -> None:
        """Lets `n` more tasks run at once."""
        self.limit += n
        self._slots.grow(n)

    def shrink(self, n: int = 1) -> None:
        """Lets `n` fewer tasks run at once; those that run already go on."""
        self.limit = max(0, self.limit - n)
        self._slots.shrink(n)

    def _get_info(self) -> dict[str, Any]:
        """What `inspect stats` and Flower show of the pool."""
        info: dict[str, Any] = super()._get_info()
        info.update(
            {
                "processes": [os.getpid()],
                "threads": self.app.conf.get("legit_async_threads") or DEFAULT_THREADS,
                "max-tasks-per-child": self.options.get("maxtasksperchild") or "N/A",
                "put-guarded-by-semaphore": True,
                "timeouts": [self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0],
                "in-flight": len(self._jobs),
                "served": self._served,
            }
        )
        return info

    # -- jobs in, on the consumer's thread -----------------------------------------------------------------------------

    def on_apply(  # noqa: D102  Celery's own
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        error_callback: Callable[..., Any] | None = None,
        timeout_callback: Callable[..., Any] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> Job:
        task = self._tasks.get(args[0]) if args else None
        soft_timeout, timeout = _limits(task, args, soft_timeout, timeout)
        job = Job(
            id=next(self._numbers),
            target=target,
            args=args,
            kwargs=kwargs or {},
            callback=callback,
            error_callback=error_callback,
            timeout_callback=timeout_callback,
            soft_limit_s=soft_timeout or self.options.get("soft_timeout"),
            hard_limit_s=timeout or self.options.get("timeout"),
            interrupt=self._interrupt,
            is_async=getattr(task, "is_async", False),
        )
        if self._closing or _asked(worker_state.should_stop):
            # What waited for a slot gets here while a shutdown frees them, or before the consumer has seen the signal.
            # Not accepted, it is not acknowledged, and its message goes back to its queue.
            return job
        self._slots.take()
        # Known before it is accepted, which is when it can first be revoked.
        self._jobs[job.id] = job
        if accept_callback is not None:
            accept_callback(Pid.of(self._pid, job.id), time.monotonic())
        execution, loop = self._execution, self._loop  # once: a signal's handler may close it before the next line
        if execution is not None and execution.start_at_once(job):
            job.handed_over = True
            return job
        self._new.append(job)
        job.handed_over = True
        if not self._loop_woken and loop is not None:
            self._loop_woken = True
            loop.call(self._start_new)
        return job

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Interrupts the job that was accepted as `pid`."""
        # During a cold shutdown nobody else reports what is done. But a slot that were free now would go to a task that
        # waits, in the middle of that shutdown: Celery cancels all tasks first, and only then says that it stops.
        self._report_done()
        if self._freed:
            self._waker.wake()
        job = self._jobs.get(pid.job_id) if isinstance(pid, Pid) else None
        if job is not None:
            job.terminate(signal)

    def restart(self) -> None:
        """Celery has reloaded task modules for `pool_restart`. There are no children: loop and lifespan go on."""
        identity.install(self.app)

    def _interrupt(self, job: Job, reason: str, signal: int | None) -> None:
        loop, execution = self._loop, self._execution
        if loop is not None and execution is not None:
            loop.call(execution.interrupt, job, reason, signal)

    # -- on the loop's thread ------------------------------------------------------------------------------------------

    def _start_new(self) -> None:
        self._loop_woken = False  # before the deque is emptied, so that what comes from now on wakes again
        execution = self._execution
        while self._new and execution is not None:
            execution.start(self._new.popleft())

    # -- jobs out ------------------------------------------------------------------------------------------------------

    def _report(self, job: Job, *, ok: bool, result: Any) -> None:
        """Any thread but the consumer's. The first report of a job counts: one outcome on every path."""
        with self._claim:
            if job.over:
                return
            job.over = True
        self._done.append((*callback_of(job, ok=ok, result=result), job))
        self._jobs.pop(job.id, None)  # after the line above: whoever waits for the jobs drains once more after them
        self._wake_consumer()

    def _tell(self, callback: Callable[..., Any] | None, args: tuple[Any, ...]) -> None:
        self._done.append((callback, args, None))
        self._wake_consumer()

    def _wake_consumer(self) -> None:
        if self._hub is None and self.options.get("threads"):
            self._drain()  # no hub in this worker: as Celery's threads pool, from where we are
        else:
            self._waker.wake()

    def _on_wake(self) -> None:
        # What is done meanwhile is reported with the rest: to wake us for it would cost a turn of the hub for nothing.
        self._waker.answer()
        try:
            self._drain()
        finally:
            self._waker.rearm()
        if self._done:
            self._drain()

    def _drain(self) -> None:
        """On the consumer's thread: calls Celery back, acks included, and frees the slots."""
        self._report_done()
        while self._freed:
            try:
                self._freed.popleft()
            except IndexError:  # as below
                return
            self._slots.give_back()

    def _report_done(self) -> None:
        while self._done:
            try:
                callback, args, job = self._done.popleft()
            except IndexError:  # a signal handler's own drain, between the two lines above
                return
            try:
                if callback is not None:
                    callback(*args)
                let_go(args)
            except Exception:
                logger.exception("a callback of a finished task failed")
            finally:
                if job is not None:
                    self._served = next(self._finished)
                    self._freed.append(job.id)
        if self._retirement.limited:
            self._retire_if_due()

    def _retire_if_due(self) -> None:
        reason = self._retirement.reason(self._served)
        if reason is not None and worker_state.should_stop is None:
            logger.warning("the worker finishes what runs, and ends: %s", reason)
            worker_state.should_stop = EX_OK

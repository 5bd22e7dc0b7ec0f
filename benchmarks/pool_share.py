"""The pool's own share of the CPU time of a task: handing over, both wake-ups, calling back.

`benchmarks.pools --share` runs it. On a real hub of kombu's stands, in Celery's place, a feeder that hands jobs to the
pool and counts their callbacks; in the tracer's place a function that calls the body. The same feeder calling the same
function and callbacks by itself is the measure: what takes longer than that is the pool's. Counted is the CPU time of
the whole process, all threads, user and system.

Jobs come in two ways. In a `stream` one comes with each turn of the hub, as messages do, up to 256 in flight, and they
share wake-ups. `one by one`, the next starts when the last has given its slot back, so that each pays for two wake-ups
alone: the upper bound, and close to what a worker pays whose broker is slower than its pool. Celery's threads pool has
no slots, so there it is measured in a stream alone.
"""

import asyncio
import gc
import json
import socket
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from celery.concurrency.base import BasePool
from celery.concurrency.thread import TaskPool as ThreadsPool
from kombu.asynchronous import Hub
from kombu.asynchronous.semaphore import LaxBoundedSemaphore
from rich.console import Console
from rich.table import Table

from benchmarks.null_tasks import app, async_null, plain_null
from legit_embedding.pool.legit_async import TaskPool

STREAM, ONE_BY_ONE = "stream", "one by one"
IN_FLIGHT = 256
THREADS = 8
WARM_UP_JOBS = 1000
BOUND_S = 300.0


def trace(name: str) -> tuple[int, None, float]:
    """In the place of Celery's tracer: calls the body, returns what the tracer does."""
    return 0, app.tasks[name].run(), 0.0


def trace_async_directly(name: str) -> tuple[int, None, float]:
    """The same for an async body without a loop: it never waits, so its first step is its last."""
    try:
        app.tasks[name].async_run().send(None)
    except StopIteration as end:
        return 0, end.value, 0.0
    raise AssertionError("the null task waits for something")


class NoPool(BasePool):
    """The measure: calls where it stands."""

    uses_semaphore = True

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        callback: Callable[..., Any],
        accept_callback: Callable[..., Any],
        **_: Any,
    ) -> None:
        accept_callback(0, time.monotonic())
        callback(target(*args, **kwargs))
        self.options["semaphore"].release()


class Feeder:
    """In the place of broker and consumer: hands jobs through a hub to a pool of that class. A context manager."""

    def __init__(self, kind: type[BasePool], mode: str, task: Any, target: Callable[..., Any]) -> None:
        self._one_by_one = mode == ONE_BY_ONE
        self._name, self._target = task.name, target
        self._hub = Hub()
        self._turns = self._hub.create_loop()
        self._to_come = 0
        self._done: list[None] = []  # its `append` is safe in the threads from which Celery's threads pool calls back
        self._failure: Any = None
        # Never emptied, so that the hub finds it readable in each turn.
        self._broker, self._writer = socket.socketpair()
        self._writer.send(b"\0")
        size = THREADS if kind is ThreadsPool else IN_FLIGHT
        self._semaphore = LaxBoundedSemaphore(1 if self._one_by_one else size)
        self._pool = kind(size, app=app, semaphore=self._semaphore, threads=False)

    def run(self, jobs: int) -> float:
        """CPU seconds a job."""
        self._to_come = jobs
        self._done.clear()
        deadline_s = time.monotonic() + BOUND_S
        gc.collect()
        started_s = time.process_time()
        if not self._one_by_one:
            self._hub.add_reader(self._broker, self._on_readable)
        else:  # all wait for the one slot, where Celery keeps them
            for _ in range(jobs):
                self._semaphore.acquire(self._hand_over)
        while len(self._done) < jobs:
            next(self._turns)
            if self._failure is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{len(self._done)} of {jobs} jobs are done: {self._failure}")
        return (time.process_time() - started_s) / jobs

    def _on_readable(self) -> None:
        self._to_come -= 1
        if self._to_come == 0:
            self._hub.remove_reader(self._broker)
        if self._pool.uses_semaphore:
            self._semaphore.acquire(self._hand_over)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        self._pool.apply_async(
            self._target,
            args=(self._name,),
            kwargs={},
            accept_callback=self._on_accepted,
            callback=self._on_success,
            error_callback=self._on_failure,
        )

    def _on_accepted(self, _pid: int, _at_s: float) -> None:
        """Celery notes the start here."""

    def _on_success(self, _result: tuple[int, None, float]) -> None:
        self._done.append(None)

    def _on_failure(self, failure: Any) -> None:
        self._failure = failure

    def __enter__(self) -> Self:
        self._pool.start()
        self._pool.register_with_event_loop(self._hub)
        self.run(WARM_UP_JOBS)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()
        self._hub.close()
        self._broker.close()
        self._writer.close()


def bare_asyncio(mode: str, jobs: int) -> float:
    """For comparison: the same body in a task of asyncio's own, nothing around it; CPU seconds each."""
    at_once = 1 if mode == ONE_BY_ONE else IN_FLIGHT

    async def run() -> float:
        body, create_task = async_null.async_run, asyncio.create_task
        started_s = time.process_time()
        for _ in range(jobs // at_once):
            for task in [create_task(body()) for _ in range(at_once)]:
                await task
        return (time.process_time() - started_s) / (jobs // at_once * at_once)

    return asyncio.run(run())


CASES: tuple[tuple[str, type[BasePool], Any, str], ...] = (
    ("legit_async", TaskPool, async_null, STREAM),
    ("legit_async", TaskPool, plain_null, STREAM),
    ("threads", ThreadsPool, plain_null, STREAM),
    ("legit_async", TaskPool, async_null, ONE_BY_ONE),
    ("legit_async", TaskPool, plain_null, ONE_BY_ONE),
)


def report(*, tasks: int, rounds: int, console: Console) -> None:
    """Measures, prints the table, and one JSON line last."""
    spent: dict[tuple[str, str, str], list[float]] = {}
    added: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(rounds):
        for mode in (STREAM, ONE_BY_ONE):
            spent.setdefault(("asyncio.create_task", "async", mode), []).append(bare_asyncio(mode, tasks))
        for name, kind, task, mode in CASES:
            key = (name, "async" if task is async_null else "plain", mode)
            with Feeder(NoPool, mode, task, trace_async_directly if task is async_null else trace) as feeder:
                measure = feeder.run(tasks)
            with Feeder(kind, mode, task, trace) as feeder:
                found = feeder.run(tasks)
            spent.setdefault(key, []).append(found)
            added.setdefault(key, []).append(found - measure)
    results = [
        {
            "pool": name,
            "task": task,
            "mode": mode,
            "cpu_us_per_task": _microseconds(found),
            "added_us_per_task": _microseconds(added[key]) if (key := (name, task, mode)) in added else None,
        }
        for (name, task, mode), found in spent.items()
    ]
    table = Table(title=f"CPU of the pool alone, {tasks} jobs, median of {rounds}")
    for column in ("pool", "task", "jobs come", "µs in all", "µs that it adds"):
        table.add_column(column, justify="right" if "µs" in column else "left")
    for each in results:
        table.add_row(*("" if value is None else str(value) for value in each.values()))
    console.print(table)
    print(json.dumps({"share": results}))


def _microseconds(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1e6, 1)

"""What the benchmarks of whole workers share: the pools, a worker of each, and what it uses."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from benchmarks.null_tasks import FAILED, THREADS
from legit_embedding.testing.worker import WorkerProcess

ROOT = Path(__file__).parent.parent
UNAWAITED = "was never awaited"  # a pool that takes a coroutine for a result would look fast
TRANSPORTS = ("kombu", "legit")
"""To the broker: `BENCHMARK_TRANSPORT` of `benchmarks.null_tasks`."""

BOUND_S = 600.0
LOOK_S, LONGEST_LOOK_S = 0.005, 1.0
CHUNK = 1000
QUIET = ("-l", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat")


class RunFailedError(Exception):
    """A pool could not run the tasks; the message says why."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool as one starts it; `python` None is this interpreter."""

    name: str
    args: tuple[str, ...]
    python: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


POOLS = (
    Pool("solo", ("-P", "solo")),
    Pool("threads", ("-P", "threads", "-c", str(THREADS))),
    Pool("gevent", ("-P", "gevent", "-c", "64")),
    Pool("prefork", ("-P", "prefork", "-c", "2")),
    Pool("legit_async", ("-P", "legit_async", "-c", "256")),
)


class Worker(WorkerProcess):
    """A worker of another environment, if it is told one."""

    def __init__(self, pool: Pool, env: Mapping[str, str]) -> None:
        super().__init__("benchmarks.null_tasks", args=[*pool.args, *QUIET], env=env, cwd=ROOT)
        if pool.python is not None:
            self._command = [pool.python, "-m", "celery", *self._command[self._command.index("-A") :]]


@contextmanager
def worker_of(pool: Pool, env: Mapping[str, str]) -> Iterator[WorkerProcess]:
    """Ready, and stopped in good order even where the run has failed: prefork's children outlive a parent's kill."""
    worker = Worker(pool, env).start()
    try:
        yield worker
    finally:
        worker.stop()


def lay(client: redis.Redis, name: str, queued: Sequence[bytes]) -> None:
    """Puts messages into a list of the server."""
    for start in range(0, len(queued), CHUNK):
        client.rpush(name, *queued[start : start + CHUNK])


def await_done(left: Callable[[], int], worker: WorkerProcess, count: int) -> None:
    """Returns when nothing is left. Looks ever more seldom, and often towards the end: looking takes CPU time, too."""
    started_s = time.monotonic()
    while True:
        now_left, elapsed_s = left(), time.monotonic() - started_s
        if now_left == 0:
            return
        if not worker.running or elapsed_s > BOUND_S:
            raise RunFailedError(f"{now_left} of {count} tasks are left after {elapsed_s:.0f} s\n{worker.log[-2000:]}")
        rest_s = elapsed_s * now_left / (count - now_left) if now_left < count else LOOK_S * 20
        # The first estimates are far off: what counts is that a look can be late by a fiftieth of the run at most.
        time.sleep(min(LONGEST_LOOK_S, max(LOOK_S, min(rest_s / 4, elapsed_s / 50))))


def check(worker: WorkerProcess) -> None:
    """Looks into the log.

    Raises:
        RunFailedError: a task has failed.
    """
    failure = next((line for line in worker.log.splitlines() if FAILED in line or UNAWAITED in line), None)
    if failure is not None:
        raise RunFailedError(failure)


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # ended meanwhile
            continue
    found = [pid]
    for each in found:
        found.extend(child for child, parent in parents.items() if parent == each)
    return found


def cpu_seconds(pid: int) -> float:
    """What a process and its descendants have used, in user and in system mode."""
    ticks = 0
    for each in family(pid):
        values = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(values[11]) + int(values[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """The memory of a process and of its descendants; what they share counts for each."""
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in family(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def chosen(names: str | None, among: Sequence[Any]) -> list[Any]:
    """Those of the given names, which each of them has as `name`; all where none is given."""
    if names is None:
        return list(among)
    known = {each.name: each for each in among}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names.split(",")]

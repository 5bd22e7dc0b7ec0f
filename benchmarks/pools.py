"""What a pool costs: tasks that do nothing, through Celery's own pools and ours, on a real server.

    python -m benchmarks.pools [--tasks 5000] [--rounds 3] [--pools solo,threads] [--columns async,plain+results]
    python -m benchmarks.pools --share [--tasks 20000] [--rounds 5]

Each run starts a real worker and warms it up, then hands it the whole queue at once, and ends when the last task is
acknowledged. It gives tasks a second, and the CPU time that the worker's processes used for one. The runs take turns,
because machines are noisy; the table shows medians. `--share` measures the pool alone, without Celery around it.

A pool that is installed elsewhere takes part with `--custom-pool module:Class --custom-python path/of/its/python`: it
runs in that environment, which needs Celery with its Redis extra, and its `async def` tasks are Celery's own `Task`.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
from celery import Celery
from rich.console import Console
from rich.table import Table

from benchmarks import pool_share
from benchmarks.null_tasks import FAILED, THREADS
from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess

UNAWAITED = "was never awaited"  # a pool that takes a coroutine for a result would look fast
QUEUE, ASIDE = "celery", "benchmark:aside"
WARM_UP_TASKS = 500
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


@dataclass(frozen=True, slots=True)
class Column:
    """What is run: which task, and whether its result is stored."""

    name: str
    task: str
    results: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement."""

    tasks_per_s: float
    cpu_us_per_task: float
    rss_mib: float

    def __str__(self) -> str:
        return f"{self.tasks_per_s:.0f} tasks/s, {self.cpu_us_per_task:.0f} µs of CPU a task, {self.rss_mib:.0f} MiB"


POOLS = (
    Pool("solo", ("-P", "solo")),
    Pool("threads", ("-P", "threads", "-c", str(THREADS))),
    Pool("gevent", ("-P", "gevent", "-c", "64")),
    Pool("prefork", ("-P", "prefork", "-c", "2")),
    Pool("legit_async", ("-P", "legit_async", "-c", "256")),
)
COLUMNS = (
    Column("async", "async_null", results=False),
    Column("plain", "plain_null", results=False),
    Column("async+results", "async_null", results=True),
    Column("plain+results", "plain_null", results=True),
)


class Worker(WorkerProcess):
    """A worker of another environment, if it is told one."""

    def __init__(self, pool: Pool, env: Mapping[str, str]) -> None:
        super().__init__("benchmarks.null_tasks", args=[*pool.args, *QUIET], env=env, cwd=Path(__file__).parent.parent)
        if pool.python is not None:
            self._command = [pool.python, "-m", "celery", *self._command[self._command.index("-A") :]]


def custom_pool(implementation: str, python: str | None) -> Pool:
    """Somebody else's pool, by the way that Celery has for them."""
    env = {"CELERY_CUSTOM_WORKER_POOL": implementation, "BENCHMARK_TASK_CLASS": "celery:Task"}
    return Pool(implementation.partition(".")[0], ("-P", "custom", "-c", "256"), python, env)


def messages(client: redis.Redis, url: str, task: str, count: int) -> list[bytes]:
    """So many tasks as they lie in the queue, so that each run finds the same ones."""
    client.flushall()
    app = Celery(broker=url, set_as_current=False)
    with app.producer_or_acquire() as producer:
        for _ in range(count):
            app.send_task(f"benchmarks.null_tasks.{task}", producer=producer)
    app.close()
    return client.lrange(QUEUE, 0, -1)


def lay(client: redis.Redis, name: str, queued: Sequence[bytes]) -> None:
    """Puts messages into a list of the server."""
    for start in range(0, len(queued), CHUNK):
        client.rpush(name, *queued[start : start + CHUNK])


def await_empty(client: redis.Redis, worker: WorkerProcess, count: int) -> None:
    """Returns when all is acknowledged. Looks seldom, and more often towards the end: looking takes CPU time, too."""
    started_s = time.monotonic()
    while True:
        with client.pipeline() as pipeline:
            left = sum(pipeline.llen(QUEUE).hlen("unacked").execute())
        elapsed_s = time.monotonic() - started_s
        if left == 0:
            return
        if not worker.running or elapsed_s > BOUND_S:
            raise RunFailedError(f"{left} of {count} tasks are left after {elapsed_s:.0f} s\n{worker.log[-2000:]}")
        rest_s = elapsed_s * left / (count - left) if left < count else LOOK_S * 20
        time.sleep(min(LONGEST_LOOK_S, max(LOOK_S, rest_s / 4)))


def measure(pool: Pool, column: Column, queued: Sequence[bytes], url: str, client: redis.Redis) -> Run:
    """One worker's way through the queue.

    Raises:
        RunFailedError: not every task succeeded in time.
    """
    client.flushall()
    lay(client, ASIDE, queued[WARM_UP_TASKS:])
    lay(client, QUEUE, queued[:WARM_UP_TASKS])
    env = {"BENCHMARK_BROKER_URL": url, **({"BENCHMARK_RESULT_URL": url} if column.results else {}), **pool.env}
    with worker_of(pool, env) as worker:
        await_empty(client, worker, WARM_UP_TASKS)
        count = len(queued) - WARM_UP_TASKS
        cpu_s, started_s = cpu_seconds(worker.pid), time.monotonic()
        client.rename(ASIDE, QUEUE)
        await_empty(client, worker, count)
        taken_s, used_s = time.monotonic() - started_s, cpu_seconds(worker.pid) - cpu_s
        failure = next((line for line in worker.log.splitlines() if FAILED in line or UNAWAITED in line), None)
        if failure is not None:
            raise RunFailedError(failure)
        return Run(count / taken_s, used_s / count * 1e6, resident_mib(worker.pid))


@contextmanager
def worker_of(pool: Pool, env: Mapping[str, str]) -> Iterator[WorkerProcess]:
    """Ready, and stopped in good order even where the run has failed: prefork's children outlive a parent's kill."""
    worker = Worker(pool, env).start()
    try:
        yield worker
    finally:
        worker.stop()


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


def summary(pool: str, column: Column, runs: Sequence[Run | RunFailedError]) -> dict[str, object]:
    """The medians; where a run has failed, why."""
    found: dict[str, object] = {"pool": pool, "task": column.name.partition("+")[0], "results": column.results}
    failures = [run for run in runs if isinstance(run, RunFailedError)]
    if failures:
        return {**found, "tasks_per_s": None, "cpu_us_per_task": None, "failure": str(failures[0])}
    good = [run for run in runs if isinstance(run, Run)]
    return {
        **found,
        "tasks_per_s": round(statistics.median(run.tasks_per_s for run in good), 1),
        "cpu_us_per_task": round(statistics.median(run.cpu_us_per_task for run in good)),
        "rss_mib": round(statistics.median(run.rss_mib for run in good), 1),
    }


def compare(
    pools: Sequence[Pool], columns: Sequence[Column], *, tasks: int, rounds: int, console: Console
) -> list[dict[str, object]]:
    """Runs all of them in turns."""
    runs: dict[tuple[str, str], list[Run | RunFailedError]] = {}
    with EmbeddedServer() as server, redis.Redis.from_url(server.url()) as client:
        url = server.url()
        queued = {task: messages(client, url, task, tasks + WARM_UP_TASKS) for task in {each.task for each in columns}}
        for number in range(rounds):
            for column in columns:
                # Back and forth, so that no pool always follows the same one.
                for pool in pools if number % 2 == 0 else reversed(pools):
                    found = runs.setdefault((pool.name, column.name), [])
                    if found and isinstance(found[-1], RunFailedError):
                        continue  # it cannot run them: once is enough
                    try:
                        found.append(measure(pool, column, queued[column.task], url, client))
                    except RunFailedError as error:
                        found.append(error)
                    console.print(f"{column.name}, {pool.name}: {found[-1]}", style="dim", highlight=False)
    return [summary(pool.name, column, runs[pool.name, column.name]) for pool in pools for column in columns]


def show(results: Sequence[Mapping[str, object]], columns: Sequence[Column], title: str, console: Console) -> None:
    """The table."""
    table = Table(title=f"{title}\ntasks/s · µs of CPU a task")
    table.add_column("pool", no_wrap=True)
    for column in columns:
        table.add_column(column.name.replace("+", "\n+"), justify="right")
    rows: dict[object, list[str]] = {}
    for result in results:
        rate, cpu = result["tasks_per_s"], result["cpu_us_per_task"]
        rows.setdefault(result["pool"], []).append("fails" if rate is None else f"{rate:,.0f} · {cpu:,}")
    for pool, cells in rows.items():
        table.add_row(str(pool), *cells)
    console.print(table)


def chosen(names: str | None, among: Sequence[Pool] | Sequence[Column]) -> list:
    """Those of the given names, all where none is given."""
    if names is None:
        return list(among)
    known = {each.name: each for each in among}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def main() -> None:
    """Runs everything, prints the table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, help="a run; 5000, with --share 20000")
    parser.add_argument("--rounds", type=int, help="3, with --share 5")
    parser.add_argument("--pools", help=f"some of {','.join(pool.name for pool in POOLS)}")
    parser.add_argument("--columns", help=f"some of {','.join(column.name for column in COLUMNS)}")
    parser.add_argument("--custom-pool", help="module:Class of one more pool")
    parser.add_argument("--custom-python", help="the interpreter of the environment in which it is installed")
    parser.add_argument("--share", action="store_true", help="measure the pool alone")
    arguments = parser.parse_args()
    console = Console()
    if arguments.share:
        pool_share.report(tasks=arguments.tasks or 20_000, rounds=arguments.rounds or 5, console=console)
        return
    tasks, rounds = arguments.tasks or 5000, arguments.rounds or 3
    pools = chosen(arguments.pools, POOLS)
    columns = chosen(arguments.columns, COLUMNS)
    if arguments.custom_pool:
        pools.append(custom_pool(arguments.custom_pool, arguments.custom_python))
    results = compare(pools, columns, tasks=tasks, rounds=rounds, console=console)
    show(results, columns, f"{tasks} tasks that do nothing, acks late, median of {rounds}", console)
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()

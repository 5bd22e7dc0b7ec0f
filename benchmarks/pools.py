"""What a pool costs: tasks that do nothing, through Celery's own pools and ours, on a real server.

    python -m benchmarks.pools [--tasks 5000] [--rounds 3] [--pools solo,threads] [--columns async,plain+results]
    python -m benchmarks.pools --share [--tasks 20000] [--rounds 5]

Each run starts a real worker and warms it up, then hands it the whole queue at once, and ends when the last task is
acknowledged. It gives tasks a second, and the CPU time that the worker's processes used for one. The runs take turns,
because machines are noisy; the table shows medians, and this pool's rate by that of Celery's threads round by round:
what slows a round slows both. `--share` measures the pool alone, without Celery around it.

A pool that is installed elsewhere takes part with `--custom-pool module:Class --custom-python path/of/its/python`: it
runs in that environment, which needs Celery with its Redis extra, and its `async def` tasks are Celery's own `Task`.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import redis
from celery import Celery
from rich.console import Console
from rich.table import Table

from benchmarks import pool_share
from benchmarks.queues import waiting
from benchmarks.workers import (
    POOLS,
    TRANSPORTS,
    Pool,
    RunFailedError,
    await_done,
    check,
    chosen,
    cpu_seconds,
    lay,
    resident_mib,
    worker_of,
)
from legit_embedding.testing.server import EmbeddedServer

QUEUE, ASIDE = "celery", "benchmark:aside"
OURS, FLOOR = "legit_async", "threads"
WARM_UP_TASKS = 500


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


COLUMNS = (
    Column("async", "async_null", results=False),
    Column("plain", "plain_null", results=False),
    Column("async+results", "async_null", results=True),
    Column("plain+results", "plain_null", results=True),
)


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
    return cast(list[bytes], client.lrange(QUEUE, 0, -1))


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
        await_done(lambda: waiting(client, [QUEUE]), worker, WARM_UP_TASKS)
        count = len(queued) - WARM_UP_TASKS
        cpu_s, started_s = cpu_seconds(worker.pid), time.monotonic()
        client.rename(ASIDE, QUEUE)
        await_done(lambda: waiting(client, [QUEUE]), worker, count)
        taken_s, used_s = time.monotonic() - started_s, cpu_seconds(worker.pid) - cpu_s
        check(worker)
        return Run(count / taken_s, used_s / count * 1e6, resident_mib(worker.pid))


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


def ratios(ours: Sequence[Run | RunFailedError], floor: Sequence[Run | RunFailedError]) -> list[float] | None:
    """Our rate by the other pool's in the same round: lower quartile, median, upper; None under two whole rounds."""
    pairs = [
        one.tasks_per_s / other.tasks_per_s
        for one, other in zip(ours, floor, strict=False)
        if isinstance(one, Run) and isinstance(other, Run)
    ]
    return [round(each, 3) for each in statistics.quantiles(pairs, method="inclusive")] if len(pairs) > 1 else None


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
    results = [summary(pool.name, column, runs[pool.name, column.name]) for pool in pools for column in columns]
    for result, (pool, column) in zip(results, itertools.product(pools, columns), strict=True):
        if pool.name == OURS:
            result["to_threads"] = ratios(runs[OURS, column.name], runs.get((FLOOR, column.name), []))
    return results


def show(results: Sequence[Mapping[str, object]], columns: Sequence[Column], title: str, console: Console) -> None:
    """The table."""
    table = Table(title=f"{title}\ntasks/s, CPU a task")
    table.add_column("pool", no_wrap=True)
    for column in columns:
        table.add_column(column.name.replace("+", "\n+"), justify="right")
    rows: dict[object, list[str]] = {}
    for result in results:
        rate, cpu = result["tasks_per_s"], result["cpu_us_per_task"]
        rows.setdefault(result["pool"], []).append("fails" if rate is None else f"{rate:,.0f}\n{cpu:,} µs")
    for pool, cells in rows.items():
        table.add_row(str(pool), *cells)
    compared = [result["to_threads"] for result in results if "to_threads" in result]
    if any(compared):
        table.add_section()
        table.add_row(f"{OURS} by {FLOOR},\nmedian and quartiles", *map(_ratio_cell, compared))
    console.print(table)


def _ratio_cell(quartiles: object) -> str:
    if not isinstance(quartiles, list):
        return "-"
    low, middle, high = quartiles
    return f"{middle:.2f}\n{low:.2f}-{high:.2f}"


def main() -> None:
    """Runs everything, prints the table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, help="a run; 5000, with --share 20000")
    parser.add_argument("--rounds", type=int, help="3, with --share 5")
    parser.add_argument("--pools", help=f"some of {','.join(pool.name for pool in POOLS)}")
    parser.add_argument("--columns", help=f"some of {','.join(column.name for column in COLUMNS)}")
    parser.add_argument("--transport", default="kombu", choices=TRANSPORTS, help="which talks to the broker, for all")
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
    pools = [replace(pool, env={**pool.env, "BENCHMARK_TRANSPORT": arguments.transport}) for pool in pools]
    results = compare(pools, columns, tasks=tasks, rounds=rounds, console=console)
    title = f"{tasks} tasks that do nothing, acks late, {arguments.transport}'s transport, median of {rounds}"
    show(results, columns, title, console)
    print(json.dumps({"transport": arguments.transport, "results": results}))


if __name__ == "__main__":
    main()

"""What a pool costs: tasks a second that do nothing, and the worker's memory, under Celery's own pools and ours.

    python -m benchmarks.pool [--tasks 5000] [--rounds 3]

Every run queues the same tasks, starts a real worker on a real server, and takes the time from the first one taken to
the last one acknowledged. The runs of the pools are interleaved, because machines are noisy; the table shows medians.
"""

import argparse
import json
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import redis
from celery import Celery
from rich.console import Console
from rich.table import Table

from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess

LOOK_S = 0.005
BOUND_S = 300.0


@dataclass(frozen=True, slots=True)
class Variant:
    """A pool, and the task that it runs."""

    name: str
    args: tuple[str, ...]
    task: str


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement."""

    tasks_per_s: float
    rss_mib: float


VARIANTS = (
    Variant("solo", ("-P", "solo"), "plain_null"),
    Variant("threads, 8", ("-P", "threads", "-c", "8"), "plain_null"),
    Variant("legit_async, 256, async def", ("-P", "legit_async", "-c", "256"), "async_null"),
    Variant("legit_async, 256, def", ("-P", "legit_async", "-c", "256"), "plain_null"),
)


def queue_tasks(url: str, name: str, count: int) -> None:
    """Sends so many tasks."""
    app = Celery(broker=url, set_as_current=False)
    with app.producer_or_acquire() as producer:
        for _ in range(count):
            app.send_task(f"benchmarks.null_tasks.{name}", producer=producer)
    app.close()


def measure(variant: Variant, tasks: int) -> Run:
    """One worker's way through the queue."""
    with EmbeddedServer() as server, redis.Redis.from_url(server.url()) as client:
        queue_tasks(server.url(), variant.task, tasks)
        worker = WorkerProcess(
            "benchmarks.null_tasks",
            args=[*variant.args, "-l", "WARNING", "--without-gossip", "--without-mingle"],
            env={"BENCHMARK_BROKER_URL": server.url()},
            cwd=Path(__file__).parent.parent,
        )
        with worker:
            started_s = None
            deadline_s = time.monotonic() + BOUND_S
            while (left := client.llen("celery") + client.hlen("unacked")) > 0:
                if started_s is None and left < tasks:
                    started_s, before = time.monotonic(), left
                if time.monotonic() > deadline_s:
                    raise SystemExit(f"{variant.name}: {left} of {tasks} tasks are left after {BOUND_S:g} s")
                time.sleep(LOOK_S)
            if started_s is None:
                raise SystemExit(f"{tasks} tasks are too few to be measured: take more")
            return Run(before / (time.monotonic() - started_s), resident_mib(worker.pid))


def resident_mib(pid: int) -> float:
    """The memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    """Runs everything, prints the table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    runs: dict[str, list[Run]] = {variant.name: [] for variant in VARIANTS}
    console = Console()
    for _ in range(arguments.rounds):
        for variant in VARIANTS:
            run = measure(variant, arguments.tasks)
            runs[variant.name].append(run)
            console.print(f"{variant.name}: {run.tasks_per_s:.0f} tasks/s, {run.rss_mib:.0f} MiB", style="dim")
    results = [
        {
            "pool": name,
            "tasks_per_s": round(statistics.median(run.tasks_per_s for run in found), 1),
            "rss_mib": round(statistics.median(run.rss_mib for run in found), 1),
        }
        for name, found in runs.items()
    ]
    table = Table(title=f"{arguments.tasks} tasks that do nothing, acks late, median of {arguments.rounds}")
    for column in ("pool", "tasks/s", "of solo", "RSS, MiB"):
        table.add_column(column, justify="left" if column == "pool" else "right")
    for result in results:
        ratio = result["tasks_per_s"] / results[0]["tasks_per_s"]
        table.add_row(result["pool"], f"{result['tasks_per_s']:.0f}", f"{ratio:.2f}", f"{result['rss_mib']:.0f}")
    console.print(table)
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()

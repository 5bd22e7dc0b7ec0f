"""The batcher alone: what an item costs on its way through it, with a model that takes no time.

    python -m benchmarks.batching [--items 20000] [--in-flight 256] [--rounds 5] [--profile]

Every task submits one item, waits for its vector and submits the next; so many tasks are in flight at once. The table
shows medians of the rounds for tasks of one item, and for the same number of items in tasks of 32. `--profile` shows
where the time of the event loop's thread goes instead.
"""

import argparse
import asyncio
import cProfile
import json
import pstats
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from legit_embedding.batching import Batcher, Ticket
from legit_embedding.clock import SystemClock
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.reports import NullReporter
from legit_embedding.values import BatchLimits, ModelInfo, Options, Outcome, Prepared

DIM = 384
TASK_SIZES = (1, 32)
OPTIONS = Options()


class InstantModel:
    """Gives every item the same vector at once, so that only the batcher's own time is left."""

    info = ModelInfo(
        name="instant",
        adapter="instant",
        modality="text",
        dim=DIM,
        device="cpu",
        dtype="float32",
        nbytes=0,
        limits=BatchLimits(max_items=64),
    )
    vector = np.ones(DIM, np.float32)

    def forward(self, batch: Sequence[Prepared]) -> int:
        return len(batch)

    def finish(self, raw: int, options: Sequence[Options]) -> list[Outcome]:  # noqa: ARG002  the Protocol's own
        return [self.vector] * raw


async def run(items: int, in_flight: int, task_size: int) -> dict[str, Any]:
    """Items a second, and items a batch."""
    prepared = Prepared(data=None, tokens=1, nbytes=0)
    left = iter(range(items // task_size))

    async def room() -> None:
        return None

    async with Batcher(clock=SystemClock(), gate=room, metrics=Metrics(), reporter=NullReporter()) as batcher:

        async def produce() -> None:
            model = InstantModel()
            for number in left:
                task = str(number)
                tickets = [Ticket(prepared, OPTIONS, task=task, tag=tag) for tag in range(task_size)]
                async for _ in batcher.submit(model, tickets):
                    pass

        started_s = time.perf_counter()
        await asyncio.gather(*(produce() for _ in range(max(1, in_flight // task_size))))
        seconds = time.perf_counter() - started_s
        figures = batcher.statistics()
    return {"items_per_s": figures.items / seconds, "mean_batch_size": figures.mean_batch_size}


def profile(items: int, in_flight: int) -> None:
    """Prints where the loop's thread spends its time with tasks of one item."""
    profiler = cProfile.Profile()
    profiler.runcall(asyncio.run, run(items, in_flight, 1))
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main() -> None:
    """Runs everything, prints the table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    if arguments.profile:
        profile(arguments.items, arguments.in_flight)
        return
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in TASK_SIZES}
    for _ in range(arguments.rounds):
        for size in TASK_SIZES:
            found[size].append(asyncio.run(run(arguments.items, arguments.in_flight, size)))
    table = Table(title=f"{arguments.items} items, {arguments.in_flight} in flight, median of {arguments.rounds}")
    for column in ("items a task", "items/s", "µs an item", "items a batch"):
        table.add_column(column, justify="right")
    results = []
    for size, rounds in found.items():
        rate = statistics.median(each["items_per_s"] for each in rounds)
        batch = statistics.median(each["mean_batch_size"] for each in rounds)
        table.add_row(str(size), f"{rate:,.0f}", f"{1e6 / rate:.1f}", f"{batch:.1f}")
        results.append({"items_a_task": size, "items_per_s": round(rate), "mean_batch_size": round(batch, 1)})
    Console().print(table)
    print(json.dumps({"in_flight": arguments.in_flight, "results": results}))


if __name__ == "__main__":
    main()

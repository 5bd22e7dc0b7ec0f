"""The whole worker, end to end: how fast mixed tasks become entries, with the result server near and far.

    python -m benchmarks.roundtrip [--tasks 2000] [--rounds 3] [--rtt-ms 0,20]

Every run queues the same tasks of images and texts, starts a real worker with a small EVA02 and the real MiniLM, and
takes the time from the first entry's to the last entry's arrival by the server's own clock (their ids), so that loading
is not counted. The distances take turns, because machines are noisy; the table shows medians, and the ratio to the
first.
"""

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.workload import STREAM, queue_mixed_tasks, write_models
from legit_embedding.publish.reader import StreamReader
from legit_embedding.testing.proxy import DelayProxy
from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess


def run(rtt_ms: float, tasks: int, models: Path) -> float:
    """Items a second with the result server that far away."""
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedServer())
        results = stack.enter_context(EmbeddedServer())
        proxy = stack.enter_context(DelayProxy(results.port, rtt_ms=rtt_ms))
        items = queue_mixed_tasks(broker.url(), tasks)
        env = {"LEGIT_BROKER_URL": broker.url(), "LEGIT_RESULTS_URL": proxy.url(), "LEGIT_MODELS": str(models)}
        env |= {"LEGIT_PRELOAD": "defaults"}
        stack.enter_context(WorkerProcess("legit_embedding", args=["-P", "legit_async", "-l", "INFO"], env=env))
        with StreamReader(results.url()) as reader:
            found = reader.read({STREAM: "0"}, expected=items, timeout_s=600)
            stamps_ms = [int(entry_id.partition("-")[0]) for _, entry_id, _ in found]
    if len(stamps_ms) != items:
        raise SystemExit(f"{items - len(stamps_ms)} of {items} results are missing")
    return items / ((max(stamps_ms) - min(stamps_ms)) / 1000)


def main() -> None:
    """Runs everything, prints the table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rtt-ms", default="0,20")
    arguments = parser.parse_args()
    distances = [float(part) for part in arguments.rtt_ms.split(",")]
    rates: dict[float, list[float]] = {distance: [] for distance in distances}
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        models = write_models(Path(folder))
        for _ in range(arguments.rounds):
            for distance in distances:
                rates[distance].append(run(distance, arguments.tasks, models))
                console.print(f"{distance:g} ms: {rates[distance][-1]:.0f} items/s", style="dim")
    medians = {distance: statistics.median(found) for distance, found in rates.items()}
    table = Table(title=f"{arguments.tasks} mixed tasks, small EVA02 and MiniLM, median of {arguments.rounds}")
    for column in ("result server away, ms", "items/s", "of the first"):
        table.add_column(column, justify="right")
    for distance, median in medians.items():
        table.add_row(f"{distance:g}", f"{median:.0f}", f"{median / medians[distances[0]]:.3f}")
    console.print(table)
    results = [
        {"rtt_ms": distance, "items_per_s": round(median, 1), "ratio": round(median / medians[distances[0]], 4)}
        for distance, median in medians.items()
    ]
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()

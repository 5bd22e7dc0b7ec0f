"""The whole worker on tasks of one text each, with a model that takes no time: task in, entry out, acknowledged.

    python -m benchmarks.items [--items 20000] [--rounds 3] [--rtt-ms 20] [--transports legit] [--concurrency 512]
        [--log-level WARNING]

Each run starts the real worker, warms it up, then hands it all its tasks at once, and ends when the last one is
acknowledged, which is after its entry was confirmed. Broker and result server are two, both that far away. The runs
take turns, because machines are noisy; the table shows medians.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import redis
from rich.console import Console
from rich.table import Table

from benchmarks.drain import LAST_ACKS_S, Run, away, named
from benchmarks.instant import declared
from benchmarks.queues import ASIDE, copies, message, waiting
from benchmarks.workers import ROOT, TRANSPORTS, RunFailedError, await_done, cpu_seconds, lay
from benchmarks.workload import STREAM, sentence
from legit_embedding.config import Settings
from legit_embedding.testing.server import HOST, EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess

TASK, QUEUE = "tasks.text_embedding.embed_texts", "text_embedding"
WARM_UP_ITEMS = 1000
SENTENCES = 20
STOCK_ITEMS_PER_S = 12
"""About what kombu's own transport leaves at 20 ms; a run with it has as many as take ten seconds."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Both, looked at directly."""

    broker: redis.Redis
    results: redis.Redis
    broker_port: int
    results_port: int

    def clear(self) -> None:
        self.broker.flushall()
        self.results.flushall()

    def left(self) -> int:
        return waiting(self.broker, [QUEUE])


def messages(servers: Servers, count: int) -> list[bytes]:
    """So many tasks as they lie in their queue."""
    url = f"redis://{HOST}:{servers.broker_port}/0"
    share = -(-count // SENTENCES)
    queued: list[bytes] = []
    for number in range(SENTENCES):
        envelope = {"items": [{"text": sentence(number)}], "reply_to": STREAM}
        queued += copies(message(servers.broker, url, TASK, QUEUE, [envelope]), share)
    return queued[:count]


def measure(servers: Servers, env: Mapping[str, str], *, rtt_ms: float, items: int, args: Sequence[str]) -> Run:
    """One worker's way through the queue.

    Raises:
        RunFailedError: not every task became an entry in time.
    """
    warm_up = min(WARM_UP_ITEMS, items)
    queued, first = messages(servers, items), messages(servers, warm_up)
    servers.clear()
    lay(servers.broker, ASIDE, queued)
    lay(servers.broker, QUEUE, first)
    with ExitStack() as stack:
        broker_port = stack.enter_context(away(servers.broker_port, rtt_ms))
        results_port = stack.enter_context(away(servers.results_port, rtt_ms))
        env = {
            **env,
            "LEGIT_BROKER_URL": f"redis://{HOST}:{broker_port}/0",
            "LEGIT_RESULTS_URL": f"redis://{HOST}:{results_port}/0",
        }
        worker = WorkerProcess("legit_embedding", args=["-P", "legit_async", *args], env=env, cwd=ROOT)
        stack.callback(worker.kill)
        worker.launch()  # and ready when the warm-up is done: the log need not tell
        await_done(servers.left, worker, warm_up)
        time.sleep(LAST_ACKS_S)
        cpu_s, started_s = cpu_seconds(worker.pid), time.monotonic()
        servers.broker.rename(ASIDE, QUEUE)
        await_done(servers.left, worker, items)
        taken_s = time.monotonic() - started_s
        used_s = cpu_seconds(worker.pid) - cpu_s
        worker.stop()
    entries = servers.results.xlen(STREAM)
    oldest = cast(list[tuple[bytes, dict[bytes, bytes]]], servers.results.xrange(STREAM, count=warm_up))
    failed = sum(fields.get(b"status") != b"ok" for _, fields in oldest)
    if entries != warm_up + items or failed:
        raise RunFailedError(f"{entries} entries of {warm_up + items} tasks, {failed} of the first ones failed")
    return Run(items, items / taken_s, used_s / items * 1e6)


def compare(arguments: argparse.Namespace, console: Console) -> dict[tuple[str, float], list[Run]]:
    """Runs all of them in turns."""
    wanted = [(transport, rtt_ms) for transport in arguments.transports for rtt_ms in arguments.rtt_ms]
    runs: dict[tuple[str, float], list[Run]] = {each: [] for each in wanted}
    args = ["-l", arguments.log_level, "-c", str(arguments.concurrency)]
    with ExitStack() as stack:
        servers = [stack.enter_context(EmbeddedServer()) for _ in range(2)]
        clients = [stack.enter_context(redis.Redis.from_url(server.url())) for server in servers]
        both = Servers(clients[0], clients[1], servers[0].port, servers[1].port)
        declaration = declared(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        for number in range(arguments.rounds):
            for transport, rtt_ms in wanted if number % 2 == 0 else reversed(wanted):
                waits = transport == "kombu" and rtt_ms
                items = STOCK_ITEMS_PER_S * 10 if waits else arguments.items
                env = {**declaration, "LEGIT_BROKER_TRANSPORT": transport}
                try:
                    run = measure(both, env, rtt_ms=rtt_ms, items=items, args=args)
                except RunFailedError as error:
                    raise SystemExit(f"{transport}, {rtt_ms:g} ms: {error}") from error
                runs[transport, rtt_ms].append(run)
                console.print(f"{transport}, {rtt_ms:g} ms: {run}", style="dim", highlight=False)
    return runs


def main() -> None:
    """Runs everything, prints the table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rtt-ms", default="20", type=lambda text: [float(part) for part in text.split(",")])
    parser.add_argument("--transports", default=["legit"], type=named(TRANSPORTS))
    parser.add_argument("--concurrency", type=int, default=Settings.model_fields["concurrency"].default)
    parser.add_argument("--log-level", default="WARNING", help="INFO has two lines a task")
    arguments = parser.parse_args()
    console = Console()
    runs = compare(arguments, console)
    table = Table(title=f"tasks of one text, concurrency {arguments.concurrency}, median of {arguments.rounds}")
    for column in ("transport", "both servers away, ms", "items/s", "µs of CPU an item"):
        table.add_column(column, justify="right")
    results: list[dict[str, Any]] = []
    for (transport, rtt_ms), found in runs.items():
        rate = statistics.median(run.tasks_per_s for run in found)
        cpu_us = statistics.median(run.cpu_us_per_task for run in found)
        table.add_row(transport, f"{rtt_ms:g}", f"{rate:,.0f}", f"{cpu_us:,.0f}")
        results.append(
            {
                "transport": transport,
                "rtt_ms": rtt_ms,
                "concurrency": arguments.concurrency,
                "items": found[-1].tasks,
                "items_per_s": round(rate, 1),
                "least_per_s": round(min(run.tasks_per_s for run in found), 1),
                "most_per_s": round(max(run.tasks_per_s for run in found), 1),
                "cpu_us_per_item": round(cpu_us),
            }
        )
    console.print(table)
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()

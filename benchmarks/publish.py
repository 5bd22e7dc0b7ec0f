"""How fast entries get onto their stream, with the server near and far: the publisher, and XADD one by one.

    python -m benchmarks.publish [--rounds 3] [--rtt-ms 0,5,20] [--seconds 2]

Every run writes the same entries, each with a vector of 512 dimensions, through a delay proxy that runs in a process of
its own. The publisher gets them as tasks of 16 and waits for room as the pipeline does; the baseline writes one, waits
for its reply, and writes the next. Each is warmed up first and then writes for about as long as was asked for. The runs
are interleaved, because this kind of machine is noisy; the table shows medians.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection

import numpy as np
import redis
from rich.console import Console
from rich.table import Table

from legit_embedding.clock import SystemClock
from legit_embedding.config import load_settings
from legit_embedding.contract import EntryTemplate, Names
from legit_embedding.publish.routing import RoutingRules
from legit_embedding.publish.streams import Publisher
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.proxy import DelayProxy
from legit_embedding.testing.reports import NullReporter
from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.values import BatchLimits, Delivery, Item, ModelInfo, TextSource

STREAM = "benchmark:results"
DIMENSIONS = 512
ITEMS_A_TASK = 16
WARM_UP_TASKS = 20

Entry = Mapping[str, str]


def make_entries(count: int) -> list[Entry]:
    """Entries as a task's items become them, each with a vector of its own."""
    info = ModelInfo("clip", "open_clip", "image", DIMENSIONS, "cpu", "float32", 0, BatchLimits(32))
    template = EntryTemplate.create(
        Names.load(None), Delivery("8f1c4c1e-61a5-4b0e-9a35-f8f9f06c2f4e"), worker="benchmark", modality="image"
    ).with_model(info, "sha256:0123456789abcdef")
    vectors = np.random.default_rng(0).standard_normal((count, DIMENSIONS), dtype=np.float32)
    at_ms = int(time.time() * 1000)
    return [
        template.entry(Item(index, str(index), TextSource("")), vector, at_ms=at_ms)
        for index, vector in enumerate(vectors)
    ]


async def _publish(url: str, entries: list[Entry], seconds: float) -> float:
    settings = load_settings(results_stream=STREAM)
    publisher = Publisher(
        settings=settings,
        url=url,
        rules=RoutingRules.create(settings),
        clock=SystemClock(),
        metrics=Metrics(),
        reporter=NullReporter(),
    )
    async with publisher:
        await publisher.wait_for_room()
        await asyncio.gather(*(publisher.submit(None, entries) for _ in range(WARM_UP_TASKS)))
        before = publisher.statistics().confirmed
        confirmations = set()
        started_s = time.perf_counter()
        while time.perf_counter() - started_s < seconds:
            await publisher.wait_for_room()
            confirmation = publisher.submit(None, entries)
            confirmations.add(confirmation)
            confirmation.add_done_callback(confirmations.discard)
            await asyncio.sleep(0)  # as between two tasks of the pipeline
        await asyncio.gather(*confirmations)
        return (publisher.statistics().confirmed - before) / (time.perf_counter() - started_s)


def publish(url: str, entries: list[Entry], seconds: float) -> float:
    """Entries a second of the publisher, the last confirmation included."""
    return asyncio.run(_publish(url, entries, seconds))


def one_by_one(url: str, entries: list[Entry], seconds: float) -> float:
    """Entries a second of a blocking XADD after another."""
    with redis.Redis.from_url(url) as client:
        client.xadd(STREAM, entries[0])
        started_s = time.perf_counter()
        count = 0
        while time.perf_counter() - started_s < seconds:
            client.xadd(STREAM, entries[count % len(entries)])
            count += 1
        return count / (time.perf_counter() - started_s)


WAYS: Mapping[str, Callable[[str, list[Entry], float], float]] = {"publisher": publish, "one by one": one_by_one}


def _run_proxy(target_port: int, rtt_ms: float, pipe: Connection) -> None:
    with DelayProxy(target_port, rtt_ms=rtt_ms) as proxy:
        pipe.send(proxy.url())
        pipe.recv()


@contextmanager
def distant(target_port: int, rtt_ms: float) -> Iterator[str]:
    """The URL of a server so far away; the proxy shares no interpreter lock with what is measured."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run_proxy, args=(target_port, rtt_ms, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join()


def measure(server: EmbeddedServer, way: str, rtt_ms: float, seconds: float) -> float:
    """One run, on an empty server."""
    with redis.Redis.from_url(server.url()) as client:
        client.flushall()
    with distant(server.port, rtt_ms) as url:
        return WAYS[way](url, make_entries(ITEMS_A_TASK), seconds)


def main() -> None:
    """Runs everything, prints the table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rtt-ms", default="0,5,20")
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    distances = [float(part) for part in arguments.rtt_ms.split(",")]
    rates: dict[tuple[float, str], list[float]] = {(rtt_ms, way): [] for rtt_ms in distances for way in WAYS}
    console = Console()
    with EmbeddedServer() as server:
        for _ in range(arguments.rounds):
            for (rtt_ms, way), found in rates.items():
                found.append(measure(server, way, rtt_ms, arguments.seconds))
                console.print(f"{rtt_ms:g} ms, {way}: {found[-1]:.0f} entries/s", style="dim")
    medians = {key: statistics.median(found) for key, found in rates.items()}
    table = Table(title=f"entries/s, {DIMENSIONS} dimensions, median of {arguments.rounds}")
    for column in ("round trip, ms", *WAYS, "ratio"):
        table.add_column(column, justify="right")
    results = []
    for rtt_ms in distances:
        publisher, baseline = (medians[rtt_ms, way] for way in WAYS)
        table.add_row(f"{rtt_ms:g}", f"{publisher:.0f}", f"{baseline:.0f}", f"{publisher / baseline:.1f}")
        results.append(
            {
                "rtt_ms": rtt_ms,
                "publisher_per_s": round(publisher, 1),
                "one_by_one_per_s": round(baseline, 1),
                "ratio": round(publisher / baseline, 2),
            }
        )
    console.print(table)
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()

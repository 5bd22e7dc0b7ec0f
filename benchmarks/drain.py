"""How fast a worker empties its queues, with the broker near and far: kombu's own transport and ours.

    python -m benchmarks.drain [--rtt-ms 0,5,20] [--pools solo,legit_async] [--transports kombu,legit] [--queues 1]
        [--tasks N] [--rounds 3] [--events] [--brokers redis,rabbitmq] [--prefetch-multiplier 4]

Null tasks of 2 kB, acknowledged late, without results. Each run starts a real worker, warms it up, then hands it all
its tasks at once, and ends when the last one is acknowledged. At 0 ms the worker talks to the server itself; else a
proxy, in a process of its own, puts the server that far away. The runs take turns, because machines are noisy; the
table shows medians. A run has as many tasks as take about four seconds, at least 20,000 with our transport and our
pool.

`--events` runs everything with and without `-E`. `--brokers rabbitmq` adds Debian's RabbitMQ under the pool
`legit_async`; AMQP does not tell what is unacknowledged, so its rate is a lower bound: when no message waits any more,
all of the prefetch count are taken for unfinished.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any
from urllib.parse import urlsplit

import redis
from rich.console import Console
from rich.table import Table

from benchmarks.publish import distant
from benchmarks.queues import WARM_UP, Broker, RabbitBroker, RedisBroker
from benchmarks.workers import (
    POOLS,
    TRANSPORTS,
    Pool,
    RunFailedError,
    await_done,
    check,
    chosen,
    cpu_seconds,
    worker_of,
)
from legit_embedding.testing.rabbit import RabbitServer, amqp_url
from legit_embedding.testing.server import HOST, EmbeddedServer

MESSAGE_BYTES = 2000
RUN_S, WARM_UP_S = 4.0, 1.0
LEAST_TASKS, MOST_TASKS = 20, 60_000
LEAST_TASKS_OF_OURS = 20_000
LAST_ACKS_S = 0.2
PREFETCH_MULTIPLIER = 4
"""Celery's own default."""

BROKERS = ("redis", "rabbitmq")
POOL_OF_RABBIT = "legit_async"


@dataclass(frozen=True, slots=True)
class Combination:
    """What is run."""

    broker: str
    pool: Pool
    transport: str
    rtt_ms: float
    events: bool

    @property
    def pipelined(self) -> bool:
        """Whether the distance does not count."""
        return (self.transport != "kombu" or self.broker == "rabbitmq") and self.pool.name == "legit_async"

    @property
    def expected_per_s(self) -> float:
        """A first estimate of the rate."""
        if self.pipelined:
            return LEAST_TASKS_OF_OURS / RUN_S
        if self.transport == "kombu":
            return 1 / (0.0007 + 3 * self.rtt_ms / 1000)
        return 1 / (0.00015 + self.rtt_ms / 1000 / PREFETCH_MULTIPLIER)

    def __str__(self) -> str:
        events = ", events" if self.events else ""
        return f"{self.broker}, {self.pool.name}, {self.transport}, {self.rtt_ms:g} ms{events}"


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement."""

    tasks: int
    tasks_per_s: float
    cpu_us_per_task: float

    def __str__(self) -> str:
        return f"{self.tasks} tasks, {self.tasks_per_s:,.0f} a second, {self.cpu_us_per_task:.0f} µs of CPU each"


def size(combination: Combination, rate: float) -> int:
    """How many tasks a run has, at so many tasks a second."""
    least = LEAST_TASKS_OF_OURS if combination.pipelined else LEAST_TASKS
    return round(min(MOST_TASKS, max(least, rate * RUN_S)))


@contextmanager
def away(port: int, rtt_ms: float) -> Iterator[int]:
    """The port of a server so far away."""
    if not rtt_ms:
        yield port
        return
    with distant(port, rtt_ms) as url:
        found = urlsplit(url).port
        assert found is not None
        yield found


def measure(broker: Broker, combination: Combination, *, queues: int, tasks: int, multiplier: int) -> Run:
    """One worker's way through the queues.

    Raises:
        RunFailedError: not every task succeeded in time.
    """
    # A plain function is what the other pools are made for.
    task = "async_null" if combination.pool.name == "legit_async" else "plain_null"
    names = [f"drain.{number}" for number in range(queues)]
    warm_up = round(min(1000, max(5, combination.expected_per_s * WARM_UP_S)))
    broker.prepare(task, names, tasks, warm_up)
    consumed = [WARM_UP, *(names if broker.name == "redis" else ())]
    args = ["-Q", ",".join(consumed), "--prefetch-multiplier", str(multiplier), *(["-E"] if combination.events else [])]
    pool = replace(combination.pool, args=(*combination.pool.args, *args))
    with away(broker.port, combination.rtt_ms) as port:
        url = f"redis://{HOST}:{port}/0" if broker.name == "redis" else amqp_url(port)
        env = {"BENCHMARK_BROKER_URL": url, "BENCHMARK_TRANSPORT": combination.transport, **pool.env}
        with worker_of(pool, env) as worker:
            await_done(broker.warm_up_left, worker, warm_up)
            broker.settle()
            time.sleep(LAST_ACKS_S)
            cpu_s, started_s = cpu_seconds(worker.pid), time.monotonic()
            broker.release()
            await_done(broker.left, worker, tasks)
            taken_s = time.monotonic() - started_s
            broker.settle()
            time.sleep(LAST_ACKS_S)
            used_s = cpu_seconds(worker.pid) - cpu_s
            check(worker)
    if broker.left():
        raise RunFailedError(f"{broker.left()} messages are back in their queues after the worker's end")
    return Run(tasks, broker.certain(tasks) / taken_s, used_s / tasks * 1e6)


def combinations(arguments: argparse.Namespace) -> list[Combination]:
    """All that was asked for."""
    found: list[Combination] = []
    for broker in arguments.brokers:
        of_redis = broker == "redis"
        pools = arguments.pools if of_redis else [each for each in POOLS if each.name == POOL_OF_RABBIT]
        events = (False, True) if arguments.events else (False,)
        found.extend(
            Combination(broker, pool, transport, rtt_ms, with_events)
            for transport, pool, rtt_ms, with_events in product(arguments.transports, pools, arguments.rtt_ms, events)
        )
    return found


def compare(
    wanted: Sequence[Combination], brokers: Mapping[str, Broker], arguments: argparse.Namespace, console: Console
) -> dict[str, list[Run]]:
    """Runs all of them in turns, back and forth, so that none always follows the same one."""
    runs: dict[str, list[Run]] = {str(each): [] for each in wanted}
    for number in range(arguments.rounds):
        for each in wanted if number % 2 == 0 else reversed(wanted):
            found = runs[str(each)]
            rate = found[-1].tasks_per_s if found else each.expected_per_s
            tasks = arguments.tasks or size(each, rate)
            broker = brokers[each.broker]
            multiplier = arguments.prefetch_multiplier
            try:
                run = measure(broker, each, queues=arguments.queues, tasks=tasks, multiplier=multiplier)
            except RunFailedError as error:
                raise SystemExit(f"{each}: {error}") from error
            found.append(run)
            console.print(f"{each}: {run}", style="dim", highlight=False)
    return runs


def summary(
    wanted: Sequence[Combination], runs: Mapping[str, Sequence[Run]], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """The medians; with events, of what it is without them."""
    results = []
    for each in wanted:
        found = runs[str(each)]
        rate = statistics.median(run.tasks_per_s for run in found)
        result = {
            "broker": each.broker,
            "pool": each.pool.name,
            "transport": each.transport,
            "rtt_ms": each.rtt_ms,
            "queues": arguments.queues,
            "events": each.events,
            "prefetch_multiplier": arguments.prefetch_multiplier,
            "tasks": found[-1].tasks,
            "tasks_per_s": round(rate, 1),
            "least_per_s": round(min(run.tasks_per_s for run in found), 1),
            "most_per_s": round(max(run.tasks_per_s for run in found), 1),
            "cpu_us_per_task": round(statistics.median(run.cpu_us_per_task for run in found)),
        }
        if each.events:
            plain = statistics.median(run.tasks_per_s for run in runs[str(replace(each, events=False))])
            result["of_no_events"] = round(rate / plain, 3)
        results.append(result)
    return results


def show(results: Sequence[Mapping[str, Any]], arguments: argparse.Namespace, console: Console) -> None:
    """The table."""
    table = Table(
        title=f"null tasks of {MESSAGE_BYTES / 1000:g} kB, queues: {arguments.queues}, prefetch multiplier "
        f"{arguments.prefetch_multiplier}, median of {arguments.rounds}"
    )
    for column in ("broker", "transport", "pool"):
        table.add_column(column)
    more = ("events", "of no events") if arguments.events else ()
    for column in ("away, ms", *more, "tasks/s", "µs of CPU a task"):
        table.add_column(column, justify="right")
    for result in results:
        events = [("on" if result["events"] else ""), f"{result.get('of_no_events', '')}"] if arguments.events else []
        table.add_row(
            result["broker"],
            result["transport"],
            result["pool"],
            f"{result['rtt_ms']:g}",
            *events,
            f"{result['tasks_per_s']:,.0f}",
            f"{result['cpu_us_per_task']:,}",
        )
    console.print(table)


def named(among: Sequence[str]) -> Any:
    """A parser of names joined by commas."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(among):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(among)}")
        return names

    return parse


def main() -> None:
    """Runs everything, prints the table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt-ms", default="0,5,20", type=lambda text: [float(part) for part in text.split(",")])
    parser.add_argument("--pools", default="solo,legit_async", help="of benchmarks.pools")
    parser.add_argument("--transports", default=list(TRANSPORTS), type=named(TRANSPORTS))
    parser.add_argument("--brokers", default=["redis"], type=named(BROKERS))
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--tasks", type=int, help="a run; as many as take about four seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", action="store_true", help="with and without -E")
    parser.add_argument("--prefetch-multiplier", type=int, default=PREFETCH_MULTIPLIER)
    arguments = parser.parse_args()
    arguments.pools = chosen(arguments.pools, POOLS)
    console = Console()
    with ExitStack() as stack:
        brokers: dict[str, Broker] = {}
        if "redis" in arguments.brokers:
            server = stack.enter_context(EmbeddedServer())
            client = stack.enter_context(redis.Redis.from_url(server.url()))
            brokers["redis"] = RedisBroker(client, server.url(), port=server.port, nbytes=MESSAGE_BYTES)
        if "rabbitmq" in arguments.brokers:
            if reason := RabbitServer.missing():
                raise SystemExit(reason)
            node = stack.enter_context(RabbitServer())
            prefetch = 256 * arguments.prefetch_multiplier
            rabbit = RabbitBroker(node, nbytes=MESSAGE_BYTES, prefetch=prefetch)
            stack.callback(rabbit.close)
            brokers["rabbitmq"] = rabbit
        wanted = combinations(arguments)
        runs = compare(wanted, brokers, arguments, console)
    results = summary(wanted, runs, arguments)
    show(results, arguments, console)
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()

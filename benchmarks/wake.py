"""How soon an idle consumer has a message that comes, with the server near and far.

    python -m benchmarks.wake [--messages 100] [--rtt-ms 0,20]

A message is pushed as a producer beside the server would push it; the clock stops when the consumer's callback has it.
One and a half round trips are the least where the server tells of messages: the push, the take, and what was taken.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any, cast

import redis
from kombu import Connection, Queue
from kombu.asynchronous import Hub
from rich.console import Console
from rich.table import Table

from legit_embedding import broker
from legit_embedding.testing.proxy import DelayProxy
from legit_embedding.testing.server import EmbeddedServer

QUEUE = "wake"
IDLE_S = 0.15
"""Before each message: whatever the last one has caused is over."""


def a_message(client: redis.Redis, url: str) -> bytes:
    """One as it lies in its queue."""
    with Connection(url) as connection:
        connection.Producer().publish(1, exchange="", routing_key=QUEUE, declare=[Queue(QUEUE, routing_key=QUEUE)])
    return cast(bytes, client.rpop(QUEUE))


def measure(rtt_ms: float, messages: int) -> list[float]:
    """Milliseconds from each push to its callback."""
    with (
        EmbeddedServer() as server,
        DelayProxy(server.port, rtt_ms=rtt_ms) as proxy,
        redis.Redis.from_url(server.url()) as client,
        Connection(proxy.url()) as connection,
    ):
        text, hub = a_message(client, server.url()), Hub()
        came_s: list[float] = []

        def turn(longest_s: float) -> None:
            hub.call_later(longest_s, lambda: None)
            hub.run_once()

        def take(message: Any) -> None:
            came_s.append(time.monotonic())
            message.ack()

        connection.connect()
        connection.transport.register_with_event_loop(connection.connection, hub)
        waits_ms = []
        with connection.Consumer([Queue(QUEUE, routing_key=QUEUE)], on_message=take):
            for number in range(messages + 1):
                over_s = time.monotonic() + IDLE_S
                while time.monotonic() < over_s:
                    turn(IDLE_S / 5)
                pushed_s = time.monotonic()
                client.lpush(QUEUE, text)
                while len(came_s) == number:
                    turn(1)
                waits_ms.append((came_s[-1] - pushed_s) * 1000)
        hub.close()
    return waits_ms[1:]  # the first finds a consumer that has only begun


def summary(rtt_ms: float, waits_ms: Sequence[float]) -> dict[str, float]:
    """The middle, the slow ones, the slowest."""
    return {
        "rtt_ms": rtt_ms,
        "median_ms": round(statistics.median(waits_ms), 1),
        "p95_ms": round(sorted(waits_ms)[int(0.95 * len(waits_ms))], 1),
        "most_ms": round(max(waits_ms), 1),
    }


def main() -> None:
    """Runs everything, prints the table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--rtt-ms", default="0,20", type=lambda text: [float(part) for part in text.split(",")])
    arguments = parser.parse_args()
    broker.install()
    results = [summary(rtt_ms, measure(rtt_ms, arguments.messages)) for rtt_ms in arguments.rtt_ms]
    table = Table(title=f"an idle consumer has a message after, ms, {arguments.messages} messages")
    for column in ("server away", "median", "95 %", "most"):
        table.add_column(column, justify="right")
    for each in results:
        table.add_row(*(f"{each[name]:g}" for name in ("rtt_ms", "median_ms", "p95_ms", "most_ms")))
    Console().print(table)
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()

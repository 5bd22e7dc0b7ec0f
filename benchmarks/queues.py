"""Messages as they lie in a queue, of a size, and the brokers that the benchmarks put them into.

Both brokers hold them back until a run is to begin: its worker is there and warm by then.
"""

import time
import uuid
from collections.abc import Sequence
from json import loads
from typing import Any, Protocol, cast

import redis
from celery import Celery

from benchmarks.workers import RunFailedError, lay
from legit_embedding.testing.rabbit import RabbitServer

ASIDE = "benchmark:aside:"
WARM_UP = "drain.warm-up"
SETTLE_S = 60.0


class Broker(Protocol):
    """A server, which is looked at directly; `port` is what a worker's proxy leads to."""

    name: str
    port: int

    def prepare(self, task: str, queues: Sequence[str], tasks: int, warm_up: int) -> None:
        """Forgets what was there; lays the messages of the warm-up into its queue, and the others aside."""
        ...

    def release(self) -> None:
        """What was laid aside is in the queues, for the worker to take."""
        ...

    def warm_up_left(self) -> int:
        """How many messages of the warm-up wait or are worked on."""
        ...

    def left(self) -> int:
        """How many messages wait or are worked on."""
        ...

    def certain(self, tasks: int) -> int:
        """How many of `tasks` are acknowledged for certain when none is `left`."""
        ...

    def settle(self) -> None:
        """Returns when no worker holds a message; not for what is timed.

        Raises:
            RunFailedError: one is still held after a minute.
        """
        ...


class RedisBroker:
    """Lists of kombu's; the messages are copies of one that Celery has sent, each with ids of its own."""

    name = "redis"

    def __init__(self, client: redis.Redis, url: str, *, port: int, nbytes: int) -> None:
        self.port = port
        self._client = client
        self._url = url
        self._nbytes = nbytes
        self._queues: Sequence[str] = ()

    def prepare(self, task: str, queues: Sequence[str], tasks: int, warm_up: int) -> None:
        """See `Broker`."""
        self._queues = queues
        templates = {
            queue: sized_message(self._client, self._url, task, queue, self._nbytes) for queue in (WARM_UP, *queues)
        }
        self._client.flushall()
        for place, queue in enumerate(queues):
            share = tasks // len(queues) + (place < tasks % len(queues))
            lay(self._client, ASIDE + queue, copies(templates[queue], share))
        lay(self._client, WARM_UP, copies(templates[WARM_UP], warm_up))

    def release(self) -> None:
        """See `Broker`."""
        with self._client.pipeline() as pipeline:
            for queue in self._queues:
                pipeline.rename(ASIDE + queue, queue)
            pipeline.execute()

    def warm_up_left(self) -> int:
        """See `Broker`."""
        return waiting(self._client, [WARM_UP])

    def left(self) -> int:
        """See `Broker`."""
        return waiting(self._client, self._queues)

    def certain(self, tasks: int) -> int:
        """See `Broker`: what is worked on is seen, too."""
        return tasks

    def settle(self) -> None:
        """See `Broker`: nothing to wait for."""


class RabbitBroker:
    """A node that a worker is told to consume from when the run begins.

    AMQP does not tell what is unacknowledged: `prefetch` messages at most are when no message waits any more.
    """

    name = "rabbitmq"

    def __init__(self, node: RabbitServer, *, nbytes: int, prefetch: int) -> None:
        self.port = node.port
        self._node = node
        self._nbytes = nbytes
        self._prefetch = prefetch
        self._queues: Sequence[str] = ()
        self._begun: Sequence[str] = ()
        self._app = Celery(broker=node.url, set_as_current=False)
        self._looking = self._app.connection_for_read()
        self._channel = self._looking.channel()

    def prepare(self, task: str, queues: Sequence[str], tasks: int, warm_up: int) -> None:
        """See `Broker`."""
        self._queues, self._begun = queues, [WARM_UP]
        for queue in (WARM_UP, *queues):
            self._channel.queue_delete(queue)
            # Not left to the producer, which declares a queue once, in the first run, and never again.
            self._app.amqp.queues[queue].bind(self._channel).declare()
        # It goes over the line twice: in the body, and in a header for people; the rest of a message is as long again.
        text = "x" * (self._nbytes // 3)
        with self._app.producer_or_acquire() as producer:
            for number in range(warm_up + tasks):
                queue = WARM_UP if number < warm_up else queues[number % len(queues)]
                self._app.send_task(f"benchmarks.null_tasks.{task}", args=[text], queue=queue, producer=producer)

    def release(self) -> None:
        """See `Broker`."""
        self._begun = self._queues
        for queue in self._queues:
            self._app.control.add_consumer(queue)

    def warm_up_left(self) -> int:
        """See `Broker`."""
        return self._waiting([WARM_UP])

    def left(self) -> int:
        """See `Broker`; only what waits."""
        return self._waiting(self._queues)

    def certain(self, tasks: int) -> int:
        """See `Broker`."""
        return max(0, tasks - self._prefetch)

    def settle(self) -> None:
        """See `Broker`."""
        deadline_s = time.monotonic() + SETTLE_S
        while any(sum(self._node.counts(queue)) for queue in self._begun):
            if time.monotonic() > deadline_s:
                raise RunFailedError(f"messages are still unacknowledged after {SETTLE_S:g} s")

    def close(self) -> None:
        """Hangs up."""
        self._looking.close()
        self._app.close()

    def _waiting(self, queues: Sequence[str]) -> int:
        return sum(self._channel.queue_declare(queue, passive=True).message_count for queue in queues)


def waiting(client: redis.Redis, queues: Sequence[str]) -> int:
    """How many messages wait in these queues or are worked on."""
    with client.pipeline() as pipeline:
        for queue in queues:
            pipeline.llen(queue)
        pipeline.hlen("unacked")
        return sum(pipeline.execute())


def message(client: redis.Redis, url: str, task: str, queue: str, args: Sequence[Any]) -> bytes:
    """One task as it lies in its queue; the server is emptied."""
    client.flushall()
    app = Celery(broker=url, set_as_current=False)
    app.send_task(task, args=args, queue=queue)
    app.close()
    return cast(bytes, client.lrange(queue, 0, 0)[0])


def sized_message(client: redis.Redis, url: str, task: str, queue: str, nbytes: int) -> bytes:
    """A null task, with as much text as makes the whole message about that long."""

    def with_text(length: int) -> bytes:
        return message(client, url, f"benchmarks.null_tasks.{task}", queue, ["x" * length])

    least, more = len(with_text(0)), len(with_text(300))
    return with_text(max(0, round((nbytes - least) * 300 / (more - least))))


def copies(template: bytes, count: int) -> list[bytes]:
    """The same task so many times, each with an id and a delivery tag of its own."""
    parsed = loads(template)
    old_id, old_tag = parsed["headers"]["id"].encode(), parsed["properties"]["delivery_tag"].encode()
    return [
        template.replace(old_id, str(uuid.uuid4()).encode()).replace(old_tag, str(uuid.uuid4()).encode())
        for _ in range(count)
    ]

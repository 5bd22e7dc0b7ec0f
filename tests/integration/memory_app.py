"""The app of the pool's memory tests: tasks that wait, tasks that do nothing, and a broker of its own that never ends.

    celery -A memory_app worker -P legit_async

`MEMORY_APP_URL` is its broker. `feed://` stands for one inside the worker: it hands out `MEMORY_APP_FEED` null tasks,
`async def` and `def` in turns, as fast as they are acknowledged and the prefetch count allows, and says in the log what
the process then holds. All of Celery and kombu above the transport is as with any other broker. Where
`MEMORY_APP_TRANSPORT` is `legit`, a broker of Redis is talked to by our own transport.
"""

import asyncio
import gc
import os
import re
import socket
import sys
import uuid
from pathlib import Path

import redis
from celery import Celery
from celery.signals import worker_ready
from kombu import transport
from kombu.transport import memory

import legit_embedding.broker
import legit_embedding.pool  # makes `-P legit_async` known

transport.TRANSPORT_ALIASES["feed"] = "memory_app:FeedTransport"

if os.environ.get("MEMORY_APP_TRANSPORT") == "legit":
    legit_embedding.broker.install()

URL = os.environ["MEMORY_APP_URL"]
FEED = int(os.environ.get("MEMORY_APP_FEED", "0"))
REPORT_EVERY = 100_000

app = Celery("memory_app", task_cls="legit_embedding.pool.task:AsyncTask", broker=URL)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
)

waiting = 0
released = asyncio.Event()


@app.task
async def async_null():
    pass


@app.task
def plain_null():
    pass


@app.task
async def wait(party):
    """Waits with all others; the last one to come tells the test."""
    global waiting  # noqa: PLW0603  one count for the one process
    waiting += 1
    if waiting == party:
        with redis.Redis.from_url(URL) as client:
            client.set("everybody waits", waiting)
    await released.wait()
    waiting -= 1


@app.task
async def release():
    released.set()


@worker_ready.connect
def _say_so(**_):
    sys.stderr.write("the worker is ready.\n")  # without a million lines about tasks, which Celery's own level brings


def resident_kb(pid="self"):
    """What a process holds, in memory and in swap."""
    found = re.findall(
        r"^Vm(?:RSS|Swap):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"), re.MULTILINE
    )
    return sum(map(int, found))


class FeedChannel(memory.Channel):
    def basic_ack(self, delivery_tag, multiple=False):
        super().basic_ack(delivery_tag, multiple)
        self.connection.on_acknowledged()


class FeedTransport(memory.Transport):
    Channel = FeedChannel
    implements = memory.Transport.implements.extend(asynchronous=True)
    driver_type = driver_name = "feed"

    def __init__(self, client, **kwargs):
        super().__init__(client, **kwargs)
        self._handed_out = self._acknowledged = 0
        self._templates = []
        self._loop = None
        self._paused = False
        # Never emptied, so that the hub finds it readable in each turn in which it looks.
        self._readable, self._writer = socket.socketpair()
        self._writer.send(b"\0")

    def register_with_event_loop(self, connection, loop):
        self._loop = loop
        loop.add_reader(self._readable, self._hand_out)

    def _hand_out(self):
        """One message, as Redis gives them; none while the consumer holds as many as it may."""
        consumer = next((each for each in self.channels if app.conf.task_default_queue in each._active_queues), None)
        if self._handed_out == FEED or consumer is None or not consumer.qos.can_consume():
            self._paused = consumer is not None
            if self._paused:
                self._loop.remove_reader(self._readable)
            return
        self._templates = self._templates or [_sent(task) for task in (async_null, plain_null)]
        template = self._templates[self._handed_out % len(self._templates)]
        self._handed_out += 1
        task_id = str(uuid.uuid4())
        message = {
            **template,
            "headers": {**template["headers"], "id": task_id, "root_id": task_id},
            "properties": {**template["properties"], "correlation_id": task_id, "delivery_tag": task_id},
        }
        self._deliver(message, app.conf.task_default_queue)

    def on_acknowledged(self):
        self._acknowledged += 1
        if self._acknowledged % REPORT_EVERY == 0:
            gc.collect()
            held = f"{resident_kb()} kB, {len(gc.get_objects())} objects"
            sys.stderr.write(f"acknowledged {self._acknowledged}: {held}\n")
        if self._paused:
            self._paused = False
            self._loop.add_reader(self._readable, self._hand_out)


def _sent(task):
    """A message of that task, as a producer sends it."""
    with Celery("producer", broker="memory://", set_as_current=False) as producer:
        producer.send_task(task.name)
        return memory.Channel.queues[app.conf.task_default_queue].get_nowait()

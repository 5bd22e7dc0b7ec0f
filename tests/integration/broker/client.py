"""The other side of `broker_app.py`: sends its messages, reads its notes, and looks at what the broker has left."""

import json
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis
from celery import Celery

from legit_embedding.testing.worker import WorkerProcess
from tests.waiting import until

HERE = Path(__file__).parent
LEASE_S = 5.0
READY_S = 60
QUIET = ["-l", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"]


class Client:
    """A stock producer right beside the server, whatever lies between the server and its workers."""

    def __init__(self, url, notes_url):
        self.url, self.notes_url = url, notes_url
        self.app = Celery("client", broker=url, set_as_current=False)
        self.app.conf.task_ignore_result = True
        self.broker = redis.Redis.from_url(url, decode_responses=True)
        self.redis = redis.Redis.from_url(notes_url, decode_responses=True)

    def send(self, name, *args, **options):
        return self.app.send_task(f"broker_app.{name}", args=args, **options)

    def send_many(self, numbers, *args, names=("quick", "plain"), **options):
        """A message each, of these tasks in turn."""
        with self.app.producer_or_acquire() as producer:
            for i, number in enumerate(numbers):
                self.send(names[i % len(names)], number, *args, producer=producer, **options)

    def notes(self, key="ran"):
        return self.redis.lrange(f"note:{key}", 0, -1)

    def noted(self, key="ran"):
        return self.redis.llen(f"note:{key}")

    def runs(self):
        """How often each message ran."""
        return Counter(int(number) for number in self.notes())

    def release(self, key="go"):
        self.redis.set(key, "yes")

    @property
    def unacked(self):
        return self.broker.hlen("unacked")

    def queued(self, queue="celery"):
        return sum(self.broker.llen(key) for key in (queue, *self.broker.scan_iter(f"{queue}\x06\x16*")))

    def leftovers(self):
        """What is on the broker besides bindings and, while workers live, their leases; empty when all is settled."""
        with self.broker.pipeline() as pipe:
            keys = [key for key in self.broker.scan_iter() if not key.startswith(("_kombu", "unacked_deliveries"))]
            for key in keys:
                pipe.type(key)
            kinds = pipe.execute()
        size = {"list": self.broker.llen, "hash": self.broker.hlen, "zset": self.broker.zcard}
        found = {key: size[kind](key) for key, kind in zip(keys, kinds, strict=True) if kind in size}
        return {key: number for key, number in found.items() if key != "unacked_leases"}

    def reset(self):
        self.redis.flushall()
        self.broker.flushall()

    def close(self):
        self.app.close()
        self.broker.close()
        self.redis.close()


def worker_for(client, *args, name="one", url=None, transport="legit", pool="legit_async", options=None, config=None):
    """A worker that is not started yet; `url` where it does not reach the broker directly."""
    return WorkerProcess(
        "broker_app",
        args=["-P", pool, "-n", f"{name}@test", *QUIET, *args],
        env={
            "BROKER_APP_URL": url or client.url,
            "BROKER_APP_NOTES": client.notes_url,
            "BROKER_APP_TRANSPORT": transport,
            "BROKER_APP_OPTIONS": json.dumps({"lease_s": LEASE_S, **(options or {})}),
            "BROKER_APP_CONFIG": json.dumps(config or {}),
        },
        cwd=HERE,
    )


@contextmanager
def started(*workers):
    """All at once, because each start takes seconds; they are killed at the end, should they still run."""
    with ExitStack() as stack:
        for worker in workers:
            worker.launch()
            stack.callback(worker.kill)
        for worker in workers:
            worker.wait_for_log(" ready.", READY_S)
        yield workers


def all_ran(client, numbers, *, timeout_s, more=lambda: ""):
    """Returns once each message was noted at least once."""
    wanted = len(numbers)

    def complete():
        return client.noted() >= wanted and len(client.runs()) >= wanted

    until(complete, f"{wanted} messages", timeout_s=timeout_s, more=lambda: f"{state(client)}\n{more()}")
    assert set(client.runs()) == set(numbers)


def nothing_left(client, *, timeout_s=10.0, more=lambda: ""):
    """Returns once neither a message nor a record of one is on the broker."""
    until(
        lambda: not client.leftovers(),
        "an empty broker",
        timeout_s=timeout_s,
        more=lambda: f"{state(client)}\n{more()}",
    )


def state(client):
    """For a failure's message."""
    runs = client.runs()
    return f"{sum(runs.values())} runs of {len(runs)} messages; on the broker: {client.leftovers()}"

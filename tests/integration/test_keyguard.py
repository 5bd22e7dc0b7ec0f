"""The broker's keys on a real server, and a real queue of kombu's: no `reply_to` ever touches them."""

from contextlib import asynccontextmanager

import kombu
import pytest
import redis

from legit_embedding.clock import SystemClock
from legit_embedding.config import load_settings
from legit_embedding.publish.routing import RoutingRules
from legit_embedding.publish.streams import Publisher
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.reports import NullReporter

RULES = RoutingRules(global_stream="results")


@asynccontextmanager
async def publishing(url, rules=RULES):
    async with Publisher(
        settings=load_settings(), url=url, rules=rules, clock=SystemClock(), metrics=Metrics(), reporter=NullReporter()
    ) as publisher:
        yield publisher


def keyspace(url):
    """Every key as the server would save it, the global stream left out."""
    with redis.Redis.from_url(url) as raw:
        return {key: raw.dump(key) for key in raw.keys("*") if key != b"results"}


async def submit_and_look(url, client, reply_to, rules=RULES):
    """Both entries go to the global stream with the name that was refused, and every other key is as it was."""
    before = keyspace(url)
    async with publishing(url, rules) as publisher:
        receipts = await publisher.submit(reply_to, [{"n": "a"}, {"n": "b"}])
        assert [receipt.stream for receipt in receipts] == ["results", "results"]
        assert publisher.statistics().rejected == 2
    assert [fields for _, fields in client.xrange("results")] == [
        {"n": name, "rejected_reply_to": reply_to} for name in "ab"
    ]
    assert keyspace(url) == before


@pytest.mark.parametrize("options", [{}, {"global_keyprefix": "site:"}])
async def test_an_empty_queue_of_kombus_is_known_by_its_bindings_and_goes_on_working(redis_url, client, options):
    """Somebody else's queue, empty just now: all that the server has of it is the set of its bindings."""
    prefix = options.get("global_keyprefix", "")
    with kombu.Connection(redis_url, transport_options=options) as connection:
        queue = connection.SimpleQueue("quiet")
        assert client.exists(f"{prefix}quiet") == 0
        assert client.exists(f"{prefix}_kombu.binding.quiet") == 1
        rules = RoutingRules(global_stream="results", key_prefix=prefix)
        await submit_and_look(redis_url, client, f"{prefix}quiet", rules)
        queue.put({"still": "works"})
        message = queue.get(timeout=20)
        assert message.payload == {"still": "works"}
        message.ack()
        queue.close()


async def test_a_queue_that_holds_messages_is_left_alone(redis_url, client):
    with kombu.Connection(redis_url) as connection:
        queue = connection.SimpleQueue("busy")
        queue.put({"a": 1})
        await submit_and_look(redis_url, client, "busy")
        assert queue.get(timeout=20).payload == {"a": 1}
        queue.close()


@pytest.mark.parametrize("name", ["unacked", "unacked_index", "unacked_mutex", "_kombu.binding.quiet", "celeryev"])
async def test_the_brokers_own_keys_are_not_created(redis_url, client, name):
    await submit_and_look(redis_url, client, name)
    assert client.exists(name) == 0


@pytest.mark.parametrize("kind", ["list", "set", "zset", "hash", "string"])
async def test_a_key_of_another_type_is_left_alone(redis_url, client, kind):
    make = {
        "list": lambda: client.rpush("taken", "x"),
        "set": lambda: client.sadd("taken", "x"),
        "zset": lambda: client.zadd("taken", {"x": 1}),
        "hash": lambda: client.hset("taken", "x", "1"),
        "string": lambda: client.set("taken", "x"),
    }
    make[kind]()
    await submit_and_look(redis_url, client, "taken")
    assert client.type("taken") == kind


async def test_a_stream_that_is_there_already_is_written_to(redis_url, client):
    client.xadd("answers", {"n": "theirs"})
    async with publishing(redis_url) as publisher:
        await publisher.submit("answers", [{"n": "a"}])
    assert [fields["n"] for _, fields in client.xrange("answers")] == ["theirs", "a"]


async def test_many_new_streams_at_once_each_get_their_entry(redis_url, client):
    async with publishing(redis_url) as publisher:
        waiting = [publisher.submit(f"answers:{number}", [{"n": str(number)}]) for number in range(600)]
        for number, each in enumerate(waiting):
            assert (await each)[0].stream == f"answers:{number}"
    assert all(client.xlen(f"answers:{number}") == 1 for number in range(600))

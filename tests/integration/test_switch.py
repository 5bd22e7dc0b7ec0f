"""The routing switch on a real server: one for all workers, and it survives them."""

import asyncio

import pytest
import redis

from legit_embedding.publish.errors import ResultServerError
from legit_embedding.publish.switch import KEY, POLL_S, RoutingSwitch
from legit_embedding.testing.clock import FakeClock


async def following(switch, clock, value):
    """Returns once `switch` has followed to `value`."""
    async with asyncio.timeout(20):
        while switch.value != value:
            await clock.advance(POLL_S)
            await asyncio.sleep(0.005)


@pytest.fixture
def clock():
    return FakeClock()


async def test_it_survives_the_worker_that_set_it(redis_url, client, clock):
    async with RoutingSwitch.connect(redis_url, default="on", clock=clock) as first:
        assert await first.set("off") == "off"
    assert client.get(KEY) == "off"
    async with RoutingSwitch.connect(redis_url, default="on", clock=clock) as second:
        await second.ready()
        assert second.enabled is False


async def test_another_worker_follows_it(redis_url, clock):
    async with (
        RoutingSwitch.connect(redis_url, default="on", clock=clock) as first,
        RoutingSwitch.connect(redis_url, default="on", clock=clock) as second,
    ):
        await second.ready()
        for value in ("off", "on"):
            await first.set(value)
            await following(second, clock, value)


@pytest.mark.parametrize("default", ["on", "off"])
async def test_without_a_key_the_default_is_in_force_and_nothing_is_written(redis_url, client, clock, default):
    async with RoutingSwitch.connect(redis_url, default=default, clock=clock) as switch:
        await switch.ready()
        assert switch.value == default
    assert client.keys("*") == []


async def test_a_deleted_key_brings_the_default_back(redis_url, client, clock):
    async with RoutingSwitch.connect(redis_url, default="on", clock=clock) as switch:
        await switch.set("off")
        client.delete(KEY)
        await following(switch, clock, "on")


@pytest.mark.parametrize("garbage", ["", "ON", "maybe", b"\xff\xfe"])
async def test_garbage_means_the_default(redis_url, client, clock, garbage):
    client.set(KEY, garbage)
    async with RoutingSwitch.connect(redis_url, default="off", clock=clock) as switch:
        await switch.ready()
        assert switch.value == "off"
        assert await switch.set("on") == "on"  # and setting it mends it


async def test_a_key_of_another_type_means_the_default(redis_url, client, clock):
    client.rpush(KEY, "off")
    async with RoutingSwitch.connect(redis_url, default="on", clock=clock) as switch:
        await switch.ready()
        assert switch.value == "on"


async def test_it_goes_on_after_the_server_was_away(own_server, clock):
    async with RoutingSwitch.connect(own_server.url(), default="on", clock=clock) as switch:
        await switch.set("off")
        own_server.kill()
        with pytest.raises(ResultServerError):
            await switch.set("on")
        assert switch.value == "off"
        own_server.start()
        await following(switch, clock, "on")  # this server has forgotten its keys
        assert await switch.set("off") == "off"


async def test_a_replica_refuses_and_the_next_primary_takes_it(own_server, clock):
    with redis.Redis.from_url(own_server.url()) as client:
        client.replicaof("127.0.0.1", 1)
        async with RoutingSwitch.connect(own_server.url(), default="on", clock=clock) as switch:
            with pytest.raises(ResultServerError, match="read only"):
                await switch.set("off")
            client.replicaof("NO", "ONE")
            assert await switch.set("off") == "off"

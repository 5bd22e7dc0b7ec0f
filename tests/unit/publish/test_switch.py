"""The routing switch: kept on the server, followed by everybody."""

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ReadOnlyError

from legit_embedding.errors import ConfigurationError
from legit_embedding.publish.errors import ResultServerError
from legit_embedding.publish.switch import KEY, POLL_S, FixedRouting, RoutingSwitch
from legit_embedding.testing.clock import settle


def switch_of(world, default="on"):
    return RoutingSwitch(default=default, wire=world.server.connect(), clock=world.clock)


async def test_a_fixed_routing_is_known_at_once():
    routing = FixedRouting(enabled=False)
    await routing.ready()
    assert routing.enabled is False


@pytest.mark.parametrize("default", ["on", "off"])
async def test_without_a_key_the_default_is_in_force(world, default):
    async with switch_of(world, default) as switch:
        await switch.ready()
        assert (switch.value, switch.enabled) == (default, default == "on")


async def test_what_the_server_keeps_wins_over_the_default(world):
    world.server.values[KEY] = b"off"
    async with switch_of(world) as switch:
        await switch.ready()
        assert switch.enabled is False


async def test_a_change_by_somebody_else_is_followed_within_a_second(world):
    async with switch_of(world) as switch:
        await switch.ready()
        world.server.values[KEY] = b"off"
        await world.clock.advance(POLL_S)
        assert switch.value == "off"
        del world.server.values[KEY]
        await world.clock.advance(POLL_S)
        assert switch.value == "on"


async def test_a_setting_is_written_and_is_in_force_at_once(world):
    async with switch_of(world) as switch:
        assert await switch.set("off") == "off"
        assert switch.enabled is False
        assert world.server.values[KEY] == b"off"


async def test_nothing_is_known_until_the_server_has_answered(world):
    world.server.break_line = RedisConnectionError("gone")
    async with switch_of(world) as switch:
        knowing = asyncio.ensure_future(switch.ready())
        await world.clock.advance(3 * POLL_S)
        assert not knowing.done()
        assert repr(switch) == "<RoutingSwitch on, not read yet>"
        world.server.break_line = None
        await world.clock.advance(POLL_S)
        await knowing
        assert repr(switch) == "<RoutingSwitch on>"


async def test_what_was_known_stays_in_force_while_the_server_is_away(world):
    world.server.values[KEY] = b"off"
    async with switch_of(world) as switch:
        await switch.ready()
        world.server.break_line = RedisConnectionError("gone")
        await world.clock.advance(10 * POLL_S)
        assert switch.value == "off"


async def test_a_setting_that_the_server_did_not_confirm_changes_nothing(world):
    async with switch_of(world) as switch:
        await switch.ready()
        world.server.break_line = RedisConnectionError("gone")
        with pytest.raises(ResultServerError, match="off"):
            await switch.set("off")
        assert switch.value == "on"


async def test_after_a_refused_setting_the_connection_is_made_anew(world):
    """A primary that has become a replica would go on refusing; another server may answer there now."""
    async with switch_of(world) as switch:
        await switch.ready()
        world.server.fail = lambda command: ReadOnlyError("replica") if command[0] == "SET" else None
        with pytest.raises(ResultServerError):
            await switch.set("off")
        world.server.fail = lambda _: None
        await switch.set("off")
        assert world.server.opened == 2


async def test_a_poll_under_way_does_not_bring_back_what_a_setting_replaced(world):
    world.server.hold()
    async with switch_of(world) as switch:
        await settle()
        setting = asyncio.ensure_future(switch.set("off"))
        await settle()
        assert [commands[0][0] for commands in world.server.sent] == ["GET"]
        world.server.release()
        await setting
        assert switch.value == "off"


@pytest.mark.parametrize("garbage", [b"", b"maybe", b"ON", b"\xff"])
async def test_garbage_means_the_default_and_is_told_once(world, caplog, garbage):
    world.server.values[KEY] = garbage
    async with switch_of(world, "off") as switch:
        await world.clock.advance(3 * POLL_S)
        assert switch.value == "off"
    assert len(caplog.records) == 1
    assert "neither on nor off" in caplog.text


async def test_a_server_that_will_not_tell_means_the_default(world):
    """Results must not wait for ever for an answer that a permission denies."""
    world.server.fail = lambda _: NoPermissionError("no permission for GET")
    async with switch_of(world, "off") as switch:
        await switch.ready()
        assert switch.value == "off"


async def test_a_bug_in_one_poll_does_not_end_the_following(world, caplog):
    def fail(_):
        raise ValueError("a bug")

    world.server.fail = fail
    async with switch_of(world) as switch:
        await settle()
        world.server.fail = lambda _: None
        world.server.values[KEY] = b"off"
        await world.clock.advance(POLL_S)
        assert switch.value == "off"
    assert "tried again" in caplog.text


async def test_start_and_stop_may_be_called_twice(world):
    switch = switch_of(world)
    await switch.start()
    await switch.start()
    await switch.ready()
    assert len(world.server.sent) == 1
    await switch.stop()
    await switch.stop()
    await world.clock.advance(5 * POLL_S)
    assert len(world.server.sent) == 1


def test_an_unusable_url_is_told_without_its_password():
    with pytest.raises(ConfigurationError) as caught:
        RoutingSwitch.connect("redis://:secret@host:99999/0", default="on", clock=None)
    assert "secret" not in str(caught.value)

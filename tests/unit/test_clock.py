"""The machine's clock."""

from legit_embedding.clock import SystemClock


async def test_the_system_clock_goes_forward_and_returns_from_its_sleep():
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0)
    assert clock.monotonic() >= before
    assert clock.time() > 1_700_000_000

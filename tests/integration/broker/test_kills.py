"""Workers that end in the middle of their work, one way or the other: no message is lost, and none stays behind.

Real servers, real worker processes of `broker_app.py`, real signals.
"""

import signal
import time
from contextlib import nullcontext

import pytest

from legit_embedding.testing.proxy import DelayProxy
from tests.integration.broker.client import LEASE_S, all_ran, nothing_left, started, state, worker_for
from tests.waiting import until

KILLS = 10
MESSAGES = 5000
ROUNDS = 20
ROUND_MESSAGES = 300
END_S = 20
PAUSE_S = 0.01
"""Of each task: short enough for thousands, long enough that a signal meets tasks at work."""


def until_noted(client, number, worker):
    until(lambda: client.noted() >= number, f"{number} runs", more=lambda: f"{state(client)}\n{worker.log}")


def kill_at(client, worker, noted):
    until_noted(client, noted, worker)
    worker.signal(signal.SIGKILL)
    worker.wait(END_S)
    worker.kill()


@pytest.mark.parametrize("rtt_ms", [0, 20])
def test_ten_killed_workers_lose_nothing_and_their_messages_are_back_after_the_lease(server, client, rtt_ms):
    """Each is killed with tasks at work, takes under way and acks not sent."""
    numbers = range(MESSAGES)
    with DelayProxy(server.port, rtt_ms=rtt_ms) if rtt_ms else nullcontext() as proxy:
        url = proxy.url() if proxy else client.url
        client.send_many(numbers, PAUSE_S)
        held = []
        for kill in range(KILLS):
            worker = worker_for(client, "-c", "32", url=url, name=f"victim{kill}").start()
            try:
                kill_at(client, worker, client.noted() + 200)
            finally:
                worker.kill()
            held.append(client.unacked)
        killed_at_s = time.monotonic()
        assert any(held), "no kill met a worker that held messages: this test shows nothing"
        with worker_for(client, "-c", "32", url=url, name="survivor") as worker:
            until(lambda: not client.queued(), "an empty queue", timeout_s=60, more=lambda: worker.log)
            rest_done_s = time.monotonic() - killed_at_s
            all_ran(client, numbers, timeout_s=LEASE_S + 5 + rest_done_s, more=lambda: worker.log)
            done_s = time.monotonic() - killed_at_s
            assert done_s < LEASE_S + 5 + rest_done_s
            nothing_left(client, more=lambda: worker.log)
    assert not client.leftovers()
    print(f"held at the kills {held}; {sum(client.runs().values()) - MESSAGES} ran twice; done after {done_s:.1f} s")


def test_a_killed_workers_messages_are_back_in_their_order(client):
    """What the dead one held was before all that waits."""
    client.send_many(range(20), names=["hold"])
    with started(worker_for(client, "-c", "1", "--prefetch-multiplier", "8", name="victim")):
        until(lambda: client.unacked == 8, "a prefetch that is full", more=lambda: str(client.leftovers()))
    client.release()
    with worker_for(client, "-c", "1", "--prefetch-multiplier", "1", name="survivor") as worker:
        until(lambda: client.noted() >= 20, "all messages", timeout_s=60, more=lambda: worker.log)
        nothing_left(client)
    ran = [int(number) for number in client.notes()]
    assert [number for number in ran if number < 8] == list(range(8))
    assert [number for number in ran if number >= 8] == list(range(8, 20))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT], ids=["TERM", "QUIT"])
@pytest.mark.parametrize("rtt_ms", [0, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(300)
def test_shutdowns_under_load_lose_nothing_and_leave_nothing_unacknowledged(server, client, rtt_ms, number):
    """A warm one finishes what runs, a cold one gives it back; the next worker does the rest."""
    sent = 0
    waiting = []
    with DelayProxy(server.port, rtt_ms=rtt_ms) if rtt_ms else nullcontext() as proxy:
        url = proxy.url() if proxy else client.url
        for turn in range(ROUNDS):
            client.send_many(range(sent, sent + ROUND_MESSAGES), PAUSE_S)
            sent += ROUND_MESSAGES
            with started(worker_for(client, "-c", "16", url=url, name=f"round{turn}")) as (worker,):
                until_noted(client, client.noted() + 20, worker)
                worker.signal(number)
                assert worker.wait(END_S) is not None, worker.log[-3000:]
                kept = {key: left for key, left in client.leftovers().items() if key != "celery"}
                assert not kept, f"turn {turn}: {state(client)}\n{worker.log[-3000:]}"
            waiting.append(client.queued())
        assert all(waiting[:3]), "no signal met a worker under load: this test shows nothing"
        with worker_for(client, "-c", "64", url=url, name="last") as worker:
            all_ran(client, range(sent), timeout_s=60, more=lambda: worker.log)
            nothing_left(client)
    if number == signal.SIGTERM:
        assert set(client.runs().values()) == {1}

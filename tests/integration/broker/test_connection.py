"""Connections that break and servers that start anew, under one worker that goes on: nothing is lost or left over.

Real servers, a real worker process of `broker_app.py`, a proxy that cuts the line between them.
"""

import random
import signal
from contextlib import closing

import pytest

from legit_embedding.testing.proxy import DelayProxy
from legit_embedding.testing.server import EmbeddedServer
from tests.integration.broker.client import Client, all_ran, nothing_left, state, worker_for
from tests.waiting import until

CUTS = 100
MESSAGES_A_CUT = 40
MOST_BYTES = 20_000  # some ten messages, or hundreds of acks
PAUSE_S = 0.01
CONNECTED = "Connected to redis"


@pytest.mark.parametrize("rtt_ms", [0, 20])
@pytest.mark.timeout(300)
@pytest.mark.slow
def test_a_hundred_cuts_at_random_bytes_lose_nothing_and_run_nothing_twice(server, client, rtt_ms):
    chance = random.Random(rtt_ms)
    sent = 0
    with DelayProxy(server.port, rtt_ms=rtt_ms) as proxy, worker_for(client, "-c", "16", url=proxy.url()) as worker:
        for cuts in range(1, CUTS + 1):
            # Wherever it falls: in the middle of a reply, of a command, of the next connection's first words.
            direction = chance.choice(["to_server", "to_client"])
            proxy.cut_after(**{direction: chance.randrange(1, MOST_BYTES)})
            while worker.log.count(CONNECTED) <= cuts:
                assert worker.running, worker.log[-3000:]
                client.send_many(range(sent, sent + MESSAGES_A_CUT), PAUSE_S)
                sent += MESSAGES_A_CUT
                until(
                    lambda goal=sent - MESSAGES_A_CUT: client.noted() >= goal or not worker.running,
                    "what was sent before",
                    more=lambda: f"{worker.log}\n{worker!r}; {state(client)}",
                )
        all_ran(client, range(sent), timeout_s=60, more=lambda: worker.log)
        nothing_left(client, more=lambda: worker.log)
    twice = {number: runs for number, runs in client.runs().items() if runs > 1}
    assert not twice, f"{len(twice)} of {sent} ran more than once"


@pytest.mark.parametrize("name", ["hold", "plain_hold"])
def test_a_task_that_runs_through_a_cut_is_acknowledged_over_the_next_connection(server, client, name):
    numbers = range(4)
    client.send_many(numbers, names=[name])
    with DelayProxy(server.port) as proxy, worker_for(client, "-c", "8", url=proxy.url()) as worker:
        until(lambda: client.noted("started") == 4, "four tasks at work", more=lambda: worker.log)
        for cuts in range(1, 4):
            assert proxy.cut()
            worker.wait_for_log(CONNECTED, 30, count=cuts + 1)
            client.send("quick", 10 + cuts)
            until(lambda cuts=cuts: client.noted() == cuts, "a message over the new line", more=lambda: worker.log)
        assert client.unacked == 4
        client.release()
        all_ran(client, [*numbers, 11, 12, 13], timeout_s=30, more=lambda: worker.log)
        nothing_left(client, more=lambda: worker.log)
    assert set(client.runs().values()) == {1}
    assert client.noted("started") == 4


@pytest.mark.parametrize("name", ["hold", "plain_hold"])
def test_a_task_that_runs_through_a_cut_goes_back_with_a_cold_shutdown(server, client, name):
    client.send_many(range(4), names=[name])
    with DelayProxy(server.port) as proxy, worker_for(client, "-c", "8", url=proxy.url()) as worker:
        until(lambda: client.noted("started") == 4, "four tasks at work", more=lambda: worker.log)
        proxy.cut()
        worker.wait_for_log(CONNECTED, 30, count=2)
        client.send("quick", 9)
        until(lambda: client.noted() == 1, "a message over the new line", more=lambda: worker.log)
        worker.signal(signal.SIGQUIT)
        assert worker.wait(30) is not None
    assert client.leftovers() == {"celery": 4}


def test_what_waited_in_the_worker_at_a_cut_runs_once_and_in_order(server, client):
    """Celery forgets what it has not started; that goes back and is taken anew."""
    client.send_many(range(12), names=["hold"])
    with (
        DelayProxy(server.port) as proxy,
        worker_for(client, "-c", "1", "--prefetch-multiplier", "8", url=proxy.url()) as worker,
    ):
        until(lambda: client.unacked == 8 and client.noted("started") == 1, "a full prefetch", more=lambda: worker.log)
        proxy.cut()
        worker.wait_for_log(CONNECTED, 30, count=2)
        client.release()
        all_ran(client, range(12), timeout_s=30, more=lambda: worker.log)
        nothing_left(client, more=lambda: worker.log)
    assert [int(number) for number in client.notes()] == list(range(12))


def test_a_server_that_is_killed_and_started_again_loses_nothing(notes_server):
    """It keeps its data on disk; the worker goes on where it was."""
    numbers = range(2000)
    with (
        EmbeddedServer(args=["--appendonly", "yes", "--appendfsync", "always"]) as server,
        closing(Client(server.url(), notes_server.url())) as client,
    ):
        client.reset()
        client.send_many(numbers, PAUSE_S)
        with worker_for(client, "-c", "16") as worker:
            for noted in (200, 700):
                until(lambda noted=noted: client.noted() >= noted, f"{noted} runs", more=lambda: worker.log)
                server.restart()
                assert client.noted() < len(numbers), "the server was killed after the work: this shows nothing"
            all_ran(client, numbers, timeout_s=60, more=lambda: worker.log)
            nothing_left(client, more=lambda: worker.log)
        assert set(client.runs().values()) == {1}

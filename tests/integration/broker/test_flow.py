"""What a worker with the broker room does with its queues from one message to the next, alone and beside others.

Real servers, real worker processes of `broker_app.py`.
"""

import os
import statistics
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from celery import version_info
from celery.events import EventReceiver

from legit_embedding.broker.takes import SAFETY_PAUSE_S
from legit_embedding.testing.proxy import DelayProxy
from tests.integration.broker.client import all_ran, nothing_left, started, state, worker_for
from tests.integration.broker.rig import rig, send
from tests.waiting import until

RTT_MS = 20
IDLE_S = 10
WAKE_UP_S = 0.1
"""Five round trips: far from the second after which an idle worker looks by itself, with room for a busy machine."""


@pytest.fixture
def proxy(server):
    with DelayProxy(server.port, rtt_ms=RTT_MS) as own:
        yield own


# -- beside others -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lease_s", [2, 30], ids=["short lease", "long lease"])
@pytest.mark.parametrize("beside", ["legit", "kombu"])
def test_a_task_longer_than_leases_and_visibility_timeout_runs_once(client, lease_s, beside):
    """Both workers look for overdue messages each second; the one that works keeps its own young."""
    options = {
        "lease_s": lease_s,
        "visibility_timeout": 2,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
    client.send("long", 1, 8.0)
    client.send("plain", 2, 8.0)
    with started(worker_for(client, "-c", "4", name="at-work", options=options)) as (at_work,):
        until(lambda: client.unacked == 2 and client.noted("started") == 1, "two tasks at work")
        with started(worker_for(client, "-c", "4", name="beside", options=options, transport=beside)) as (other,):
            until(lambda: client.noted() >= 2, "the end of both", more=lambda: f"{state(client)}\n{at_work.log}")
            nothing_left(client, more=lambda: at_work.log)
            assert "received" not in other.log
    assert client.runs() == {1: 1, 2: 1}
    assert client.noted("started") == 1


def test_a_queue_shared_with_a_stock_worker_gives_each_message_once(client):
    numbers = range(1500)
    ours, stock = (worker_for(client, "-c", "4", name=name, transport=name) for name in ("legit", "kombu"))
    with started(ours, stock):
        client.send_many(numbers, 0.01)
        all_ran(client, numbers, timeout_s=60, more=lambda: ours.log + stock.log)
        nothing_left(client)
        assert [ours.stop(), stock.stop()] == [0, 0]
    assert not client.leftovers()
    assert set(client.runs().values()) == {1}
    for worker in (ours, stock):
        assert worker.log.count(" succeeded ") > 100, "one of the two did next to nothing: this test shows nothing"


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [1, 8])
def test_messages_run_by_priority_and_within_one_in_their_order(client, prefetch):
    """0 comes first, as ever with Redis; all lie there before the worker starts."""
    priorities = [9, 0, 6, 3, 0, 9, 3, 6] * 5
    for number, priority in enumerate(priorities):
        client.send("quick", number, priority=priority)
    with worker_for(client, "-c", "1", "--prefetch-multiplier", str(prefetch)) as worker:
        all_ran(client, range(len(priorities)), timeout_s=30, more=lambda: worker.log)
        nothing_left(client)
    ran = [int(number) for number in client.notes()]
    assert ran == sorted(ran, key=lambda number: (priorities[number], number))


@pytest.mark.parametrize("prefetch", [1, 8])
def test_two_queues_have_turns_however_long_one_of_them_is(client, prefetch):
    client.send_many(range(100), queue="long")
    client.send_many(range(100, 120), queue="short")
    with worker_for(client, "-c", "1", "--prefetch-multiplier", str(prefetch), "-Q", "long,short") as worker:
        all_ran(client, range(120), timeout_s=30, more=lambda: worker.log)
        nothing_left(client)
    ran = [int(number) for number in client.notes()]
    assert [number for number in ran if number < 100] == list(range(100))
    assert [number for number in ran if number >= 100] == list(range(100, 120))
    assert max(ran.index(number) for number in range(100, 120)) < 45, "the short queue waited for the long one"


# -- how much ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(version_info < (5, 6), reason="worker_disable_prefetch comes with Celery 5.6")
def test_a_worker_without_prefetch_takes_what_it_can_run_and_no_more(client):
    client.send_many(range(10), names=["hold"])
    config = {"worker_disable_prefetch": True}
    most = 0
    with worker_for(client, "-c", "2", config=config) as worker:
        until(lambda: client.noted("started") == 2, "two tasks at work", more=lambda: worker.log)
        until_s = time.monotonic() + 1.5  # longer than an idle worker waits before it looks again
        while time.monotonic() < until_s:
            most = max(most, client.unacked)
        assert (most, client.noted("started"), client.queued()) == (2, 2, 8)
        client.release()
        all_ran(client, range(10), timeout_s=30, more=lambda: worker.log)
        nothing_left(client)
    assert set(client.runs().values()) == {1}


def cpu_s(pid):
    """What a process has used so far, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_an_idle_worker_uses_less_than_a_hundredth_of_a_core(client):
    with worker_for(client, "-c", "16", "-Q", "one,two,three") as worker:
        client.send("quick", 1, queue="two")
        all_ran(client, [1], timeout_s=30)
        until(lambda: not client.leftovers(), "an idle worker")
        before_s = cpu_s(worker.pid)
        worker.wait(IDLE_S)
        used_s = cpu_s(worker.pid) - before_s
    assert used_s < 0.01 * IDLE_S, f"{used_s / IDLE_S:.1%} of a core"


def test_an_idle_worker_far_away_begins_at_once(client, proxy):
    """It is told of the message and asks for it: one and a half round trips, of which it sleeps through none."""
    with worker_for(client, "-c", "4", url=proxy.url()) as worker:
        waits_s = []
        for number in range(9):
            until(lambda: not client.leftovers(), "an idle worker")
            worker.wait(0.3)  # until the server has seen that it wants to know of the next one
            sent_s = time.time()
            client.send("stamped", number)
            until(lambda number=number: client.noted("stamps") > number, "the task", more=lambda: worker.log)
            waits_s.append(float(client.notes("stamps")[number].split()[1]) - sent_s)
    assert statistics.median(waits_s) < WAKE_UP_S, [f"{wait_s * 1000:.0f} ms" for wait_s in waits_s]


@contextmanager
def fleet(url, number, *, name, **options):
    """Consumers of the same queue, each with a loop on a thread of its own, and records of its own.

    Those of one process share what they hold: here each is to be like a process of its own.
    """
    stop = threading.Event()

    def run(own):
        while not stop.is_set():
            own.turn()

    with ExitStack() as stack:
        rigs = [stack.enter_context(rig(url, unacked_key=f"{name}{i}", **options)) for i in range(number)]
        threads = [threading.Thread(target=run, args=(own,), name=f"consumer {i}") for i, own in enumerate(rigs)]
        try:
            for thread in threads:
                thread.start()
            yield rigs
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)


def calls(client, command):
    """How often the server has run it so far, in scripts as well."""
    return client.broker.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]


def test_of_many_idle_consumers_few_take_and_each_other_one_only_reads_once(client):
    number, messages = 24, 40
    for i in range(number):  # with records of its own each would believe to be the only one
        client.broker.zadd(f"many{i}_leases", {f"other{other}": time.time() + 3600 for other in range(number)})
    with fleet(client.url, number, name="many") as rigs:
        lists = len(rigs[0].channel.priority_steps)

        def trickle(bodies):
            """Takes and looks, one message after the other; each take looks at each list once, and again for more."""
            before = calls(client, "rpop"), calls(client, "exists")
            for body in bodies:
                looks = calls(client, "exists")
                send(client.url, [body])
                until(lambda looks=looks: calls(client, "exists") >= looks + number, "the end of all looks")
                until(lambda body=body: any(body in own.bodies for own in rigs), "the message")
            pops, looks = calls(client, "rpop") - before[0], calls(client, "exists") - before[1]
            return (pops - len(bodies)) / lists, looks

        until(lambda: calls(client, "exists") >= number, "idle consumers")
        trickle(range(20))  # until those who lose have found out
        from_s = time.monotonic()
        takes, looks = trickle(range(20, 20 + messages))
        by_themselves = number * (time.monotonic() - from_s) / SAFETY_PAUSE_S
        came = sorted(body for own in rigs for body in own.bodies)
    assert came == list(range(20 + messages))
    assert takes <= messages * number / 2, f"{takes / messages:.1f} takes a message"
    assert looks <= messages * number * 1.2 + by_themselves, f"{looks / messages:.1f} looks a message"


def test_an_idle_consumer_is_not_told_of_the_leases_that_are_renewed(client):
    """Its takes read them: it would look each time, and so would every other one."""
    with fleet(client.url, 1, name="lone", lease_s=0.6):
        until(lambda: calls(client, "exists"), "an idle consumer")
        from_s, looks, renewals = time.monotonic(), calls(client, "exists"), calls(client, "zadd")
        until(lambda: calls(client, "zadd") >= renewals + 12, "renewals")
        looks = calls(client, "exists") - looks
        looked_for_s = time.monotonic() - from_s
    assert looks <= looked_for_s / SAFETY_PAUSE_S + 1


# -- what else goes over the line --------------------------------------------------------------------------------------


class Monitor:
    """The events that workers send, received on a thread."""

    def __init__(self, client):
        self.types = []
        self._broker = client.broker
        self._connection = client.app.connection_for_read()
        self._receiver = EventReceiver(self._connection, handlers={"*": lambda event: self.types.append(event["type"])})
        self._thread = threading.Thread(target=self._run, name="monitor")

    def __enter__(self):
        self._thread.start()
        until(self._broker.pubsub_numpat, "the subscription")  # what is sent before goes nowhere
        return self

    def __exit__(self, *_):
        self._receiver.should_stop = True
        self._thread.join(30)
        self._connection.close()

    def _run(self):
        self._receiver.capture(limit=None, timeout=None, wakeup=False)


def ask(command, *args):
    """The worker's answer; asked again where it had not yet subscribed."""
    answers = []
    until(lambda: answers.extend(command(*args, destination=["told@test"], timeout=2, limit=1)) or answers, "an answer")
    return answers


@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
def test_events_and_remote_control_work(client, proxy, far):
    url = proxy.url() if far else client.url
    with Monitor(client) as monitor, worker_for(client, "-c", "8", "-E", name="told", url=url) as worker:
        client.send_many(range(200))
        all_ran(client, range(200), timeout_s=30, more=lambda: worker.log)
        for kind in ("task-received", "task-started", "task-succeeded"):
            until(lambda kind=kind: monitor.types.count(kind) >= 200, f"200 times {kind}", more=lambda: worker.log)
        assert ask(client.app.control.ping) == [{"told@test": {"ok": "pong"}}]
        nothing_left(client)
    for kind in ("task-received", "task-started", "task-succeeded"):
        assert monitor.types.count(kind) == 200


@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
def test_a_queue_that_is_added_and_cancelled_by_remote_control_is_served_and_left(client, proxy, far):
    control = client.app.control
    with worker_for(client, "-c", "4", name="told", url=proxy.url() if far else client.url) as worker:
        assert "ok" in ask(partial(control.add_consumer, reply=True), "more")[0]["told@test"]
        client.send_many(range(10), queue="more")
        all_ran(client, range(10), timeout_s=30, more=lambda: worker.log)
        assert "ok" in ask(partial(control.cancel_consumer, reply=True), "more")[0]["told@test"]
        client.send_many(range(10, 20), queue="more")
        client.send_many(range(20, 30))
        until(lambda: client.noted() == 20, "the other queue's messages", more=lambda: worker.log)
        until(lambda: client.leftovers() == {"more": 10}, "no more than its messages", more=lambda: state(client))


def test_retries_and_messages_sent_from_tasks_all_run_once(client, proxy):
    with worker_for(client, "-c", "16", url=proxy.url()) as worker:
        client.send_many(range(100), names=["retried"])
        client.send_many(range(100, 200), names=["send_on"])
        all_ran(client, range(200), timeout_s=60, more=lambda: worker.log)
        nothing_left(client)
    assert set(client.runs().values()) == {1}

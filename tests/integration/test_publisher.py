"""The publisher on a real server that is made to refuse, to stall, to die and to come back.

Whatever happens: every entry is on a stream, every submission is confirmed once, and afterwards everything goes on.
"""

import asyncio
import random
import threading
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import redis

from legit_embedding.clock import SystemClock
from legit_embedding.config import load_settings
from legit_embedding.errors import ShuttingDownError
from legit_embedding.publish.routing import RoutingRules
from legit_embedding.publish.streams import Publisher
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.proxy import DelayProxy
from legit_embedding.testing.reports import NullReporter
from legit_embedding.testing.server import EmbeddedServer, free_port

PATIENCE_S = 60.0


@dataclass
class Sender:
    """A publisher, and the names of everything that was handed to it."""

    publisher: Publisher
    reporter: NullReporter
    names: list[str] = field(default_factory=list)
    waiting: list[asyncio.Future] = field(default_factory=list)

    def send(self, count=1, reply_to=None, payload=""):
        """Submits so many entries, each under a new name."""
        names = [str(len(self.names) + number) for number in range(count)]
        self.names += names
        self.waiting.append(self.publisher.submit(reply_to, [{"n": name, "v": payload} for name in names]))
        return self.waiting[-1]

    async def meet(self, kind):
        """Returns once the publisher waits out trouble of this kind; its intake is closed then."""
        await until(lambda: self.publisher.statistics().trouble == kind)
        room = asyncio.ensure_future(self.publisher.wait_for_room())
        await asyncio.sleep(0)
        assert not room.done()
        room.cancel()

    async def all_confirmed(self, client):
        """The trouble is over: every receipt shows an entry of its own, and nothing is there that was not sent."""
        async with asyncio.timeout(PATIENCE_S):
            receipts = [receipt for each in self.waiting for receipt in await each]
            await self.publisher.wait_for_room()
            late = self.send()
            receipts += await late
        assert len(receipts) == len(self.names)
        assert len(set(receipts)) == len(receipts)
        found = {
            (stream, entry_id): fields["n"]
            for stream in {receipt.stream for receipt in receipts}
            for entry_id, fields in client.xrange(stream)
        }
        assert [found[receipt.stream, receipt.entry_id] for receipt in receipts] == self.names
        assert set(found.values()) == set(self.names)
        statistics = self.publisher.statistics()
        assert len(found) - len(self.names) <= statistics.retried
        assert (statistics.pending_entries, statistics.pending_bytes, statistics.pipelines) == (0, 0, 0)
        assert (statistics.confirmed, statistics.trouble) == (len(self.names), None)


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def sending(url, *, close_timeout_s=10.0, **settings):
    reporter = NullReporter()
    async with Publisher(
        settings=load_settings(**({"publish_timeout_s": 30.0} | settings)),
        url=url,
        rules=RoutingRules(global_stream="results"),
        clock=SystemClock(),
        metrics=Metrics(),
        reporter=reporter,
        close_timeout_s=close_timeout_s,
    ) as publisher:
        yield Sender(publisher, reporter)


@pytest.fixture
def admin(own_server):
    """A client of the test's own server whose connections are none of the publisher's."""
    with redis.Redis.from_url(own_server.url(), decode_responses=True) as connection:
        yield connection


# -- streams that refuse an entry --------------------------------------------------------------------------------------


async def test_a_stream_that_became_a_queue_after_its_first_use_is_left_alone(redis_url, client):
    async with sending(redis_url) as sender:
        (receipt,) = await sender.send(reply_to="answers")
        assert receipt.stream == "answers"
        client.delete("answers")
        client.rpush("answers", "somebody's")
        receipts = await sender.send(3, reply_to="answers")
        assert [receipt.stream for receipt in receipts] == ["results"] * 3
        assert sender.publisher.statistics().rejected == 3
        assert sender.publisher.statistics().trouble is None
    assert client.lrange("answers", 0, -1) == ["somebody's"]
    assert [fields["rejected_reply_to"] for _, fields in client.xrange("results")] == ["answers"] * 3


async def test_a_stream_whose_ids_are_used_up_is_left_alone(redis_url, client):
    client.xadd("answers", {"n": "last"}, id="18446744073709551615-18446744073709551615")
    async with sending(redis_url) as sender:
        (receipt,) = await sender.send(reply_to="answers")
        assert receipt.stream == "results"
        assert sender.publisher.statistics().trouble is None
    assert client.xlen("answers") == 1


async def test_a_stream_without_permission_is_left_alone_and_told(own_server, admin):
    admin.execute_command("ACL", "SETUSER", "worker", "on", ">pw", "~results", "~mine:*", "+@all")
    url = f"redis://worker:pw@127.0.0.1:{own_server.port}/0"
    async with sending(url) as sender:
        refused, allowed = sender.send(2, reply_to="theirs"), sender.send(reply_to="mine:1")
        assert [receipt.stream for receipt in await refused] == ["results"] * 2
        assert [receipt.stream for receipt in await allowed] == ["mine:1"]
        assert sender.reporter.causes == ["publish:no_permission"]
        assert sender.publisher.statistics().trouble is None
    assert admin.exists("theirs") == 0


async def test_a_global_stream_that_refuses_is_waited_for(redis_url, client):
    client.set("results", "in the way")
    async with sending(redis_url) as sender:
        sender.send(3)
        await sender.meet("wrong_type")
        sender.send(2, reply_to="answers")
        client.delete("results")
        await sender.all_confirmed(client)


# -- the server's own conditions ---------------------------------------------------------------------------------------


async def test_a_server_that_is_full_is_waited_for(own_server, admin):
    async with sending(own_server.url()) as sender:
        await sender.send(5)
        admin.config_set("maxmemory", 1)
        for _ in range(10):
            sender.send(5, reply_to="answers")
        await sender.meet("out_of_memory")
        admin.config_set("maxmemory", 0)
        await sender.all_confirmed(admin)
        assert sender.reporter.causes == ["publish:out_of_memory"]


async def test_a_server_without_enough_replicas_is_waited_for(own_server, admin):
    async with sending(own_server.url()) as sender:
        admin.config_set("min-replicas-to-write", 1)
        sender.send(5)
        await sender.meet("noreplicas")
        admin.config_set("min-replicas-to-write", 0)
        await sender.all_confirmed(admin)


async def test_a_server_that_cannot_save_is_waited_for(tmp_path):
    """MISCONF, which meets PING too: a worker that starts now waits, and begins when it is over."""
    gone = tmp_path / "gone"
    gone.mkdir()
    with (
        EmbeddedServer(args=["--save", "3600 1", "--enable-protected-configs", "yes"]) as server,
        redis.Redis.from_url(server.url(), decode_responses=True) as admin,
    ):
        admin.config_set("dir", str(gone))
        gone.rmdir()
        admin.set("k", "v")
        admin.bgsave()
        await until(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err")
        async with sending(server.url()) as sender:
            await sender.meet("misconf")
            sender.send(5)
            admin.config_set("stop-writes-on-bgsave-error", "no")
            await sender.all_confirmed(admin)
            assert sender.publisher.statistics().retried == 0
        admin.config_set("save", "")


async def test_the_intake_opens_after_a_trouble_that_only_the_first_question_met(own_server, admin):
    """No entry was ever there that could prove it gone."""
    admin.config_set("busy-reply-threshold", 1)
    script = threading.Thread(target=run_forever, args=(own_server.url(),))
    script.start()
    await until(lambda: is_busy(admin))
    async with sending(own_server.url()) as sender:
        await sender.meet("busy")
        admin.script_kill()
        async with asyncio.timeout(PATIENCE_S):
            await sender.publisher.wait_for_room()
        await sender.all_confirmed(admin)
    script.join()


async def test_a_server_that_is_busy_with_a_script_is_waited_for(own_server, admin):
    admin.config_set("busy-reply-threshold", 1)
    async with sending(own_server.url()) as sender:
        await sender.send(2)
        script = threading.Thread(target=run_forever, args=(own_server.url(),))
        script.start()
        await until(lambda: is_busy(admin))
        sender.send(5)
        await sender.meet("busy")
        admin.script_kill()
        await sender.all_confirmed(admin)
        script.join()


def run_forever(url):
    with redis.Redis.from_url(url) as connection, pytest.raises(redis.ResponseError, match="killed"):
        connection.eval("while true do end", 0)


def is_busy(client):
    try:
        client.get("k")
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


@pytest.mark.parametrize("stale", ["yes", "no"])
async def test_a_primary_that_became_a_replica_is_waited_for(own_server, admin, stale):
    """With `replica-serve-stale-data no` it answers MASTERDOWN, to questions too."""
    admin.config_set("replica-serve-stale-data", stale)
    async with sending(own_server.url()) as sender:
        await sender.send(2)
        admin.replicaof("127.0.0.1", free_port())
        sender.send(5)
        sender.send(5, reply_to="answers")
        await sender.meet("read_only" if stale == "yes" else "cluster_down")
        admin.replicaof("NO", "ONE")
        await sender.all_confirmed(admin)


async def test_a_cluster_without_its_slots_is_waited_for():
    with (
        EmbeddedServer(args=["--cluster-enabled", "yes", "--cluster-port", str(free_port())]) as server,
        redis.Redis.from_url(server.url(), decode_responses=True) as admin,
    ):
        async with sending(server.url()) as sender:
            sender.send(5)
            sender.send(5, reply_to="answers")
            await sender.meet("cluster_down")
            admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            await sender.all_confirmed(admin)


async def test_a_server_that_loads_its_data_is_waited_for():
    """It takes connections, and refuses every command until it is done."""
    slow = ["--save", "3600 1", "--key-load-delay", "300", "--loading-process-events-interval-bytes", "1024"]
    with EmbeddedServer(args=slow) as server, redis.Redis.from_url(server.url(), decode_responses=True) as admin:
        with admin.pipeline(transaction=False) as pipeline:
            for number in range(5000):
                pipeline.set(f"k{number}", "v" * 20)
            pipeline.execute()
        async with sending(server.url()) as sender:
            await sender.send(3)
            admin.save()
            restart = asyncio.ensure_future(asyncio.to_thread(server.restart))
            sender.send(5)
            await sender.meet("loading")
            await restart
            await sender.all_confirmed(admin)


async def test_a_password_that_is_missing_is_waited_for(own_server, admin):
    async with sending(own_server.url()) as sender:
        await sender.send(2)
        admin.config_set("requirepass", "pw")
        admin.auth("pw")
        drop_clients(admin)
        sender.send(5)
        await sender.meet("authentication")
        admin.config_set("requirepass", "")
        await sender.all_confirmed(admin)


async def test_a_password_that_is_wrong_is_waited_for(own_server, admin):
    admin.execute_command("ACL", "SETUSER", "worker", "on", ">old", "~*", "+@all")
    async with sending(f"redis://worker:new@127.0.0.1:{own_server.port}/0") as sender:
        sender.send(5)
        await sender.meet("authentication")
        admin.execute_command("ACL", "SETUSER", "worker", ">new")
        await sender.all_confirmed(admin)
        assert sender.reporter.causes == ["publish:authentication"]


def drop_clients(client):
    """Ends every connection but the one that asks."""
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


# -- a line that stalls or breaks --------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_at_the_start_is_waited_for():
    port = free_port()
    async with sending(f"redis://127.0.0.1:{port}/0") as sender:
        sender.send(5)
        sender.send(5, reply_to="answers")
        await sender.meet("unreachable")
        with EmbeddedServer(port=port) as server, redis.Redis.from_url(server.url(), decode_responses=True) as admin:
            await sender.all_confirmed(admin)


async def test_connections_that_were_dropped_while_idle_are_no_news(own_server, admin):
    async with sending(own_server.url()) as sender:
        await sender.send(2)
        drop_clients(admin)
        sender.send(5)
        await sender.all_confirmed(admin)
        assert sender.reporter.causes == []


async def test_a_server_that_stalls_may_hold_entries_twice_and_loses_none(own_server, admin):
    """It runs what timed out after all, once it goes on."""
    async with sending(own_server.url(), publish_timeout_s=0.1) as sender:
        await sender.send(2)
        own_server.pause()
        for _ in range(5):
            sender.send(20)
        await sender.meet("timeout")
        await until(lambda: sender.publisher.statistics().retried > 100)
        own_server.resume()
        await sender.all_confirmed(admin)
        assert sender.reporter.causes == ["publish:timeout"]


async def test_a_server_that_is_killed_and_started_again_while_entries_flow_loses_no_confirmed_one():
    with (
        EmbeddedServer(args=["--appendonly", "yes", "--appendfsync", "always"]) as server,
        redis.Redis.from_url(server.url(), decode_responses=True) as admin,
    ):
        async with sending(server.url()) as sender:
            for _ in range(3):
                restart = asyncio.ensure_future(asyncio.to_thread(server.restart))
                while not restart.done():
                    sender.send(10, reply_to=random.choice([None, "answers"]))
                    await asyncio.sleep(0.005)
                await restart
                await sender.send(10)
            await sender.all_confirmed(admin)


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
@pytest.mark.parametrize("seed", range(3))
async def test_connections_that_are_cut_at_any_byte_lose_nothing(redis_url, client, server, direction, seed):
    """Cut on the way there, a part is written; on the way back, all of it is and nobody knows."""
    dice = random.Random(seed)
    with DelayProxy(server.port, rtt_ms=1) as proxy:
        async with sending(proxy.url(), publish_max_entries=32) as sender:
            await sender.publisher.wait_for_room()
            for _ in range(12):
                proxy.cut_after(**{direction: dice.randrange(1, 20_000 if direction == "to_server" else 600)})
                for _ in range(dice.randrange(1, 6)):
                    sender.send(dice.randrange(1, 12), reply_to=dice.choice([None, "answers"]), payload="x" * 500)
                    await asyncio.sleep(0)
                await sender.waiting[-1]
            await sender.all_confirmed(client)
        assert sender.publisher.statistics().retried > 0


async def test_close_during_trouble_is_bounded_and_its_waiters_learn_of_it(own_server, admin):
    async with sending(own_server.url(), close_timeout_s=0.2) as sender:
        await sender.send(2)
        own_server.pause()
        waiting = sender.send(5)
        await sender.publisher.close()
        with pytest.raises(ShuttingDownError):
            await waiting
    own_server.resume()


# -- the wire ----------------------------------------------------------------------------------------------------------


async def test_a_unix_socket_is_as_good(tmp_path):
    path = tmp_path / "s"
    with (
        EmbeddedServer(args=["--unixsocket", str(path)]) as server,
        redis.Redis.from_url(server.url(), decode_responses=True) as admin,
    ):
        async with sending(f"unix://{path}") as sender:
            sender.send(300)
            await sender.all_confirmed(admin)


async def test_result_streams_are_trimmed_where_that_is_asked_for(redis_url, client):
    async with sending(redis_url, results_maxlen=100) as sender:
        for _ in range(10):
            await sender.send(100)
    assert 100 <= client.xlen("results") < 500


async def test_vectors_come_through_unchanged(redis_url, client):
    """Hundreds of entries of a few kilobytes each, over several connections, in several pipelines."""
    payload = "".join(map(chr, range(32, 127))) * 60
    async with sending(redis_url) as sender:
        for number in range(40):
            sender.send(50, reply_to=f"answers:{number % 4}", payload=payload)
        await sender.all_confirmed(client)
    for number in range(4):
        assert Counter(fields["v"] for _, fields in client.xrange(f"answers:{number}")) == {payload: 500}

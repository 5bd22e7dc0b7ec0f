"""The transport on the servers, and by the ways to them, that sites have."""

import logging
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from legit_embedding.testing.processes import GuardedProcess
from legit_embedding.testing.proxy import DelayProxy
from legit_embedding.testing.server import EmbeddedServer, find_binary, free_port
from tests.integration.broker.certificates import make_certificate, needs_openssl
from tests.integration.broker.rig import rig, send
from tests.waiting import until

REDIS = shutil.which("redis-server")
SENTINEL = shutil.which("redis-sentinel")
NUMBERS = list(range(40))

needs_redis = pytest.mark.skipif(REDIS is None, reason="no redis-server: install Debian's")


@pytest.fixture
def start():
    """Starts servers that are stopped at the end."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(EmbeddedServer(args=args, **options))


@pytest.fixture
def client_of():
    """Makes clients that are closed at the end."""
    with ExitStack() as stack:

        def make(url, **options):
            client = redis.Redis.from_url(url, **options)
            stack.callback(client.close)
            return client

        yield make


def left_over(client, prefix=""):
    """What a consumer has left of its bookkeeping."""
    return sorted(key.decode() for key in client.scan_iter(f"{prefix}unacked*"))


def consume_all(url, expected=NUMBERS, **options):
    with rig(url, **options) as consumer:
        consumer.turn_until(lambda: len(consumer.bodies) == len(expected))
        assert consumer.bodies == expected
        return consumer.pipelined


@pytest.mark.parametrize("binary", [None, pytest.param(REDIS, marks=needs_redis)], ids=["valkey", "redis"])
@pytest.mark.parametrize("push", [True, False], ids=["told", "looking"])
def test_messages_come_in_order_and_nothing_is_left(start, client_of, binary, push):
    server = start(binary=binary)
    send(server.url(), NUMBERS)
    assert consume_all(server.url(), push_wake_ups=push)
    assert left_over(client_of(server.url())) == []


def test_a_password_and_a_user_are_given(start, client_of):
    server = start("--requirepass", "secret")
    client_of(f"redis://:secret@127.0.0.1:{server.port}/0").acl_setuser(
        "worker", enabled=True, passwords=["+pass"], keys=["*"], channels=["*"], commands=["+@all"]
    )
    url = f"redis://worker:pass@127.0.0.1:{server.port}/0"
    send(url, NUMBERS)
    assert consume_all(url)


@pytest.mark.parametrize(
    ("forbidden", "pipelined", "said"),
    [
        (["-client|tracking"], True, "does not tell of new messages"),
        (["-client|caching"], True, "does not tell of new messages"),
        (["-eval", "-evalsha", "-script"], False, "does not let us run scripts"),
    ],
    ids=["tracking", "caching", "scripts"],
)
def test_what_a_user_may_not_do_is_said_and_done_without(start, client_of, caplog, forbidden, pipelined, said):
    server = start()
    admin = client_of(server.url())
    admin.acl_setuser("worker", enabled=True, passwords=["+pass"], keys=["*"], channels=["*"], commands=["+@all"])
    for command in forbidden:
        try:
            admin.execute_command("ACL", "SETUSER", "worker", command)
        except redis.ResponseError as error:  # of Redis 6.2, where the rule is one of the whole command
            assert "|" in command
            pytest.skip(f"this server has no rules for subcommands: {error}")
    send(server.url(), NUMBERS)
    with caplog.at_level(logging.INFO, logger="legit_embedding.broker"):
        assert consume_all(f"redis://worker:pass@127.0.0.1:{server.port}/0") is pipelined
    assert said in caplog.text


def test_a_unix_socket_is_a_way_too(start, tmp_path, client_of):
    path = tmp_path / "broker.sock"
    server = start("--unixsocket", str(path))
    send(server.url(), NUMBERS)
    assert consume_all(f"redis+socket://{path}?virtual_host=0")
    assert left_over(client_of(server.url())) == []


@needs_redis
@needs_openssl
def test_tls_is_a_way_too(start, tmp_path, client_of):
    key, certificate = make_certificate(tmp_path)
    port = free_port()
    arguments = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    server = start(
        *arguments, "--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no", "--enable-debug-command", "yes",
        binary=REDIS,
    )  # fmt: skip
    send(server.url(), NUMBERS)
    large = "x" * 300_000  # more than one TLS record, and more than one read
    send(server.url(), [large])
    url = f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required&ssl_ca_certs={certificate}"
    assert consume_all(url, [*NUMBERS, large])
    assert left_over(client_of(server.url())) == []


def test_a_key_prefix_keeps_everything_under_itself(start, client_of):
    server = start()
    with rig(server.url(), global_keyprefix="{site}:", acks=False) as consumer:
        client = client_of(server.url())
        producer = consumer.connection.Producer()
        for number in NUMBERS[:5]:
            producer.publish(number, exchange="", routing_key="work")
        consumer.turn_until(lambda: len(consumer.bodies) == 5)
        assert all(key.startswith(b"{site}:") for key in client.scan_iter())
        assert client.hlen("{site}:unacked") == client.zcard("{site}:unacked_index") == 5
    assert client.llen("{site}:work") == 5
    assert left_over(client, "{site}:") == ["{site}:unacked_deliveries"]


def test_a_server_that_has_forgotten_the_scripts_is_sent_them_anew(start, client_of):
    server = start()
    with rig(server.url()) as consumer:
        send(server.url(), NUMBERS[:5])
        consumer.turn_until(lambda: len(consumer.bodies) == 5)
        client_of(server.url()).script_flush()
        send(server.url(), NUMBERS[5:])
        consumer.turn_until(lambda: consumer.bodies == NUMBERS)


def test_a_server_that_takes_no_commands_for_now_is_waited_for(start, client_of, caplog):
    server = start()
    client = client_of(server.url())
    with rig(server.url()) as consumer:
        send(server.url(), NUMBERS[:5])
        consumer.turn_until(lambda: len(consumer.bodies) == 5)
        # Replicas are asked for that there are not: commands that write are refused.
        client.config_set("min-replicas-to-write", 1)
        with pytest.raises(redis.RedisError):
            client.set("any", "thing")
        # Redis 6.2 refuses the acks alone: what a script does is not held against it.
        consumer.turn_until(lambda: "for now" in caplog.text or "will be repeated" in caplog.text)
        client.config_set("min-replicas-to-write", 0)
        send(server.url(), NUMBERS[5:])
        consumer.turn_until(lambda: consumer.bodies == NUMBERS)
    assert left_over(client) == []


def test_a_master_that_has_become_a_replica_is_left(start, client_of):
    first, second = start(), start()
    send(second.url(), NUMBERS)
    with rig(f"{first.url()};{second.url()}") as consumer:
        consumer.turn()
        assert consumer.pipelined
        client_of(first.url()).replicaof("127.0.0.1", str(second.port))
        consumer.turn_until(lambda: consumer.pipelined and consumer.bodies == NUMBERS, reopen=True)


def test_the_next_of_several_urls_is_served_by_the_same_transport(start, client_of):
    first, second = start(), start()
    with rig(f"{first.url()};{second.url()}") as consumer:
        consumer.turn()
        send(second.url(), NUMBERS)
        first.stop()
        consumer.turn_until(lambda: consumer.bodies == NUMBERS, reopen=True)
        assert consumer.pipelined
    assert left_over(client_of(second.url())) == []


@needs_redis
@pytest.mark.skipif(SENTINEL is None, reason="no redis-sentinel: install Debian's")
def test_a_failover_by_sentinel_loses_nothing(start, client_of, tmp_path):
    master, replica = start(binary=REDIS), start(binary=REDIS)
    client_of(replica.url()).replicaof("127.0.0.1", str(master.port))
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor broker 127.0.0.1 {master.port} 1\n"
        "sentinel down-after-milliseconds broker 500\nsentinel failover-timeout broker 3000\n"
    )
    sentinel = GuardedProcess([SENTINEL, str(config)], folder=tmp_path, log_name="sentinel.log")
    try:
        asked = client_of(f"redis://127.0.0.1:{port}", decode_responses=True)
        until(lambda: _knows_replica(asked), "the sentinel to know the replica")
        send(master.url(), NUMBERS)
        until(lambda: client_of(replica.url()).llen("work") == len(NUMBERS), "the replica to have everything")
        with rig(f"sentinel://127.0.0.1:{port}/0", master_name="broker", acks=False) as consumer:
            consumer.turn_until(lambda: len(consumer.bodies) == 10)
            until(lambda: client_of(replica.url()).hlen("unacked") == 10, "the replica to have the records")
            master.kill()
            for message in consumer.messages:
                message.ack()  # over the next connection, to the next master
            consumer._acks = True
            consumer.turn_until(lambda: len(set(consumer.bodies)) == len(NUMBERS), reopen=True)
            assert consumer.pipelined
            assert consumer.bodies == NUMBERS
        assert left_over(client_of(replica.url())) == []
    finally:
        sentinel.kill()


def _knows_replica(sentinel):
    try:
        return sentinel.execute_command("SENTINEL", "REPLICAS", "broker")
    except redis.RedisError:
        return False


def test_the_wheel_and_the_binary_of_debian_are_not_the_same():
    """Else the parametrised tests above would prove the same twice."""
    if REDIS is None or "LEGIT_TEST_SERVER" in os.environ:
        pytest.skip("no redis-server: install Debian's; or another one is named")
    assert Path(find_binary()).resolve() != Path(REDIS).resolve()


# -- what a line's end must not cost -----------------------------------------------------------------------------------


def test_what_a_server_refuses_to_take_back_for_a_while_goes_back_all_the_same(start, client_of):
    server = start()
    client = client_of(server.url())
    send(server.url(), [0])
    with rig(server.url(), acks=False) as consumer:
        consumer.turn_until(lambda: consumer.bodies == [0])
        client.config_set("min-replicas-to-write", 1)
        consumer.messages[0].reject(requeue=True)
        for _ in range(10):
            consumer.turn()
        client.config_set("min-replicas-to-write", 0)
        consumer.turn_until(lambda: consumer.bodies == [0, 0])


def test_what_runs_through_a_switch_to_the_next_url_is_acknowledged_there(start, client_of):
    """To a replica that has taken its master's place."""
    master, replica = start(), start()
    client = client_of(replica.url())
    client.replicaof("127.0.0.1", str(master.port))
    until(lambda: client.info("replication").get("master_link_status") == "up", "the replica")
    send(master.url(), [0, 1])
    with rig(f"{master.url()};{replica.url()}", acks=False, prefetch=2, lease_s=3) as consumer:
        consumer.turn_until(lambda: consumer.bodies == [0, 1])
        until(lambda: client.hlen("unacked") == 2, "the copies")
        client.replicaof("NO", "ONE")
        master.kill()
        consumer.turn_until(lambda: consumer.connection.port == replica.port and consumer.pipelined, reopen=True)
        over_s = time.monotonic() + 5  # longer than a lease: it is renewed at the new server
        while time.monotonic() < over_s:
            consumer.turn()
        assert consumer.bodies == [0, 1]
        for message in consumer.messages:
            message.ack()
        consumer.turn_until(lambda: client.hlen("unacked") == 0)
        assert consumer.bodies == [0, 1]


def test_a_lease_outlives_a_line_that_goes_silent(start, client_of):
    """As when a host is gone, or a router forgets: nobody says so, and what is sent on it is never answered."""
    server = start()
    client = client_of(server.url())
    send(server.url(), [0])
    with (
        DelayProxy(server.port) as proxy,
        rig(proxy.url(), acks=False, prefetch=1, lease_s=6) as consumer,
    ):
        consumer.turn_until(lambda: consumer.bodies == [0])
        proxy.rtt_ms = 1e7  # for what is sent from now on; new lines are well again
        over_s = time.monotonic() + 2.5
        while time.monotonic() < over_s:
            consumer.turn()
        proxy.rtt_ms = 0.0
        over_s = time.monotonic() + 8
        while time.monotonic() < over_s:
            consumer.turn()
            (lease,) = client.zrange("unacked_leases", 0, -1, withscores=True)
            assert lease[1] > client.time()[0]


def test_all_that_a_dead_line_held_comes_back_in_its_order(start, client_of):
    """More than the next consumer takes at once, which takes while it is being brought back."""
    server = start()
    client = client_of(server.url())
    numbers = list(range(900))
    send(server.url(), numbers)
    with rig(server.url(), prefetch=len(numbers), acks=False) as dead:
        dead.turn_until(lambda: len(dead.bodies) == len(numbers))
        dead.channel.holdings.caretaker.end()  # as its process does
        (line,) = client.zrange("unacked_leases", 0, -1)
        client.zadd("unacked_leases", {line: 1})
        # By another name, as another process: what one process holds of a server, all its consumers share.
        with rig(server.url().replace("127.0.0.1", "localhost"), prefetch=20) as other:
            other.turn_until(lambda: len(other.bodies) == len(numbers))
            assert other.bodies == numbers

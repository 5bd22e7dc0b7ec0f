"""The AMQP transport on a real RabbitMQ."""

import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from itertools import pairwise

import pytest
from kombu import Connection

from legit_embedding.broker.amqp import READ_BYTES, SSLWire, TCPWire
from legit_embedding.testing.proxy import DelayProxy
from legit_embedding.testing.rabbit import RabbitServer, amqp_url
from tests.integration.broker.certificates import make_certificate, needs_openssl
from tests.integration.broker.rig import rig, send

NUMBERS = list(range(500))
LARGE = "x" * 5 * READ_BYTES

pytestmark = pytest.mark.skipif(RabbitServer.missing() is not None, reason=str(RabbitServer.missing()))


@pytest.fixture(scope="module")
def node():
    with RabbitServer() as server:
        yield server


@pytest.fixture
def server(node):
    """With an empty queue."""
    with Connection(node.url) as connection:
        queue = connection.SimpleQueue("work")
        queue.clear()
        queue.close()
    return node


def test_messages_come_in_order_whatever_their_size_and_many_in_a_turn(server):
    bodies = [*NUMBERS, LARGE, "", *NUMBERS]
    send(server.url, bodies)
    with rig(server.url, prefetch=len(bodies)) as consumer:
        assert type(consumer.connection.connection.transport) is TCPWire
        turns = 0

        def complete():
            nonlocal turns
            turns += 1
            return len(consumer.bodies) == len(bodies)

        consumer.turn_until(complete)
        assert consumer.bodies == bodies
        assert turns < len(bodies) / 5


def test_a_call_that_waits_for_its_answer_gets_it_between_messages_that_have_been_read_ahead(server):
    send(server.url, NUMBERS)
    with rig(server.url, prefetch=len(NUMBERS)) as consumer:
        answers = []
        inner = consumer.consumer.on_message

        def ask_as_well(message):
            inner(message)
            if len(consumer.bodies) in {1, 100}:
                answers.append(consumer.channel.queue_declare("work", passive=True).consumer_count)

        consumer.consumer.on_message = ask_as_well
        consumer.turn_until(lambda: len(consumer.bodies) == len(NUMBERS))
        assert answers == [1, 1]
        assert sorted(consumer.bodies) == NUMBERS


@pytest.mark.parametrize("count", [2, 5])
def test_messages_that_come_with_the_answer_to_a_call_do_not_wait_for_more_to_come(server, count):
    """Nothing else does: none of them is acknowledged."""
    send(server.url, NUMBERS[:count])
    with rig(server.url, prefetch=50, acks=False) as consumer:
        time.sleep(0.2)  # they are in the socket, or were read with the answer to `basic.consume`
        consumer.turn_until(lambda: len(consumer.bodies) == count)


def test_a_higher_prefetch_brings_its_messages_at_once(server):
    send(server.url, NUMBERS[:4])
    options = {"prefetch": 1, "apply_global": True, "acks": False}
    with DelayProxy(server.port, rtt_ms=20) as proxy, rig(amqp_url(proxy.port), **options) as consumer:
        consumer.turn_until(lambda: len(consumer.bodies) == 1)
        consumer.channel.basic_qos(0, 4, True)
        consumer.turn_until(lambda: len(consumer.bodies) == 4)


def test_a_slow_consumer_of_small_messages_never_waits_for_the_poll(server):
    """What has been read ahead when a turn's time is up."""
    send(server.url, NUMBERS)
    with rig(server.url, prefetch=len(NUMBERS), acks=False) as consumer:
        inner = consumer.consumer.on_message
        came_s = []

        def work_for_half_a_millisecond(message):
            inner(message)
            came_s.append(time.monotonic())
            while time.monotonic() < came_s[-1] + 0.0005:
                pass

        consumer.consumer.on_message = work_for_half_a_millisecond
        consumer.hub.call_later(5, lambda: None)  # so long the loop would wait
        while len(consumer.bodies) < len(NUMBERS):
            consumer.hub.run_once()
        assert max(later - one for one, later in pairwise(came_s)) < 3


def test_what_was_not_acknowledged_when_the_line_broke_comes_again(server):
    send(server.url, NUMBERS)
    with DelayProxy(server.port) as proxy, rig(amqp_url(proxy.port), prefetch=50) as consumer:
        consumer.turn_until(lambda: len(consumer.bodies) >= 100)
        proxy.cut()
        consumer.turn_until(lambda: set(consumer.bodies) == set(NUMBERS), reopen=True)
    with Connection(server.url) as connection:
        assert connection.default_channel.queue_declare("work", passive=True).message_count == 0


@contextmanager
def tls_in_front_of(port, certificate, key):
    """The port of a proxy that speaks TLS to its client and hands everything on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))
    sockets = []

    def pass_on(source, sink):
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def serve():
        with suppress(OSError):
            client = context.wrap_socket(listener.accept()[0], server_side=True)
            upstream = socket.create_connection(("127.0.0.1", port))
            sockets.extend((client, upstream))
            back = threading.Thread(target=pass_on, args=(upstream, client), daemon=True)
            back.start()
            pass_on(client, upstream)
            back.join()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        for each in (listener, *sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        thread.join(10)


@needs_openssl
def test_tls_is_a_way_too(server, tmp_path):
    key, certificate = make_certificate(tmp_path)
    bodies = [*NUMBERS, LARGE]
    send(server.url, bodies)
    with tls_in_front_of(server.port, certificate, key) as port:
        trust = {"ca_certs": str(certificate), "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "127.0.0.1"}
        with rig(f"amqps://guest:guest@127.0.0.1:{port}//", ssl=trust, prefetch=50) as consumer:
            assert type(consumer.connection.connection.transport) is SSLWire
            consumer.turn_until(lambda: len(consumer.bodies) == len(bodies))
            assert consumer.bodies == bodies

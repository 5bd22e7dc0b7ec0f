"""DelayProxy against a plain echo server: no Redis, no sleeping in the tests."""

import socket
import threading
import time

import pytest

from legit_embedding.testing.proxy import DelayProxy


@pytest.fixture
def echo_port():
    """A server that sends back what it gets, on threads, until the test is over."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                pass

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def connect(proxy):
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=20)
    connection.settimeout(20)
    return connection


def read_exactly(connection, count):
    received = bytearray()
    while len(received) < count:
        data = connection.recv(65536)
        if not data:
            break
        received += data
    return bytes(received)


def test_bytes_arrive_unchanged_and_in_order(echo_port):
    """A megabyte there and back is the same megabyte."""
    payload = bytes(range(256)) * 4096
    with DelayProxy(echo_port) as proxy, connect(proxy) as connection:
        sender = threading.Thread(target=connection.sendall, args=(payload,))
        sender.start()
        assert read_exactly(connection, len(payload)) == payload
        sender.join()
        assert proxy.statistics().to_server_bytes == len(payload)
        assert proxy.statistics().accepted == 1


def test_a_round_trip_takes_at_least_the_delay(echo_port):
    """Half of it each way; the upper bound is the machine's business."""
    with DelayProxy(echo_port, rtt_ms=50) as proxy, connect(proxy) as connection:
        started_s = time.monotonic()
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        assert time.monotonic() - started_s >= 0.05


def test_many_chunks_share_one_delay(echo_port):
    """A hundred messages sent at once come back after about one round trip, not a hundred."""
    with DelayProxy(echo_port, rtt_ms=100) as proxy, connect(proxy) as connection:
        started_s = time.monotonic()
        for _ in range(100):
            connection.sendall(b"y" * 100)
        assert len(read_exactly(connection, 10_000)) == 10_000
        assert time.monotonic() - started_s < 100 * 0.1 / 4


def test_cut_drops_every_connection_and_new_ones_are_welcome(echo_port):
    """After a cut a client has to dial again, and can."""
    with DelayProxy(echo_port) as proxy:
        first, second = connect(proxy), connect(proxy)
        with first, second:
            for connection in (first, second):
                connection.sendall(b"z")
                assert connection.recv(1) == b"z"
            assert proxy.cut() == 2
            for connection in (first, second):
                assert ended(connection)
        with connect(proxy) as third:
            third.sendall(b"z")
            assert third.recv(1) == b"z"


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_cut_after_lets_exactly_so_many_bytes_through(echo_port, direction):
    """The cut falls inside a message, at the byte that was asked for, and only once."""
    with DelayProxy(echo_port) as proxy:
        proxy.cut_after(**{direction: 1000})
        with connect(proxy) as connection:
            connection.sendall(b"a" * 5000)
            while not ended(connection):
                pass
        delivered = proxy.statistics()
        assert getattr(delivered, f"{direction}_bytes") == 1000
        with connect(proxy) as connection:
            connection.sendall(b"b" * 5000)
            assert read_exactly(connection, 5000) == b"b" * 5000


def test_a_server_that_is_not_there_ends_the_connection():
    """The client sees its connection closed, and the proxy goes on."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        with DelayProxy(reserved.getsockname()[1]) as proxy, connect(proxy) as connection:
            assert ended(connection)


def test_stop_ends_open_connections_and_a_second_stop_does_nothing(echo_port):
    """Nothing is left over."""
    proxy = DelayProxy(echo_port).start()
    with connect(proxy) as connection:
        connection.sendall(b"q")
        assert connection.recv(1) == b"q"
        proxy.stop()
        assert ended(connection)
    proxy.stop()
    assert repr(proxy).endswith("0 open>")


def ended(connection):
    """Reads once; whether the connection is over."""
    try:
        return connection.recv(65536) == b""
    except ConnectionError:
        return True

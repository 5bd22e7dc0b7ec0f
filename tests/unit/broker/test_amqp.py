"""Reading ahead, and how much of it a turn of the loop delivers."""

import errno

import pytest
from amqp.exceptions import RecoverableConnectionError
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport import pyamqp

from legit_embedding.broker import amqp
from legit_embedding.broker.amqp import READ_BYTES, Message, ReadAhead, Transport


class Socket:
    """Gives one piece a call; counts them."""

    def __init__(self, pieces):
        self.pieces = list(pieces)
        self.asked = []

    def receive(self, most):
        self.asked.append(most)
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        assert len(piece) <= most
        return piece


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=10), st.lists(st.integers(1, 60), min_size=1, max_size=60))
def test_bytes_come_in_order_and_never_more_than_are_asked_for(pieces, sizes):
    read = ReadAhead(Socket(pieces).receive)
    got = b""
    for size in sizes:
        part = read(size)
        assert len(part) <= size
        assert part or got == b"".join(pieces)  # nothing is the end
        got += part
    assert b"".join(pieces).startswith(got)


def test_small_reads_cost_one_call():
    source = Socket([b"abcdefgh"])
    read = ReadAhead(source.receive)
    assert [read(1), read(3), read(4)] == [b"a", b"bcd", b"efgh"]
    assert source.asked == [READ_BYTES]


def test_a_large_read_is_asked_for_as_it_is():
    source = Socket([b"a"])
    assert ReadAhead(source.receive)(READ_BYTES * 3) == b"a"
    assert source.asked == [READ_BYTES * 3]


def test_where_nothing_is_there_now_the_socket_says_so_and_the_rest_comes_later():
    read = ReadAhead(Socket([b"ab", BlockingIOError(errno.EAGAIN, "later"), b"cd"]).receive)
    assert read(2) == b"ab"
    with pytest.raises(BlockingIOError):
        read(2)
    assert read(9) == b"cd"


class Connection:
    connected = True

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.timeouts = []

    def drain_events(self, timeout):
        self.timeouts.append(timeout)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome


class Loop:
    def __init__(self):
        self.soon = []

    def call_soon(self, callback, *arguments):
        self.soon.append((callback, arguments))

    def turn(self):
        soon, self.soon = self.soon, []
        for callback, arguments in soon:
            callback(*arguments)


@pytest.fixture
def clock(monkeypatch):
    """Moves on by a millisecond a look."""

    class Clock:
        now_s = 0.0

        def monotonic(self):
            self.now_s += 0.001
            return self.now_s

    found = Clock()
    monkeypatch.setattr(amqp, "time", found)
    return found


@pytest.fixture
def transport():
    return Transport(client=None)


@pytest.mark.parametrize("nothing", [TimeoutError(), BlockingIOError(errno.EAGAIN, ""), OSError(errno.EINTR, "")])
def test_a_turn_delivers_until_nothing_is_there(clock, transport, nothing):
    connection, loop = Connection(None, None, nothing), Loop()
    transport.on_readable(connection, loop)
    assert connection.timeouts == [0, 0, 0]
    assert loop.soon == []


def test_a_turn_ends_after_a_few_milliseconds_and_the_next_goes_on(clock, transport):
    connection, loop = Connection(*[None] * 20, TimeoutError()), Loop()
    transport.on_readable(connection, loop)
    first = len(connection.timeouts)
    assert 0 < first < 10
    loop.turn()
    assert len(connection.timeouts) > first
    for _ in range(10):
        loop.turn()
    assert connection.outcomes == []
    assert loop.soon == []


def test_a_connection_that_is_closed_between_two_turns_is_no_error(clock, transport):
    connection, loop = Connection(*[None] * 20), Loop()
    transport.on_readable(connection, loop)
    connection.connected = False
    loop.turn()
    assert loop.soon == []


def test_a_lost_connection_is_an_error_from_which_celery_recovers(clock, transport):
    connection, loop = Connection(), Loop()
    connection.connected = False
    with pytest.raises(RecoverableConnectionError):
        transport.on_readable(connection, loop)
    connection = Connection(ConnectionResetError(errno.ECONNRESET, "reset"))
    with pytest.raises(ConnectionResetError):
        transport.on_readable(connection, loop)
    assert issubclass(ConnectionResetError, transport.connection_errors)


TYPED = b'{"at": {"__type__": "datetime", "__value__": "2024-05-06T07:08:09"}}'


class Delivery:
    def __init__(self, body, encoding="utf-8"):
        self.body, self.delivery_tag, self.delivery_info = body, 1, {}
        self.properties = {"content_type": "application/json", "content_encoding": encoding}


@pytest.mark.parametrize(
    "delivery",
    [
        Delivery(b'{"a": [1, 2.5, null]}'),
        Delivery('"\u2713"'.encode()),
        Delivery(TYPED),
        Delivery(b'"x"', "us-ascii"),
    ],
)
def test_a_body_is_decoded_as_kombu_does_it(delivery):
    assert Message(delivery).decode() == pyamqp.Message(delivery).decode()

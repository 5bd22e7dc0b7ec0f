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
    """Gives one piece a call, as much of it as is asked for."""

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
        if len(piece) > most:
            self.pieces.insert(0, piece[most:])
        return piece[:most]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=10), st.lists(st.integers(1, 60), min_size=1, max_size=60))
def test_bytes_come_in_order_and_never_more_than_are_asked_for(pieces, sizes):
    read = ReadAhead(Socket(pieces).receive)
    got = b""
    for number, size in enumerate(sizes):
        read.ahead = number % 5 > 1
        part = read(size)
        assert len(part) <= size
        assert part or got == b"".join(pieces)  # nothing is the end
        got += part
    assert b"".join(pieces).startswith(got)


def ahead(pieces, **options):
    source = Socket(pieces)
    read = ReadAhead(source.receive, **options)
    read.ahead = True
    return read, source


def test_small_reads_cost_one_call():
    read, source = ahead([b"abcdefgh"])
    assert [read(1), read(3), read(4)] == [b"a", b"bcd", b"efgh"]
    assert source.asked == [READ_BYTES]


def test_a_large_read_is_asked_for_as_it_is():
    read, source = ahead([b"a"])
    assert read(READ_BYTES * 3) == b"a"
    assert source.asked == [READ_BYTES * 3]


def test_unless_it_is_told_to_it_reads_no_more_than_is_asked_for():
    source = Socket([b"ab"])
    read = ReadAhead(source.receive)
    assert read(2) == b"ab"
    assert source.asked == [2]
    assert not read.holds


def test_it_tells_of_what_it_has_read_ahead_and_gives_that_first():
    read, source = ahead([b"abc", b"d"])
    read(1)
    assert read.holds
    read.ahead = False
    assert read(9) == b"bc"
    assert not read.holds
    assert read(1) == b"d"
    assert source.asked == [READ_BYTES, 1]


def test_what_a_socket_keeps_by_itself_counts():
    waiting = [3]
    read = ReadAhead(Socket([]).receive, lambda: waiting[0])
    assert read.holds
    waiting[0] = 0
    assert not read.holds


def test_where_nothing_is_there_now_the_socket_says_so_and_the_rest_comes_later():
    read, _ = ahead([b"ab", BlockingIOError(errno.EAGAIN, "later"), b"cd"])
    assert read(2) == b"ab"
    with pytest.raises(BlockingIOError):
        read(2)
    assert read(9) == b"cd"


class Reader:
    """`held` says how many of the next events come out of memory."""

    def __init__(self, held):
        self.ahead = False
        self.held = held

    @property
    def holds(self):
        return self.held > 0


class Connection:
    connected = True

    def __init__(self, *outcomes, held=0):
        self.outcomes = list(outcomes)
        self.ahead = []
        self.reader = Reader(held)
        self.transport = self

    def drain_events(self, timeout):
        assert timeout == 0
        self.ahead.append(self.reader.ahead)
        self.reader.held -= 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome


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
    connection = Connection(None, None, nothing)
    transport.on_readable(connection, None)
    assert connection.ahead == [True, True, True]
    assert not connection.reader.ahead


def test_a_turn_reads_for_a_few_milliseconds(clock, transport):
    connection = Connection(*[None] * 20)
    transport.on_readable(connection, None)
    assert 0 < len(connection.ahead) < 10
    assert all(connection.ahead)


def test_what_has_been_read_is_delivered_to_its_end_and_no_more_is_read_meanwhile(clock, transport):
    connection = Connection(*[None] * 20, held=15)
    transport.on_readable(connection, None)
    assert len(connection.ahead) == 15
    assert connection.ahead[0]
    assert not connection.ahead[-1]


def test_a_lost_connection_is_an_error_from_which_celery_recovers(clock, transport):
    connection = Connection()
    connection.connected = False
    with pytest.raises(RecoverableConnectionError):
        transport.on_readable(connection, None)
    connection = Connection(ConnectionResetError(errno.ECONNRESET, "reset"))
    with pytest.raises(ConnectionResetError):
        transport.on_readable(connection, None)
    assert not connection.reader.ahead
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

"""A connection that never waits, and a peer on the other end of a socket pair that says what it is told to."""

import socket
import ssl

import hiredis
import pytest
from redis import exceptions

from legit_embedding.broker import connection as module
from legit_embedding.broker.connection import ELSEWHERE, PASSING, READ_BYTES, PipelinedConnection, passing
from legit_embedding.broker.scripts import Script

SCRIPT = Script("one", "return 1")
OTHER = Script("two", "return 2")
PUSH = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nq\r\n"
MUCH = "x" * (4 << 20)


class Stock:
    """What redis-py hands out: a connected socket and a way to hang up."""

    def __init__(self, own):
        self._sock = own
        self.hung_up = 0

    def disconnect(self):
        self.hung_up += 1
        self._sock.close()


class Hub:
    """An event loop that remembers what it is to watch."""

    def __init__(self):
        self.readers, self.writers = {}, {}

    def add_reader(self, number, callback):
        self.readers[number] = callback

    def add_writer(self, number, callback):
        assert number not in self.writers
        self.writers[number] = callback

    def remove_writer(self, number):
        del self.writers[number]

    def remove(self, number):
        self.readers.pop(number, None)
        self.writers.pop(number, None)


class Peer:
    """The server: it says what the test tells it to, and shows what it was sent."""

    def __init__(self, own):
        self._socket = own
        self._socket.setblocking(False)
        self._reader = hiredis.Reader()

    def say(self, *replies):
        self._socket.sendall(b"".join(replies))

    def heard(self):
        """The commands that have come since the last look."""
        try:
            while data := self._socket.recv(1 << 20):
                self._reader.feed(data)
        except BlockingIOError:
            pass
        return list(iter(self._reader.gets, False))

    def hang_up(self):
        self._socket.close()


class Clock:
    """Goes on by `step_s` with each look."""

    def __init__(self):
        self.now_s, self.step_s = 100.0, 0.0

    def monotonic(self):
        self.now_s += self.step_s
        return self.now_s


class Rig:
    def __init__(self):
        ours, theirs = socket.socketpair()
        self.stock, self.hub, self.peer = Stock(ours), Hub(), Peer(theirs)
        self.pushes = 0
        self.connection = PipelinedConnection(self.stock, timeout_s=5.0, on_push=self._on_push)

    def _on_push(self):
        self.pushes += 1

    def attach(self):
        self.connection.attach(self.hub, self.connection.read)
        return self.connection

    def close(self):
        self.connection.close()
        self.peer.hang_up()


@pytest.fixture
def rig():
    own = Rig()
    yield own
    own.close()


@pytest.fixture
def clock(monkeypatch):
    own = Clock()
    monkeypatch.setattr(module, "time", own)
    return own


# -- commands and replies ----------------------------------------------------------------------------------------------


def test_a_command_is_sent_as_the_server_reads_it(rig):
    connection = rig.attach()
    connection.send(None, "SET", b"\xff\r\n", 7, 0.5, "ü", "")
    connection.flush()
    assert rig.peer.heard() == [[b"SET", b"\xff\r\n", b"7", b"0.5", "ü".encode(), b""]]


def test_nothing_is_sent_before_a_flush_and_then_everything_goes_out_together(rig):
    connection = rig.attach()
    connection.send(None, "PING")
    connection.send(None, "GET", "a")
    assert rig.peer.heard() == []
    connection.flush()
    assert rig.peer.heard() == [[b"PING"], [b"GET", b"a"]]
    connection.flush()
    assert rig.peer.heard() == []


def test_each_reply_goes_to_its_own_command_in_order_and_nobody_waits_for_it(rig):
    connection = rig.attach()
    got = []
    for name in "abc":
        connection.send(lambda reply, name=name: got.append((name, reply)), "GET", name)
    connection.flush()
    assert (got, connection.unanswered) == ([], 3)
    rig.peer.say(b"$1\r\nA\r\n", b"$-1\r\n")
    connection.read()
    assert (got, connection.unanswered) == ([("a", b"A"), ("b", None)], 1)
    rig.peer.say(b":3\r\n")
    connection.read()
    assert (got, connection.unanswered) == ([("a", b"A"), ("b", None), ("c", 3)], 0)


def test_a_reply_that_nobody_wants_is_not_taken_for_the_next_one(rig):
    connection = rig.attach()
    got = []
    connection.send(None, "HDEL", "a")
    connection.send(got.append, "GET", "b")
    rig.peer.say(b":1\r\n+b\r\n")
    connection.read()
    assert got == [b"b"]


def test_a_reply_that_comes_in_pieces_is_called_back_once_it_is_whole(rig):
    connection = rig.attach()
    got = []
    connection.send(got.append, "GET", "a")
    for piece in (b"$1", b"1\r\nhello", b" world\r"):
        rig.peer.say(piece)
        connection.read()
        assert got == []
    rig.peer.say(b"\n")
    connection.read()
    assert got == [b"hello world"]


def test_a_refusal_is_a_reply_too(rig):
    connection = rig.attach()
    got = []
    connection.send(got.append, "GET", "a")
    connection.send(got.append, "GET", "b")
    rig.peer.say(b"-WRONGTYPE no string\r\n+fine\r\n")
    connection.read()
    assert isinstance(got[0], hiredis.ReplyError)
    assert got[1] == b"fine"


def test_a_command_that_a_reply_asks_for_waits_behind_those_that_are_under_way(rig):
    connection = rig.attach()
    got = []
    connection.send(lambda _: connection.send(got.append, "THIRD"), "FIRST")
    connection.send(got.append, "SECOND")
    rig.peer.say(b"+1\r\n+2\r\n+3\r\n")
    connection.read()
    assert got == [b"2", b"3"]


def test_a_push_is_told_of_and_takes_no_commands_reply(rig):
    connection = rig.attach()
    got = []
    connection.send(got.append, "GET", "a")
    rig.peer.say(PUSH, b"+a\r\n", PUSH)
    connection.read()
    assert (got, rig.pushes) == ([b"a"], 2)


def test_repr_shows_what_is_under_way(rig):
    connection = rig.attach()
    connection.send(None, "PING")
    assert repr(connection) == "<PipelinedConnection 1 unanswered, 14 B to send>"
    connection.close()
    assert "lost" in repr(connection)


# -- scripts -----------------------------------------------------------------------------------------------------------


def test_a_script_is_sent_as_a_whole_once_and_by_its_name_from_then_on(rig):
    connection = rig.attach()
    connection.run(None, SCRIPT, ["key"], "argument")
    connection.run(None, SCRIPT, ["key"], "argument")
    connection.run(None, OTHER, [])
    connection.flush()
    assert rig.peer.heard() == [
        [b"EVAL", SCRIPT.text.encode(), b"1", b"key", b"argument"],
        [b"EVALSHA", SCRIPT.sha.encode(), b"1", b"key", b"argument"],
        [b"EVAL", OTHER.text.encode(), b"0"],
    ]


def test_a_script_that_was_loaded_is_sent_by_its_name(rig):
    rig.peer.say(b"$1\r\nx\r\n")
    rig.connection.load(SCRIPT)
    rig.connection.run(None, SCRIPT, [])
    rig.connection.flush()
    assert rig.peer.heard() == [
        [b"SCRIPT", b"LOAD", SCRIPT.text.encode()],
        [b"EVALSHA", SCRIPT.sha.encode(), b"0"],
    ]


def test_a_script_that_the_server_has_forgotten_is_sent_anew_and_its_caller_does_not_notice(rig):
    connection = rig.attach()
    got = []
    connection.run(None, SCRIPT, [])
    connection.run(got.append, SCRIPT, ["key"], 5)
    connection.flush()
    rig.peer.heard()
    rig.peer.say(b":1\r\n", b"-NOSCRIPT No matching script.\r\n")
    connection.read()
    assert got == []
    assert rig.peer.heard() == [[b"EVAL", SCRIPT.text.encode(), b"1", b"key", b"5"]]
    rig.peer.say(b":7\r\n")
    connection.read()
    assert (got, connection.unanswered) == ([7], 0)


def test_a_script_that_fails_is_not_sent_anew(rig):
    connection = rig.attach()
    got = []
    connection.run(got.append, SCRIPT, [])
    connection.flush()
    rig.peer.heard()
    rig.peer.say(b"-ERR user_script:1: no\r\n")
    connection.read()
    assert [str(reply) for reply in got] == ["ERR user_script:1: no"]
    assert rig.peer.heard() == []


# -- a socket that takes no more ---------------------------------------------------------------------------------------


def test_what_the_socket_does_not_take_goes_out_when_it_takes_more_and_arrives_whole(rig):
    connection = rig.attach()
    connection.send(None, "SET", "a", MUCH)
    connection.flush()
    connection.send(None, "PING")
    connection.flush()  # watches for room once only
    heard = []
    while rig.hub.writers:
        heard += rig.peer.heard()
        for callback in list(rig.hub.writers.values()):
            callback()
    heard += rig.peer.heard()
    assert heard == [[b"SET", b"a", MUCH.encode()], [b"PING"]]


def test_a_socket_that_takes_everything_is_not_watched_for_room(rig):
    connection = rig.attach()
    connection.send(None, "PING")
    connection.flush()
    assert rig.hub.writers == {}


# -- the ends of a connection ------------------------------------------------------------------------------------------


def assert_lost(rig, because):
    connection = rig.connection
    assert isinstance(connection.lost, because)
    for method in (
        connection.flush,
        connection.read,
        connection.check,
        connection.settle,
        lambda: connection.call("PING"),
        lambda: connection.attach(rig.hub, connection.read),
    ):
        with pytest.raises(exceptions.ConnectionError, match="is lost"):
            method()


def test_a_server_that_hangs_up_loses_the_connection_and_what_was_under_way_is_never_called_back(rig):
    connection = rig.attach()
    got = []
    connection.send(got.append, "GET", "a")
    connection.send(got.append, "GET", "b")
    connection.flush()
    rig.peer.heard()
    rig.peer.say(b"+a\r\n")
    rig.peer.hang_up()
    connection.read()
    with pytest.raises(exceptions.ConnectionError, match="closed by the server"):
        connection.read()
    assert (got, connection.unanswered) == ([b"a"], 1)
    assert_lost(rig, EOFError)


@pytest.mark.parametrize("word", ELSEWHERE)
def test_a_server_that_is_not_the_one_to_talk_to_loses_the_connection(rig, word):
    connection = rig.attach()
    got = []
    connection.send(got.append, "HDEL", "a")
    connection.send(got.append, "HDEL", "b")
    rig.peer.say(b"+fine\r\n", f"-{word} not here\r\n".encode())
    with pytest.raises(exceptions.ConnectionError):
        connection.read()
    assert got == [b"fine"]
    assert_lost(rig, exceptions.ReadOnlyError)
    assert str(connection.lost).startswith(word)


OF_A_SCRIPT = [
    "@user_script: 51: -{} it does not",
    "ERR Error running script (call to f_1d559b): @user_script:51: @user_script: 51: -{} it does not",
]
"""Redis 6.2; later versions begin with the code."""


@pytest.mark.parametrize("text", OF_A_SCRIPT)
def test_an_error_that_a_script_has_met_is_told_by_its_code_in_redis_6_too(rig, text):
    assert passing(hiredis.ReplyError(text.format("OOM")))
    assert not passing(hiredis.ReplyError(text.format("WRONGTYPE")))
    connection = rig.attach()
    connection.send(None, "EVALSHA", "a")
    rig.peer.say(f"-{text.format('READONLY')}\r\n".encode())
    with pytest.raises(exceptions.ConnectionError):
        connection.read()
    assert_lost(rig, exceptions.ReadOnlyError)


def test_a_loss_says_what_the_server_said(rig):
    connection = rig.attach()
    connection.send(None, "HDEL", "a")
    rig.peer.say(b"-MOVED 3999 10.0.0.2:6379\r\n")
    with pytest.raises(exceptions.ConnectionError, match=r"MOVED 3999 10\.0\.0\.2:6379"):
        connection.read()


def test_a_broken_line_loses_the_connection_when_it_is_written_to(rig):
    connection = rig.attach()
    rig.peer.hang_up()
    connection.send(None, "PING")
    with pytest.raises(exceptions.ConnectionError):
        connection.flush()
    assert_lost(rig, BrokenPipeError)


def test_what_is_no_redis_loses_the_connection(rig):
    connection = rig.attach()
    connection.send(None, "PING")
    rig.peer.say(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(exceptions.ConnectionError):
        connection.read()
    assert_lost(rig, hiredis.ProtocolError)


def test_a_reply_that_nobody_asked_for_loses_the_connection_because_all_others_would_be_taken_wrongly(rig):
    connection = rig.attach()
    rig.peer.say(b"+surprise\r\n")
    with pytest.raises(exceptions.ConnectionError):
        connection.read()
    assert_lost(rig, exceptions.InvalidResponse)
    assert "surprise" in str(connection.lost)


def test_a_second_close_does_nothing(rig):
    connection = rig.attach()
    connection.close()
    assert rig.hub.readers == {}
    connection.close()
    assert isinstance(connection.lost, exceptions.ConnectionError)


def test_a_close_while_there_is_more_to_write_leaves_the_loop_nothing_to_watch(rig):
    connection = rig.attach()
    connection.send(None, "SET", "a", MUCH)
    connection.flush()
    assert rig.hub.writers
    connection.close()
    assert (rig.hub.readers, rig.hub.writers) == ({}, {})


def test_a_close_keeps_the_reason_of_the_loss(rig):
    connection = rig.attach()
    rig.peer.hang_up()
    with pytest.raises(exceptions.ConnectionError):
        connection.read()
    connection.close()
    assert isinstance(connection.lost, EOFError)
    assert rig.stock.hung_up == 1


def test_a_close_of_a_socket_that_is_closed_already_is_no_trouble(rig):
    connection = rig.attach()
    rig.stock.disconnect()
    connection.close()
    assert connection.lost is not None


# -- a server that says nothing ----------------------------------------------------------------------------------------


def test_it_is_overdue_when_the_oldest_command_has_waited_for_longer_than_the_time_out(rig, clock):
    connection = rig.attach()
    connection.send(None, "FIRST")
    clock.now_s += 4
    connection.send(None, "SECOND")
    clock.now_s += 1
    assert not connection.overdue
    connection.check()
    clock.now_s += 0.1
    assert connection.overdue
    rig.peer.say(b"+1\r\n")
    connection.read()
    assert not connection.overdue
    clock.now_s += 4
    with pytest.raises(exceptions.ConnectionError, match="no reply within 5 s"):
        connection.check()
    assert_lost(rig, TimeoutError)


def test_a_line_on_which_nothing_is_asked_is_never_overdue(rig, clock):
    connection = rig.attach()
    clock.now_s += 1000
    connection.check()
    assert connection.lost is None


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_settle_returns_when_all_is_answered_that_included_which_the_replies_ask_for(rig):
    connection = rig.connection
    got = []
    connection.send(lambda _: connection.send(got.append, "THEN"), "FIRST")
    rig.peer.say(b"+1\r\n+2\r\n")
    connection.settle()
    assert (got, connection.unanswered) == ([b"2"], 0)
    assert rig.peer.heard() == [[b"FIRST"], [b"THEN"]]


def test_settle_without_anything_under_way_returns_at_once(rig):
    rig.connection.settle()
    assert rig.peer.heard() == []


def test_settle_gives_a_silent_server_up(rig, clock):
    connection = rig.connection
    connection.send(None, "PING")
    clock.step_s = 10.0
    with pytest.raises(exceptions.ConnectionError, match="no reply within 5 s"):
        connection.settle()
    assert_lost(rig, TimeoutError)


def test_call_returns_the_reply_and_hands_earlier_ones_to_whom_they_belong(rig):
    got = []
    rig.connection.send(got.append, "GET", "before")
    rig.peer.say(b"+before\r\n:5\r\n")
    assert rig.connection.call("INCR", "a") == 5
    assert got == [b"before"]


def test_call_raises_what_the_server_refuses(rig):
    rig.peer.say(b"-NOPERM no permission\r\n")
    with pytest.raises(exceptions.ResponseError, match="NOPERM"):
        rig.connection.call("SCRIPT", "LOAD", "x")
    assert rig.connection.lost is None


@pytest.mark.parametrize("word", PASSING)
def test_what_the_server_refuses_for_now_is_a_reason_to_connect_again(rig, word):
    rig.peer.say(f"-{word} not now\r\n".encode())
    with pytest.raises(exceptions.ConnectionError, match=word):
        rig.connection.call("PING")


# -- TLS ---------------------------------------------------------------------------------------------------------------


class TlsSocket:
    """Hands out `records`, whatever is asked for, and knows of what it has read ahead."""

    def __init__(self, *records, trouble=ssl.SSLWantReadError):
        self._records = list(records)
        self._trouble = trouble
        self.sent = bytearray()
        self.refusals = []

    def recv(self, _):
        if not self._records:
            raise self._trouble
        return self._records.pop(0)

    def pending(self):
        return sum(map(len, self._records))

    def send(self, data):
        if self.refusals:
            raise self.refusals.pop(0)
        self.sent += data
        return len(data)

    def fileno(self):
        return 5

    def setblocking(self, _):
        pass

    def close(self):
        pass


def tls_connection(own):
    connection = PipelinedConnection(Stock(own), timeout_s=5.0, on_push=int)
    hub = Hub()
    connection.attach(hub, connection.read)
    return connection, hub


def test_what_tls_has_read_ahead_is_read_too_for_no_poller_would_tell_of_it():
    connection, _ = tls_connection(TlsSocket(b"+1\r\n", b"+2\r\n", b"+3\r\n"))
    got = []
    for _ in range(3):
        connection.send(got.append, "PING")
    connection.read()
    assert got == [b"1", b"2", b"3"]


@pytest.mark.parametrize("trouble", [ssl.SSLWantReadError, ssl.SSLWantWriteError])
def test_tls_that_has_no_whole_record_yet_is_no_loss(trouble):
    connection, _ = tls_connection(TlsSocket(trouble=trouble))
    connection.read()
    assert connection.lost is None


@pytest.mark.parametrize("trouble", [ssl.SSLWantReadError, ssl.SSLWantWriteError])
def test_tls_that_takes_nothing_now_gets_it_later(trouble):
    own = TlsSocket()
    own.refusals = [trouble(), trouble()]
    connection, hub = tls_connection(own)
    connection.send(None, "PING")
    connection.flush()
    assert not own.sent
    for _ in range(2):
        hub.writers[5]()
    assert bytes(own.sent) == hiredis.pack_command(("PING",))
    assert hub.writers == {}


def test_a_read_goes_on_as_long_as_it_is_full():
    half = READ_BYTES // 2
    reply = b"$%d\r\n%b\r\n" % (READ_BYTES + half, b"x" * (READ_BYTES + half))
    own = TlsSocket(reply[:READ_BYTES], reply[READ_BYTES:])
    own.pending = lambda: 0
    connection, _ = tls_connection(own)
    got = []
    connection.send(got.append, "GET", "a")
    connection.read()
    assert [len(one) for one in got] == [READ_BYTES + half]

"""`RedisWire` against a server whose answers, silences and breaks a test writes itself."""

import asyncio

import hiredis
import pytest
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from legit_embedding.errors import ConfigurationError
from legit_embedding.publish.wire import RedisWire

CUT = b"cut the line here"


class CannedServer:
    """Answers commands with `answers` in turn; `CUT` among them breaks the line, and after the last it is silent."""

    def __init__(self, *answers, greets=True):
        self.answers = list(answers)
        self.greets = greets
        self.commands = []
        self.accepted = 0
        self.came = asyncio.Event()
        self._writers = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0?protocol=2"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0)

    async def _serve(self, reader, writer):
        self.accepted += 1
        self._writers.append(writer)
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                self.came.set()
                if command[0] == b"CLIENT":  # the handshake
                    if self.greets:
                        writer.write(b"+OK\r\n")
                    continue
                self.commands.append(command)
                if not self.answers:
                    continue
                answer = self.answers.pop(0)
                if answer is CUT:
                    writer.close()
                    return
                writer.write(answer)
        writer.close()


ECHO = ("ECHO", "x")


async def test_each_command_gets_its_own_reply_in_order():
    async with CannedServer(b"+PONG\r\n", b":3\r\n", b"$1\r\nx\r\n", b"$-1\r\n", b"*1\r\n+a\r\n") as server:
        wire = RedisWire(url=server.url, timeout_s=20.0)
        assert await wire.execute([("PING",), ("INCR", b"k"), ("GET", "k"), ("GET", "l"), ("XADD", "é", 1)]) == [
            b"PONG", 3, b"x", None, [b"a"],
        ]  # fmt: skip
        assert server.commands[-1] == [b"XADD", "é".encode(), b"1"]
        assert repr(wire) == "<RedisWire open>"
        await wire.close()
        await wire.close()
        assert repr(wire) == "<RedisWire closed>"


async def test_a_refusal_is_the_reply_to_its_command_alone_and_the_connection_stays():
    answers = (b"-OOM full\r\n", b"+one\r\n", b"-READONLY replica\r\n", b"-NOPERM no\r\n", b"-ERR odd\r\n", b"+two\r\n")
    async with CannedServer(*answers) as server:
        wire = RedisWire(url=server.url, timeout_s=20.0)
        kinds = [OutOfMemoryError, bytes, ReadOnlyError, NoPermissionError, ResponseError, bytes]
        assert [type(reply) for reply in await wire.execute([ECHO] * 6)] == kinds
        assert server.accepted == 1
        await wire.close()


async def test_a_server_that_asks_for_a_password_ends_the_connection():
    """All that was sent is answered with the error, and the next attempt dials anew."""
    async with CannedServer(b"-NOAUTH Authentication required.\r\n", b"-NOAUTH again\r\n", b"+PONG\r\n") as server:
        wire = RedisWire(url=server.url, timeout_s=20.0)
        replies = await wire.execute([ECHO, ECHO])
        assert [type(reply) for reply in replies] == [AuthenticationError] * 2
        while len(server.commands) < 2:
            await asyncio.sleep(0)
        assert await wire.execute([("PING",)]) == [b"PONG"]
        assert server.accepted == 2
        await wire.close()


async def test_where_the_line_breaks_the_commands_without_a_reply_get_the_error():
    async with CannedServer(b"+one\r\n", b"+two\r\n", CUT, b"+three\r\n") as server:
        wire = RedisWire(url=server.url, timeout_s=20.0)
        replies = await wire.execute([ECHO] * 4)
        assert replies[:2] == [b"one", b"two"]
        assert [isinstance(reply, (RedisConnectionError, OSError)) for reply in replies[2:]] == [True, True]
        assert await wire.execute([ECHO]) == [b"three"]
        assert server.accepted == 2
        await wire.close()


async def test_a_reply_that_does_not_come_in_time_is_a_timeout_and_is_never_taken_for_a_later_one():
    async with CannedServer(b"+one\r\n") as server:
        wire = RedisWire(url=server.url, timeout_s=0.05)
        first, second = await wire.execute([ECHO, ECHO])
        assert first == b"one"
        assert isinstance(second, TimeoutError)
        assert repr(wire) == "<RedisWire closed>"
        server.answers = [b"+three\r\n"]
        assert await wire.execute([ECHO]) == [b"three"]
        assert server.accepted == 2
        await wire.close()


async def test_a_cancelled_execute_drops_the_connection_and_its_replies():
    async with CannedServer() as server:
        wire = RedisWire(url=server.url, timeout_s=20.0)
        executing = asyncio.ensure_future(wire.execute([ECHO]))
        while not server.commands:
            await asyncio.sleep(0)
        executing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await executing
        assert repr(wire) == "<RedisWire closed>"
        server.answers = [b"+mine\r\n"]
        assert await wire.execute([ECHO]) == [b"mine"]
        assert server.accepted == 2
        await wire.close()


@pytest.mark.parametrize("ends", ["cancelled", "timed out"])
async def test_a_connection_whose_handshake_was_not_finished_is_not_used(ends):
    """What was asked while connecting would be answered later, as if it were the reply to the next command."""
    async with CannedServer(b"+mine\r\n", greets=False) as server:
        wire = RedisWire(url=server.url, timeout_s=20.0 if ends == "cancelled" else 0.05)
        executing = asyncio.ensure_future(wire.execute([ECHO]))
        await server.came.wait()
        if ends == "cancelled":
            executing.cancel()
        (outcome,) = await asyncio.gather(executing, return_exceptions=True)
        assert isinstance(outcome if ends == "cancelled" else outcome[0], (asyncio.CancelledError, TimeoutError))
        assert repr(wire) == "<RedisWire closed>"
        server.greets = True
        assert await wire.execute([ECHO]) == [b"mine"]
        assert server.accepted == 2
        await wire.close()


async def test_an_answer_that_is_no_redis_is_an_error_and_not_a_crash():
    async with CannedServer(b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        wire = RedisWire(url=server.url, timeout_s=20.0)
        replies = await wire.execute([ECHO, ECHO])
        assert [isinstance(reply, Exception) for reply in replies] == [True, True]
        assert repr(wire) == "<RedisWire closed>"
        await wire.close()


async def test_a_refused_connection_is_the_reply_to_every_command():
    async with CannedServer() as server:
        url = server.url
    wire = RedisWire(url=url, timeout_s=20.0)
    replies = await wire.execute([ECHO, ECHO])
    assert [isinstance(reply, (RedisConnectionError, OSError)) for reply in replies] == [True, True]
    await wire.close()


async def test_an_expired_connection_is_made_anew_before_the_next_command():
    async with CannedServer(b"+one\r\n", b"+two\r\n", b"+three\r\n") as server:
        wire = RedisWire(url=server.url, timeout_s=20.0)
        await wire.execute([ECHO])
        wire.expire()
        assert await wire.execute([ECHO]) == [b"two"]
        assert await wire.execute([ECHO]) == [b"three"]
        assert server.accepted == 2
        await wire.close()


async def test_nothing_is_ever_sent_twice():
    """A line that breaks before the first reply: whether the server ran the command is unknown."""
    async with CannedServer(CUT) as server:
        wire = RedisWire(url=server.url, timeout_s=20.0)
        await wire.execute([("XADD", "s", "*", "a", "b")])
        assert server.commands == [[b"XADD", b"s", b"*", b"a", b"b"]]
        await wire.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@host:99999/0",
        "redis://:secret@host/0?foo=1",
        "http://:secret@host",
        "rediss://:secret@host/0?ssl_cert_reqs=maybe",
    ],
)
def test_a_url_that_cannot_be_used_is_told_without_its_password(url):
    with pytest.raises(ConfigurationError, match="cannot be used") as caught:
        RedisWire(url=url, timeout_s=1.0)
    assert "secret" not in str(caught.value)

"""One connection to the result server: commands go out together, and each gets its own reply."""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from legit_embedding.config import hide_password
from legit_embedding.errors import ConfigurationError

CONNECT_TIMEOUT_S = 5.0

Command: TypeAlias = tuple[str | bytes | int, ...]


class Wire(Protocol):
    """A connection that opens itself when it is needed; used by one task at a time."""

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """One reply for each command, in order: what the server said, or the exception that stands for it.

        Where the line breaks on the way, the commands without a reply get that error: whether the server ran them is
        unknown. Raises nothing but CancelledError.
        """
        ...

    def expire(self) -> None:
        """The next `execute` opens a new connection."""
        ...

    async def close(self) -> None:
        """Closes the connection; a second call does nothing."""
        ...


class RedisWire:
    """A `Wire` to the server at `url` (redis://, rediss://, unix://).

    `timeout_s` is for all replies of one `execute`, connecting included. Nothing is ever sent twice: redis-py's own
    retry would replay a pipeline of which a part has been applied.

    Raises:
        ConfigurationError: from the constructor; the URL cannot be used.
    """

    def __init__(self, *, url: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._connection = _connection(url)
        self._expired = False

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """One reply or exception for each command."""
        replies: list[Any] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(commands)
                for _ in commands:
                    replies.append(await self._read())  # noqa: PERF401  what came before a break is kept
        except Exception as error:  # noqa: BLE001  the commands' outcome is unknown, whatever went wrong here
            await self._drop()
            replies.extend([error] * (len(commands) - len(replies)))
        except BaseException:
            # Replies may be under way: they must not be taken for those of the next commands.
            await self._drop()
            raise
        return replies

    def expire(self) -> None:
        """The next `execute` opens a new connection."""
        self._expired = True

    async def close(self) -> None:
        """Closes the connection."""
        await self._drop()

    def __repr__(self) -> str:
        return f"<RedisWire {'open' if self._connection.is_connected else 'closed'}>"

    async def _send(self, commands: Sequence[Command]) -> None:
        if self._expired:
            await self._drop()
        if not self._connection.is_connected:
            await self._connection.connect()  # type: ignore[no-untyped-call]  # redis-py's gap
        # Packed by hiredis, not by redis-py, whose asyncio part does it in Python: four times the time.
        packed = b"".join(pack_command(command) for command in commands)  # type: ignore[arg-type]  # its stub: of one
        await self._connection.send_packed_command(packed, check_health=False)

    async def _read(self) -> Any:
        try:
            return await self._connection.read_response(disable_decoding=True)
        except RedisConnectionError:
            raise
        except RedisError as error:
            if not self._connection.is_connected:
                raise
            return error

    async def _drop(self) -> None:
        self._expired = False
        await self._connection.disconnect(nowait=True)


def _connection(url: str) -> AbstractConnection:
    options: dict[str, Any] = {} if url.startswith("unix:") else {"socket_keepalive": True}
    try:
        pool = ConnectionPool.from_url(
            url,
            decode_responses=False,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=None,
            **options,
        )
        connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py's gap
    except (ValueError, TypeError, RedisError) as error:
        raise ConfigurationError(f"the result server's URL {hide_password(url)} cannot be used: {error}") from error
    return connection

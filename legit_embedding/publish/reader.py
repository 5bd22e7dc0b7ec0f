"""Reads result streams back, for the command line, the demo and tests: synchronous, no consumer group."""

import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeAlias

import redis

from legit_embedding.publish.errors import ResultServerError

BLOCK_S = 1.0
"""One blocking XREAD; between two of them the deadline is looked at."""

SOCKET_TIMEOUT_S = 15.0
PAGE_ENTRIES = 500

StreamEntry: TypeAlias = tuple[str, str, dict[str, str]]
"""Stream, entry id, fields."""


class StreamReader:
    """A connection that reads; a context manager. Bytes that are no UTF-8 come as U+FFFD.

    Raises:
        ResultServerError: from every method; the server cannot be reached, or refuses.
    """

    def __init__(self, url: str) -> None:
        try:
            # RESP2 gives XREAD's reply the same shape on every version of redis-py.
            self._client: Any = redis.Redis.from_url(
                url,
                decode_responses=True,
                encoding_errors="replace",
                socket_timeout=SOCKET_TIMEOUT_S,
                socket_connect_timeout=SOCKET_TIMEOUT_S,
                protocol=2,
            )
            self._client.connection_pool.make_connection()  # an option of the URL that is none shows here, not later
        except (ValueError, TypeError, redis.RedisError) as error:
            raise ResultServerError(f"the result server's URL cannot be used: {error}") from error

    def read(
        self,
        streams: Mapping[str, str] | Iterable[str],
        *,
        timeout_s: float,
        expected: int | None = None,
        from_id: str = "0",
    ) -> Iterator[StreamEntry]:
        """Entries of `streams` as they come, until `expected` have come or `timeout_s` seconds are over.

        A mapping gives each stream the id after which to begin; names alone begin after `from_id` (`0`: with the
        first entry; `$`: with what comes from now on). A stream need not exist yet.
        """
        after = dict(streams) if isinstance(streams, Mapping) else dict.fromkeys(streams, from_id)
        after = {stream: self.last_id(stream) if last == "$" else last for stream, last in after.items()}
        deadline_s = time.monotonic() + timeout_s
        count = 0
        while after and (expected is None or count < expected):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return
            for stream, entry_id, fields in self._page(after, min(left_s, BLOCK_S)):
                after[stream] = entry_id
                count += 1
                yield stream, entry_id, fields
                if expected is not None and count >= expected:
                    return

    def last_id(self, stream: str) -> str:
        """The id of the stream's last entry; `0-0` where it has none."""
        page = self._call("XREVRANGE", stream, "+", "-", "COUNT", 1)
        return str(page[0][0]) if page else "0-0"

    def delete(self, *streams: str) -> int:
        """Deletes streams; how many there were."""
        return int(self._call("DEL", *streams)) if streams else 0

    def close(self) -> None:
        """Closes the connection; a second call does nothing."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _page(self, after: Mapping[str, str], block_s: float) -> list[StreamEntry]:
        block_ms = max(1, int(block_s * 1000))
        reply = self._call("XREAD", "COUNT", PAGE_ENTRIES, "BLOCK", block_ms, "STREAMS", *after, *after.values())
        return [(stream, entry_id, dict(fields or {})) for stream, page in reply or () for entry_id, fields in page]

    def _call(self, *command: Any) -> Any:
        try:
            return self._client.execute_command(*command)
        except redis.RedisError as error:
            raise ResultServerError(f"the result server cannot be read: {error}") from error

"""Images on the web, from the hosts that the settings allow."""

import asyncio
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Self

import aiohttp
from aiohappyeyeballs import AddrInfoType
from yarl import URL

from legit_embedding.errors import (
    EmbeddingError,
    InvalidItemError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceTooLargeError,
    SourceUnavailableError,
)
from legit_embedding.sources.hosts import HostPolicy, parse_url

MAX_REDIRECTS = 5
READ_BYTES = 256 * 1024
REDIRECTS = frozenset({301, 302, 303, 307, 308})
GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
NOT_PERMITTED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS})
BUSY = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
HEADERS: Mapping[str, str] = {
    "User-Agent": "legit-embedding",
    "Accept": "image/*, */*;q=0.5",
    "Accept-Encoding": "identity",  # images are compressed already
}


class AddressRefusedError(OSError):
    """The address that was about to be dialled may not be."""


class Fetcher:
    """Fetches URLs over one session; an async context manager.

    `timeout_s` is for one fetch as a whole: connection, redirects and body.
    """

    def __init__(self, *, policy: HostPolicy, max_bytes: int, timeout_s: float, concurrency: int) -> None:
        self._policy = policy
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._concurrency = concurrency
        self._stack = AsyncExitStack()
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, url: str) -> bytes:
        """The body that `url` answers with, redirects followed as far as they too are allowed.

        Raises:
            InvalidItemError: no http(s) URL.
            SourceNotAllowedError: host or address are not allowed, or the server says so.
            SourceNotFoundError: 404 and 410, and other answers that will not change.
            SourceTooLargeError: more than `max_bytes`.
            SourceUnavailableError: time-out, connection error, 5xx, 429.
            RuntimeError: the fetcher is not open.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(url)
        except EmbeddingError:
            raise
        except TimeoutError as error:
            raise SourceUnavailableError(f"url: {url!r:.200}: no whole answer in {self._timeout_s:g} s") from error
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, AddressRefusedError):
                raise SourceNotAllowedError(f"url: {url!r:.200}: {error.os_error}") from error
            raise SourceUnavailableError(f"url: {url!r:.200}: {error}") from error
        except ValueError as error:  # yarl, idna and aiohttp each have URLs and hosts of which they can make nothing
            raise InvalidItemError(f"url: {url!r:.200} cannot be asked for: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise SourceUnavailableError(f"url: {url!r:.200}: {str(error) or type(error).__name__}") from error

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=self._concurrency, socket_factory=self._open_socket)
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(),  # `fetch` has the one that counts
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=HEADERS,
                trust_env=False,  # a proxy from the environment would dial in our place, past the guard below
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._session = None
        await self._stack.aclose()

    async def _follow(self, text: str) -> bytes:
        if self._session is None:
            raise RuntimeError("the fetcher is not open")
        url = self._policy.require_url(text)
        for _ in range(MAX_REDIRECTS + 1):
            async with self._session.get(url, allow_redirects=False) as answer:
                if answer.status not in REDIRECTS or not answer.headers.get("Location"):
                    return await self._read(answer)
                url = self._next(url, answer.headers["Location"])
        raise SourceNotFoundError(f"url: more than {MAX_REDIRECTS} redirects")

    def _next(self, url: URL, location: str) -> URL:
        """Where a redirect leads, held against the same rules; what is wrong with it is not the item's fault."""
        try:
            return self._policy.require_url(str(url.join(parse_url(location))))
        except (InvalidItemError, ValueError) as error:
            raise SourceNotAllowedError(f"url: the server leads on to {location!r:.200}, which is refused") from error

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        _require_success(answer)
        if (answer.content_length or 0) > self._max_bytes:
            raise self._too_large(answer.content_length or 0)
        body = bytearray()
        async for part in answer.content.iter_chunked(READ_BYTES):
            body += part
            if len(body) > self._max_bytes:
                raise self._too_large(len(body))
        return bytes(body)

    def _too_large(self, nbytes: int) -> SourceTooLargeError:
        return SourceTooLargeError(f"url: {nbytes:,} bytes or more, above LEGIT_MAX_SOURCE_BYTES ({self._max_bytes:,})")

    def _open_socket(self, address: AddrInfoType) -> socket.socket:
        """Sees the address that is really dialled: after name resolution, redirects and whatever else led there."""
        family, kind, protocol, _, place = address
        host, port = place[0], place[1]
        if not self._policy.allows_address(str(host), int(port)):
            # The same words for each address: of several different errors only their text would reach `fetch`.
            raise AddressRefusedError(
                "the host's address is not public; name that address in LEGIT_ALLOWED_HOSTS if it is meant"
            )
        return socket.socket(family=family, type=kind, proto=protocol)


def _require_success(answer: aiohttp.ClientResponse) -> None:
    status = answer.status
    if status == HTTPStatus.OK:
        return
    what = f"url: the server answered {status} {answer.reason or ''}".rstrip()
    if status in GONE:
        raise SourceNotFoundError(what)
    if status in NOT_PERMITTED:
        raise SourceNotAllowedError(what)
    if status in BUSY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise RetryAfterError(what, retry_after_s=_retry_after_s(answer))
    raise SourceNotFoundError(what)


class RetryAfterError(SourceUnavailableError):
    """The server is busy; it may have said for how long."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def _retry_after_s(answer: aiohttp.ClientResponse) -> float:
    """The `Retry-After` header in seconds; its form with a date is rare and passed over."""
    value = answer.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0

"""Reads any source: the one way from an item to its payload."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Self, TypeVar

from legit_embedding.backoff import Backoff
from legit_embedding.clock import Clock
from legit_embedding.config import Settings
from legit_embedding.errors import SourceNotAllowedError, SourceUnavailableError
from legit_embedding.sources.file import file_nbytes, read_regular_file, resolve_allowed
from legit_embedding.sources.hosts import HostPolicy, HostRule
from legit_embedding.sources.inline import checked_text, decode_inline, decoded_nbytes
from legit_embedding.sources.shm import discard, read_tensor, tensor_nbytes
from legit_embedding.sources.url import Fetcher
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.threads import DaemonThreads
from legit_embedding.values import FileSource, InlineSource, Payload, ShmSource, Source, TextSource, UrlSource

DECODE_INLINE_BELOW = 32 * 1024
"""base64 shorter than this is decoded on the loop: the way to a thread and back costs more."""

THREADS = 8

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Sources:
    """Reads texts, inline images, files, URLs and shared memory, many at once; an async context manager."""

    def __init__(self, *, settings: Settings, clock: Clock, metrics: Metrics) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._max_bytes = int(settings.max_source_bytes)
        self._backoff = Backoff(settings.retry_base_s, settings.retry_max_s, settings.retries)
        self._places = asyncio.Semaphore(settings.fetch_concurrency)
        self._threads = DaemonThreads(THREADS, "legit-read")
        self._stack = AsyncExitStack()
        self._fetcher = Fetcher(
            policy=HostPolicy([HostRule.parse(rule) for rule in settings.allowed_hosts]),
            max_bytes=self._max_bytes,
            timeout_s=settings.fetch_timeout_s,
            concurrency=settings.fetch_concurrency,
        )

    @staticmethod
    def at_hand(source: Source) -> bool:
        """Whether `read` gives it at once, without a thread or the network."""
        return isinstance(source, TextSource) or (
            isinstance(source, InlineSource) and len(source.data) < DECODE_INLINE_BELOW
        )

    async def read(self, source: Source) -> Payload:
        """The item's payload: a text, an encoded image, or a tensor of shape (channels, height, width).

        Transient failures are tried again, `LEGIT_RETRIES` times, before they are raised.

        Raises:
            EmbeddingError: a subclass that says what is wrong with the source.
        """
        if isinstance(source, TextSource):
            return checked_text(source.text, max_bytes=self._max_bytes)
        if isinstance(source, InlineSource) and self.at_hand(source):
            return decode_inline(source.data, max_bytes=self._max_bytes)
        started_s = self._clock.monotonic()
        try:
            return await self._read_with_retries(source)
        finally:
            self._metrics.stage("fetch", self._clock.monotonic() - started_s)

    async def reserve_bytes(self, sources: Sequence[Source]) -> int:
        """No more bytes than this are held while `sources` are read, as far as can be told without reading them.

        What is refused by the settings holds nothing. A URL's size is unknown before its answer: it counts as the most
        that it may be, and so does a file that cannot be looked at.
        """
        look = partial(self._reserve_now, sources)
        # A file's size, rather than the most that it may have, lets many of them be read for one batch. But a folder
        # whose server is gone holds whoever looks into it, and that must not be the loop.
        if self._settings.allowed_roots and any(isinstance(source, FileSource) for source in sources):
            return await self._on_thread(look)
        return look()

    def _reserve_now(self, sources: Sequence[Source]) -> int:
        return sum(map(self._nbytes_of, sources))

    def _nbytes_of(self, source: Source) -> int:
        settings, most = self._settings, self._max_bytes
        match source:
            case TextSource():
                return 4 * len(source.text)
            case InlineSource():
                return min(decoded_nbytes(source.data), most)
            case FileSource():
                nbytes = file_nbytes(source.path, settings.allowed_roots)
                return min(most if nbytes is None else nbytes, most) if settings.allowed_roots else 0
            case ShmSource():
                return min(tensor_nbytes(source), most) if settings.shm_root else 0
            case UrlSource():
                return most if settings.allowed_hosts else 0

    async def discard(self, source: ShmSource) -> None:
        """Removes a file in shared memory, after its task's ack; one that cannot be removed is logged and stays."""
        try:
            await self._on_thread(partial(discard, source, root=self._settings.shm_root))
        except SourceNotAllowedError:
            pass  # as its entry already says
        except OSError as error:
            logger.warning("shared memory stays behind: %s", error)

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._fetcher)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        self._threads.shutdown()  # a read of a mount that is gone never ends

    async def _read_with_retries(self, source: Source) -> Payload:
        for pause_s in self._backoff.pauses_s():
            try:
                return await self._read_once(source)
            except SourceUnavailableError as error:
                asked_s = min(getattr(error, "retry_after_s", 0.0), self._settings.retry_max_s)
                self._metrics.retry("fetch")
                await self._clock.sleep(max(pause_s, asked_s))
        return await self._read_once(source)

    async def _read_once(self, source: Source) -> Payload:
        if isinstance(source, InlineSource):
            return await self._on_thread(partial(decode_inline, source.data, max_bytes=self._max_bytes))
        async with self._places:
            if isinstance(source, UrlSource):
                return await self._fetcher.fetch(source.url)
            return await self._on_thread(partial(self._read_local, source))

    def _read_local(self, source: Source) -> Payload:
        if isinstance(source, ShmSource):
            return read_tensor(source, root=self._settings.shm_root, max_bytes=self._max_bytes)
        if not isinstance(source, FileSource):
            raise TypeError(f"no such source: {type(source).__name__}")
        path = resolve_allowed(source.path, self._settings.allowed_roots, setting="LEGIT_ALLOWED_ROOTS")
        return read_regular_file(path, max_bytes=self._max_bytes)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

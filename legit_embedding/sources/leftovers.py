"""What a finished task leaves in shared memory: its files go after its ack, whether it ever ran or not."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from legit_embedding.config import Settings
from legit_embedding.contract import Names, parse_envelope
from legit_embedding.contract.items import SOURCES_OF
from legit_embedding.errors import InvalidEnvelopeError
from legit_embedding.sources.reader import Sources
from legit_embedding.telemetry.reports import Reporter
from legit_embedding.values import Item, ShmSource, TaskKind


class Leftovers:
    """Finds a task's files by its arguments, so that nothing need be remembered of it, and removes them."""

    def __init__(self, *, settings: Settings, names: Names, sources: Sources, reporter: Reporter) -> None:
        self._settings = settings
        self._names = names
        self._sources = sources
        self._reporter = reporter
        self._discarding: set[asyncio.Task[None]] = set()

    def files_of(self, kind: TaskKind, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[ShmSource, ...]:
        """The files in shared memory that a task is about. Any thread; never raises: an ack must not fail over them."""
        if self._settings.shm_root is None or "shm" not in SOURCES_OF[kind]:
            return ()
        try:
            envelope = parse_envelope(args, kwargs, kind=kind, names=self._names, max_items=self._settings.max_items)
        except InvalidEnvelopeError:
            return ()
        except Exception as error:  # noqa: BLE001  see above
            self._report(error)
            return ()
        items = (item for item in envelope.items if isinstance(item, Item))
        return tuple(item.source for item in items if isinstance(item.source, ShmSource))

    def discard(self, files: Sequence[ShmSource]) -> None:
        """Begins to remove `files`; on the loop."""
        for file in files:
            task = asyncio.get_running_loop().create_task(self._discard_one(file), name="legit-shm-discard")
            self._discarding.add(task)
            task.add_done_callback(self._discarding.discard)

    async def close(self) -> None:
        """Returns when the files of acknowledged tasks are gone."""
        await asyncio.gather(*self._discarding, return_exceptions=True)

    async def _discard_one(self, file: ShmSource) -> None:
        try:
            await self._sources.discard(file)
        except Exception as error:  # noqa: BLE001  told, because shared memory that nobody frees is lost to everybody
            self._report(error)

    def _report(self, error: Exception) -> None:
        self._reporter.report(error, cause=f"discard:{type(error).__name__}")

    def __repr__(self) -> str:
        return f"<Leftovers {len(self._discarding)} files being removed>"

"""A whole pipeline without weights, without a server and without waiting."""

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial

import pytest

from legit_embedding.batching import Batcher, Preparer
from legit_embedding.budget import ByteBudget
from legit_embedding.config import load_settings
from legit_embedding.contract import Names, parse_entry
from legit_embedding.models.cache import ModelCache
from legit_embedding.models.catalog import Catalog
from legit_embedding.models.registry import Registry
from legit_embedding.pipeline import Pipeline
from legit_embedding.sources import Sources
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.clock import FakeClock, until
from legit_embedding.testing.model import FakeAdapter, FakeModel
from legit_embedding.testing.publisher import MemoryPublisher
from legit_embedding.testing.reports import NullReporter
from legit_embedding.values import Delivery

CATALOG = """
[defaults]
image = "image"
text = "text"

[models.image]
adapter = "fake"
modality = "image"

[models.text]
adapter = "fake"
"""


class WatchedBudget(ByteBudget):
    """Keeps the `most` bytes that were ever in use."""

    most = 0

    async def reserve(self, nbytes):
        reservation = await super().reserve(nbytes)
        self._look()
        return reservation

    def give_back(self, nbytes):
        super().give_back(nbytes)  # which lets others in
        self._look()

    def _look(self):
        self.most = max(self.most, self.statistics().used_bytes)


class Rig:
    """A pipeline of real parts around fake models; `image` and `text` are those models, ready to be told what to do."""

    def __init__(self, *, image=None, text=None, publisher=None, catalog=CATALOG, **settings):
        self.image = FakeModel(name="image", modality="image", **(image or {}))
        self.text = FakeModel(name="text", **(text or {}))
        self.settings = load_settings(**{"warm_up": False, "retries": 2, "model_failure_s": 30.0, **settings})
        self.clock = FakeClock()
        self.metrics = Metrics()
        self.reporter = NullReporter()
        self.publisher = publisher or MemoryPublisher()
        self.adapter = FakeAdapter()
        self.adapter.make = lambda *, name, **_: {"image": self.image, "text": self.text}[name]
        self.budget = WatchedBudget(int(self.settings.budget_bytes))
        self.names = Names.load(None)
        self._catalog = Catalog.parse(catalog)
        self._numbers = itertools.count(1)
        self._stack = AsyncExitStack()

    async def __aenter__(self):
        shared = {"clock": self.clock, "metrics": self.metrics}
        self.executor = ThreadPoolExecutor(self.settings.prepare_threads or 2)
        self._stack.callback(self.executor.shutdown)
        self.sources = await self._stack.enter_async_context(Sources(settings=self.settings, **shared))
        self.cache = await self._stack.enter_async_context(
            ModelCache(
                catalog=self._catalog,
                settings=self.settings,
                reporter=self.reporter,
                registry=Registry(extra={"fake": lambda: self.adapter}),
                **shared,
            )
        )
        self.batcher = await self._stack.enter_async_context(
            Batcher(gate=self.publisher.wait_for_room, reporter=self.reporter, hold=self.cache.hold, **shared)
        )
        self.pipeline = Pipeline(
            settings=self.settings,
            names=self.names,
            identity="worker@test",
            sources=self.sources,
            models=self.cache,
            batcher=self.batcher,
            publisher=self.publisher,
            budget=self.budget,
            preparer=Preparer(
                self.executor,
                threads=self.settings.prepare_threads or 2,
                clock=self.clock,
                observe=partial(self.metrics.stage, "prepare"),
            ),
            reporter=self.reporter,
            **shared,
        )
        return self

    async def __aexit__(self, *error):
        for gate in (self.image.gate, self.text.gate, self.text.prepare_gate, self.adapter.gate):
            gate.release()  # a test that failed must not leave a thread behind
        await self._stack.aclose()

    def run(self, envelope, *, kind="texts", task_id=None, expires_at_s=None, attempt=1):
        """The pipeline's run of one task."""
        delivery = Delivery(task_id or f"task-{next(self._numbers)}", attempt, expires_at_s)
        return self.pipeline.run([envelope], {}, kind=kind, delivery=delivery)

    def start(self, envelope, **delivery):
        """The same, as a task that goes on by itself."""
        return asyncio.create_task(self.run(envelope, **delivery))

    def entries(self, stream="embeddings:results"):
        """What is on a stream, by place in the task."""
        found = [parse_entry(fields, names=self.names) for fields in self.publisher.streams[stream]]
        return {entry.index: entry for entry in found}

    async def until_written(self, count):
        """Returns when so many entries are written."""
        await until(lambda: self.written() >= count)
        assert self.written() == count

    async def until_queued(self, count):
        """Returns when so many items wait for a batch."""
        await until(lambda: self.batcher.statistics().queued == count)

    def written(self, stream="embeddings:results"):
        """How many entries are on a stream, repeated ones too."""
        return len(self.publisher.streams[stream])


@pytest.fixture
def make_rig():
    """Makes rigs; each is an async context manager."""
    return Rig

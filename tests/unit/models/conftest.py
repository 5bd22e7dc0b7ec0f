"""A cache whose models have no weights."""

from contextlib import asynccontextmanager

import pytest

from legit_embedding.config import load_settings
from legit_embedding.models.cache import ModelCache
from legit_embedding.models.catalog import Catalog
from legit_embedding.models.registry import Registry
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.clock import FakeClock
from legit_embedding.testing.model import FakeAdapter
from legit_embedding.testing.reports import NullReporter


class CacheRig:
    """A cache of fake models, one of 1,000 bytes for each of `keys`, with its surroundings."""

    def __init__(self, *keys, toml="", close_timeout_s=30, **settings):
        self.clock = FakeClock()
        self.reporter = NullReporter()
        self.adapter = FakeAdapter()
        self.metrics = Metrics()
        text = toml or "\n".join(f'[models.{key}]\nadapter = "fake"' for key in keys or ("a", "b", "c"))
        self.cache = ModelCache(
            catalog=Catalog.parse(text),
            settings=load_settings(**{"warm_up": False, **settings}),
            clock=self.clock,
            metrics=self.metrics,
            reporter=self.reporter,
            registry=Registry(extra={"fake": lambda: self.adapter}),
            close_timeout_s=close_timeout_s,
        )

    @asynccontextmanager
    async def leased(self, key, modality):
        """For a context together with others."""
        with await self.cache.lease(key, modality) as model:
            yield model

    async def use(self, key):
        """Leases the model and gives it back."""
        with await self.cache.lease(key, "text") as model:
            return model

    def state(self, key):
        return next(state for state in self.cache.statistics() if state.key == key)

    @property
    def loaded(self):
        return [state.key for state in self.cache.statistics() if state.state == "ready"]


@pytest.fixture
def cache_rig():
    """Makes rigs."""
    return CacheRig

"""Every model of the process: loaded once however many ask, kept while used, gone when idle or when memory is short."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from legit_embedding.clock import Clock
from legit_embedding.config import Settings
from legit_embedding.errors import (
    ConfigurationError,
    DeviceOutOfMemoryError,
    EmbeddingError,
    ModelUnavailableError,
    ShuttingDownError,
    UnknownModelError,
)
from legit_embedding.models.base import EmbeddingModel, InputLimits
from legit_embedding.models.catalog import Catalog, ModelSpec
from legit_embedding.models.registry import Registry
from legit_embedding.models.slots import Lease, ModelState, Slot, least_recently_used, resident_nbytes, unused_for
from legit_embedding.models.warmup import warm_up
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.telemetry.reports import Reporter
from legit_embedding.threads import DaemonThreads, run_on

logger = logging.getLogger(__name__)

SWEEPS_AN_IDLE_TIME = 4
"""How often, within a model's idle time, the cache looks for models to unload."""

CLOSE_TIMEOUT_S = 5.0
"""How long a load that nobody waits for any more may take to end before it is left behind: less than the pool gives a
start that is called off. One that hangs, in a download or a kernel, must not keep the worker from stopping."""


class ModelCache:
    """Leases models by key; an async context manager, on one event loop.

    A load runs on a thread of its own, one at a time, because two would add up their peaks of memory.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        reporter: Reporter,
        registry: Registry | None = None,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        self._catalog = catalog
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._reporter = reporter
        self._registry = registry or Registry()
        self._close_timeout_s = close_timeout_s
        self._slots = {key: Slot(spec) for key, spec in catalog.specs.items()}
        self._turn = asyncio.Lock()
        self._loader = DaemonThreads(1, "legit-model-loader")
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def lease(self, key: str | None, modality: str) -> Lease:
        """The model `key`, or the modality's default.

        Raises:
            UnknownModelError: it is not declared.
            ModelUnavailableError: it cannot be loaded now; a failure is remembered for `LEGIT_MODEL_FAILURE_S`, and a
                `ConfigurationError` for as long as the cache lives.
            ShuttingDownError: the cache is closed.
        """
        spec = self._catalog.spec(key or self._catalog.default(modality))
        slot = self._slots[spec.key]
        return Lease(slot, await self._ready(slot), self._clock)

    @contextmanager
    def hold(self, model: object) -> Iterator[None]:
        """Keeps a leased model loaded until the context is left, also where the lease ends first: for its batches."""
        slot = next((slot for slot in self._slots.values() if slot.model is model), None)
        if slot is None:  # the cache is closed
            yield
            return
        slot.held += 1
        try:
            yield
        finally:
            slot.held -= 1
            slot.last_used_s = self._clock.monotonic()

    def declared(self, key: str | None, modality: str) -> str | None:
        """The key of the model that `lease` would give; None where it is not declared."""
        try:
            return self._catalog.spec(key or self._catalog.default(modality)).key
        except UnknownModelError:
            return None

    async def preload(self) -> None:
        """Loads the models of `LEGIT_PRELOAD`.

        Raises:
            UnknownModelError, ModelUnavailableError: one of them cannot be had; the worker should not start.
        """
        for name in self._settings.preload:
            for key in self._catalog.defaults.values() if name == "defaults" else (name,):
                await self.load(key)

    async def load(self, key: str) -> None:
        """Returns when the model is loaded; see `lease` for what it raises."""
        await self._ready(self._slots[self._catalog.spec(key).key])

    def start_load(self, key: str) -> ModelState:
        """Begins to load the model, unless it is loaded or being loaded; what it was before. Never waits.

        A failure that is remembered does not count: an operator who asks has mended its cause. How the load ends,
        `statistics` tells; the model is kept no longer than one that a task has asked for.

        Raises:
            UnknownModelError: it is not declared.
            ShuttingDownError: the cache is closed.
        """
        slot = self._open_slot(key)
        before = slot.describe(self._clock.monotonic())
        if slot.model is None and slot.loading is None:
            self._begin_load(slot)
        return before

    def start_unload(self, key: str) -> ModelState:
        """Takes the model out of use, unless it is not loaded; what it was before. Never waits.

        Its weights are freed on the loader's thread, after the load that runs there. A model in use is refused, not
        marked for later: under steady traffic it may never fall idle, and for that there is `idle_unload_s`.

        Raises:
            UnknownModelError: it is not declared.
            ModelUnavailableError: it is in use, or being loaded; the message says when to try again.
            ShuttingDownError: the cache is closed.
        """
        slot = self._open_slot(key)
        before = slot.describe(self._clock.monotonic())
        if slot.loading is not None:
            raise ModelUnavailableError(f"the model {key!r} is being loaded: unload it when it is ready")
        if slot.idle:
            self._let_go(slot)
        elif slot.model is not None:
            raise ModelUnavailableError(
                f"the model {key!r} is in use by {before.in_use} tasks and {before.batches} batches, and stays loaded: "
                "unload it when they are done"
            )
        return before

    async def unload(self, key: str) -> None:
        """As `start_unload`, and returns when the weights are freed."""
        self.start_unload(key)
        closing = self._slots[key].unloading
        if closing is not None:
            await asyncio.wait([closing])

    def statistics(self) -> tuple[ModelState, ...]:
        """Every declared model and its state."""
        now_s = self._clock.monotonic()
        return tuple(slot.describe(now_s) for slot in self._slots.values())

    async def __aenter__(self) -> Self:
        idle_s = [slot.spec.idle_unload_s or self._settings.model_idle_s for slot in self._slots.values()]
        shortest_s = min((seconds for seconds in idle_s if seconds), default=None)
        if shortest_s is not None:
            self._sweeper = asyncio.create_task(self._sweep(shortest_s / SWEEPS_AN_IDLE_TIME), name="legit-model-sweep")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        own = [self._sweeper, *(task for slot in self._slots.values() for task in (slot.loading, slot.unloading))]
        tasks = [task for task in own if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not await self._loader.close(self._close_timeout_s):
            logger.warning("a model is still being loaded or closed after %g s, and left behind", self._close_timeout_s)
        for slot in self._slots.values():
            if slot.model is not None:
                slot.model, slot.leaving = None, slot.model
            try:
                slot.close_leaving()  # here: the loader may be stuck in a load
            except Exception as failure:  # noqa: BLE001  the others must be closed too
                self._reporter.report(failure, cause=f"model-close:{slot.spec.key}", model=slot.spec.key)
        self._count_loaded()

    def __repr__(self) -> str:
        loaded = [slot.spec.key for slot in self._slots.values() if slot.model is not None]
        return f"<ModelCache {len(self._slots)} declared, loaded: {', '.join(loaded) or 'none'}>"

    def _open_slot(self, key: str) -> Slot:
        slot = self._slots[self._catalog.spec(key).key]
        self._require_open()
        return slot

    def _require_open(self) -> None:
        if self._closed:
            raise ShuttingDownError("no model is loaded any more: the worker is stopping")

    async def _ready(self, slot: Slot) -> EmbeddingModel:
        """The loaded model; whoever comes first starts the load, and who is cancelled does not stop it for others."""
        slot.wanted += 1
        try:
            while slot.model is None:
                self._require_open()
                permanent = slot.error is not None and slot.error.permanent
                if not permanent and self._retry_after_s(slot) <= 0:
                    loading = slot.loading or self._begin_load(slot)
                    await asyncio.wait([loading])  # unlike awaiting it, this cancels no load with its waiter
                if slot.error is not None:
                    raise ModelUnavailableError(
                        str(slot.error), retry_after_s=self._retry_after_s(slot), permanent=slot.error.permanent
                    )
            slot.last_used_s = self._clock.monotonic()
            return slot.model
        finally:
            slot.wanted -= 1

    def _retry_after_s(self, slot: Slot) -> float:
        """Seconds until a load that failed may be tried again; 0 where there is nothing to wait for."""
        if slot.failed_s is None:
            return 0.0
        return max(0.0, slot.failed_s + self._settings.model_failure_s - self._clock.monotonic())

    def _begin_load(self, slot: Slot) -> "asyncio.Task[None]":
        slot.error = slot.failed_s = None  # now: who asks from here on waits for this load
        slot.loading = asyncio.create_task(self._load(slot), name=f"legit-model-load-{slot.spec.key}")
        return slot.loading

    async def _load(self, slot: Slot) -> None:
        """Ends with the model in its slot, or with the error that everybody who waits gets; never raises."""
        key, started_s = slot.spec.key, self._clock.monotonic()
        try:
            async with self._turn:
                model = await self._load_with_room(slot)
        except Exception as error:  # noqa: BLE001  an adapter may raise anything; everybody who waits must hear of it
            slot.error = self._unavailable(slot, error)
            slot.failed_s = self._clock.monotonic()
            self._metrics.model_load(key, slot.error.code, slot.failed_s - started_s)
            logger.warning("model %s: %s", key, slot.error)  # the report below is the error
            self._reporter.report(error, cause=f"model-load:{key}", model=key)
        else:
            slot.model = model
            slot.loads += 1
            slot.last_used_s = self._clock.monotonic()
            self._metrics.model_load(key, "ok", slot.last_used_s - started_s)
            self._count_loaded()
            info = model.info
            logger.info(
                "model %s loaded in %.1f s: %s on %s in %s, %.0f MB, dim %d%s",
                key, slot.last_used_s - started_s, info.adapter, info.device, info.dtype, info.nbytes / 1e6, info.dim,
                ", UNTRAINED: its vectors mean nothing" if info.untrained else "",
            )  # fmt: skip
        finally:
            slot.loading = None

    async def _load_with_room(self, slot: Slot) -> EmbeddingModel:
        going = [other.unloading for other in self._slots.values() if other.unloading is not None]
        if going:
            await asyncio.wait(going)  # their memory counts as free: it must be, before this load begins
        await self._make_room(slot, slot.device, slot.nbytes)  # as far as an earlier load told
        model = await self._run_loader(slot)
        slot.device, slot.nbytes = model.info.device, model.info.nbytes
        try:
            await self._make_room(slot, slot.device, slot.nbytes)
        except ModelUnavailableError:
            slot.leaving = model
            await self._close(slot)
            raise
        return model

    async def _run_loader(self, slot: Slot) -> EmbeddingModel:
        try:
            return await run_on(self._loader, self._load_now, slot.spec)
        except DeviceOutOfMemoryError:
            if not any(other.idle or other.unloading is not None for other in self._slots.values()):
                raise
        # Not in the handler above: until that is left, its exception keeps alive what the first try had loaded.
        await self._evict_all_idle()
        return await run_on(self._loader, self._load_now, slot.spec)

    def _load_now(self, spec: ModelSpec) -> EmbeddingModel:
        """On the loader's thread; a worker that stops waits for it only so long, see `CLOSE_TIMEOUT_S`."""
        model = self._registry.adapter(spec.adapter).load(spec, InputLimits(max_pixels=self._settings.max_pixels))
        try:
            if self._settings.warm_up and not self._closed:
                warm_up(model)
        except BaseException:
            model.close()
            raise
        if self._closed:
            model.close()
            raise ShuttingDownError("the worker stopped while the model was being loaded")
        return model

    async def _make_room(self, slot: Slot, device: str | None, nbytes: int) -> None:
        """Unloads the least recently used idle models of `device` until `nbytes` more fit the budget."""
        budget = self._settings.model_memory_bytes
        if budget is None or device is None:
            return
        if nbytes > budget:
            raise ModelUnavailableError(
                f"the model {slot.spec.key!r} ({nbytes:,} bytes) is larger than LEGIT_MODEL_MEMORY_BYTES "
                f"({int(budget):,}), which is all that models may take on {device}"
            )
        while resident_nbytes(self._slots.values(), device) + nbytes > budget:
            victim = least_recently_used(self._slots.values(), device)
            if victim is None:
                raise ModelUnavailableError(
                    f"the model {slot.spec.key!r} ({nbytes:,} bytes) does not fit: LEGIT_MODEL_MEMORY_BYTES is "
                    f"{int(budget):,} and the models that are loaded on {device} are all in use"
                )
            logger.info("model %s goes, to make room for %s", victim.spec.key, slot.spec.key)
            await self._unload(victim)

    async def _evict_all_idle(self) -> None:
        for slot in self._slots.values():
            if slot.idle:  # asked anew for each: while one goes, another may be leased
                await self._unload(slot)

    async def _unload(self, slot: Slot) -> None:
        await asyncio.wait([self._let_go(slot)])

    def _let_go(self, slot: Slot) -> "asyncio.Task[None]":
        """From now on nobody gets the model any more; the task ends when it is closed."""
        slot.model, slot.leaving = None, slot.model
        self._count_loaded()
        slot.unloading = asyncio.create_task(self._finish_unload(slot), name=f"legit-model-unload-{slot.spec.key}")
        return slot.unloading

    async def _finish_unload(self, slot: Slot) -> None:
        try:
            await self._close(slot)
            logger.info("model %s unloaded", slot.spec.key)
        finally:
            slot.unloading = None

    async def _close(self, slot: Slot) -> None:
        """Never raises: neither the sweep nor another model's load may end because this one does not go quietly."""
        try:
            await run_on(self._loader, slot.close_leaving)
        except Exception as error:  # noqa: BLE001  see above
            self._reporter.report(error, cause=f"model-close:{slot.spec.key}", model=slot.spec.key)

    async def _sweep(self, interval_s: float) -> None:
        """Unloads what has been idle for too long, for ever."""
        while True:
            await self._clock.sleep(interval_s)
            for slot in self._slots.values():
                limit_s = slot.spec.idle_unload_s or self._settings.model_idle_s
                if limit_s is not None and unused_for(slot, self._clock.monotonic()) >= limit_s:
                    await self._unload(slot)

    def _unavailable(self, slot: Slot, error: Exception) -> ModelUnavailableError:
        """A new exception, because it is kept, and the old one's traceback would keep what was loaded so far."""
        if isinstance(error, ModelUnavailableError):
            return ModelUnavailableError(str(error), permanent=error.permanent)
        known = isinstance(error, EmbeddingError | ConfigurationError)
        what = str(error) if known else f"{type(error).__name__}: {error}"
        return ModelUnavailableError(
            f"the model {slot.spec.key!r} cannot be loaded: {what}", permanent=isinstance(error, ConfigurationError)
        )

    def _count_loaded(self) -> None:
        self._metrics.models_loaded(sum(slot.model is not None for slot in self._slots.values()))

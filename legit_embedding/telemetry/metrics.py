"""The worker's figures: for Prometheus, and as one flat snapshot for the stats hash."""

import threading
from collections import Counter as Tally
from collections.abc import Callable, Mapping
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
FILL_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Everything that is counted, in one registry of its own. Thread-safe; a call takes a few microseconds."""

    def __init__(self, *, identity: str = "test") -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        Info("legit_worker", "which worker this is", registry=registry).info({"identity": identity})
        self._items = Counter("legit_items", "items by outcome", ("model", "outcome"), registry=registry)
        self._batch_size = Histogram(
            "legit_batch_size", "items in a batch", ("model",), buckets=BATCH_SIZE_BUCKETS, registry=registry
        )
        self._batch_fill = Histogram(
            "legit_batch_fill", "items in a batch, of the most it takes", ("model",), buckets=FILL_BUCKETS,
            registry=registry,
        )  # fmt: skip
        self._busy = Counter(
            "legit_device_busy_seconds", "seconds a device computed; its rate is the busy share", ("device",),
            registry=registry,
        )  # fmt: skip
        self._stages = Histogram(
            "legit_stage_seconds", "seconds a stage took", ("stage",), buckets=SECONDS_BUCKETS, registry=registry
        )
        self._backlog_entries = Gauge("legit_publish_backlog_entries", "results not confirmed", registry=registry)
        self._backlog_bytes = Gauge("legit_publish_backlog_bytes", "bytes of results not confirmed", registry=registry)
        self._budget_used = Gauge("legit_budget_used_bytes", "bytes between fetch and publish", registry=registry)
        self._budget_total = Gauge("legit_budget_total_bytes", "bytes that may be", registry=registry)
        self._tasks = Gauge("legit_tasks_in_flight", "tasks under way", registry=registry)
        self._loads = Counter("legit_model_loads", "model loads by outcome", ("model", "outcome"), registry=registry)
        self._load_seconds = Histogram(
            "legit_model_load_seconds", "seconds a load took", ("model",), buckets=(1, 2.5, 5, 10, 30, 60, 300),
            registry=registry,
        )  # fmt: skip
        self._loaded = Gauge("legit_models_loaded", "models in memory", registry=registry)
        self._retries = Counter("legit_retries", "attempts repeated", ("kind",), registry=registry)
        self._alarms = Counter("legit_alarms", "what an operator should look at", ("kind",), registry=registry)
        self._stage_of = cache(self._stages.labels)  # what prometheus_client looks up under a lock each time
        self._item_of = cache(self._items.labels)
        self._lock = threading.Lock()
        self._sums: Tally[str] = Tally()
        self._seconds: dict[str, float] = {}

    def item(self, model: str, outcome: str, count: int = 1) -> None:
        """Items that got their outcome: `ok` or an error type."""
        self._item_of(model, outcome).inc(count)
        self._sum("items_ok" if outcome == "ok" else "items_error", count)

    def batch(self, *, model: str, device: str, items: int, capacity: int, seconds: float) -> None:
        """A batch was computed; `capacity` is the most items it could have held."""
        self._batch_size.labels(model).observe(items)
        self._batch_fill.labels(model).observe(items / max(1, capacity))
        self._busy.labels(device).inc(seconds)
        with self._lock:
            self._sums["batches"] += 1
            self._sums["batched_items"] += items
            self._sums[f"batches:{model}"] += 1
            self._sums[f"batched_items:{model}"] += items
            self._seconds[f"busy:{device}"] = self._seconds.get(f"busy:{device}", 0.0) + seconds

    def stage(self, name: str, seconds: float) -> None:
        """A stage took that long: fetch, prepare, queue, forward, finish or publish."""
        self._stage_of(name).observe(seconds)

    def watch_backlog(self, *, entries: Callable[[], int], nbytes: Callable[[], int]) -> None:
        """Results that wait for their confirmation.

        They and the next two change several times an item: they are asked for when somebody looks, on any thread.
        """
        self._backlog_entries.set_function(entries)
        self._backlog_bytes.set_function(nbytes)

    def budget_total(self, nbytes: int) -> None:
        """The byte budget, which stays as it is."""
        self._budget_total.set(nbytes)

    def watch_budget(self, used_bytes: Callable[[], int]) -> None:
        """What is used of it."""
        self._budget_used.set_function(used_bytes)

    def watch_tasks(self, in_flight: Callable[[], int]) -> None:
        """Tasks under way."""
        self._tasks.set_function(in_flight)

    def model_load(self, model: str, outcome: str, seconds: float) -> None:
        """A load ended: `ok` or an error type."""
        self._loads.labels(model, outcome).inc()
        self._load_seconds.labels(model).observe(seconds)
        self._sum("model_loads", 1)

    def models_loaded(self, count: int) -> None:
        """Models in memory."""
        self._loaded.set(count)

    def retry(self, kind: str) -> None:
        """Something is tried again."""
        self._retries.labels(kind).inc()
        self._sum("retries", 1)

    def alarm(self, kind: str) -> None:
        """Something that an operator should look at."""
        self._alarms.labels(kind).inc()
        self._sum("alarms", 1)

    def busy_seconds(self) -> Mapping[str, float]:
        """Seconds that each device has computed so far."""
        with self._lock:
            return {name.removeprefix("busy:"): s for name, s in self._seconds.items() if name.startswith("busy:")}

    def snapshot(self) -> dict[str, str | int | float]:
        """The figures that fit a flat hash: sums since the start, and what the gauges show now."""
        with self._lock:
            sums = dict(self._sums)
        models = {name.partition(":")[2] for name in sums if name.startswith("batches:")}
        figures: dict[str, str | int | float] = {
            "items_ok": sums.get("items_ok", 0),
            "items_error": sums.get("items_error", 0),
            "batches": sums.get("batches", 0),
            "batch_size_mean": _mean(sums.get("batched_items", 0), sums.get("batches", 0)),
            "model_loads": sums.get("model_loads", 0),
            "retries": sums.get("retries", 0),
            "alarms": sums.get("alarms", 0),
            "tasks_in_flight": int(_value(self._tasks)),
            "models_loaded": int(_value(self._loaded)),
            "publish_backlog_entries": int(_value(self._backlog_entries)),
            "publish_backlog_bytes": int(_value(self._backlog_bytes)),
            "budget_used_bytes": int(_value(self._budget_used)),
        }
        for model in sorted(models):
            mean = _mean(sums[f"batched_items:{model}"], sums[f"batches:{model}"])
            figures[f"batch_size_mean:{model}"] = mean
        return figures

    def _sum(self, name: str, count: int) -> None:
        with self._lock:
            self._sums[name] += count


def _mean(total: int, count: int) -> float:
    return round(total / count, 3) if count else 0.0


def _value(gauge: Gauge) -> float:
    return next(iter(gauge.collect())).samples[0].value

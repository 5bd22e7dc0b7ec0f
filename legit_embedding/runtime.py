"""The composition root: builds, starts and stops everything, in order, on the pool's loop.

The pool enters `lifespan` before it takes the first task and leaves it after the last. What is entered last is left
first: inference stops before the models go, and the publisher goes last, because everything before it hands it results.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import Celery

from legit_embedding.batching import Batcher, Preparer
from legit_embedding.budget import ByteBudget
from legit_embedding.clock import SystemClock
from legit_embedding.config import Settings, settings
from legit_embedding.contract import Names
from legit_embedding.errors import WrongPoolError
from legit_embedding.models.cache import ModelCache
from legit_embedding.models.catalog import Catalog
from legit_embedding.pipeline import Pipeline
from legit_embedding.publish.routing import RoutingRules
from legit_embedding.publish.streams import Publisher
from legit_embedding.publish.switch import RoutingSwitch
from legit_embedding.publish.urls import results_url
from legit_embedding.publish.wire import RedisWire
from legit_embedding.sources import Sources
from legit_embedding.sources.leftovers import Leftovers
from legit_embedding.telemetry.identity import current_identity
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.telemetry.metrics_server import MetricsServer
from legit_embedding.telemetry.reports import SentryReporter
from legit_embedding.telemetry.sentry import flush_sentry
from legit_embedding.telemetry.stats import StatsPublisher
from legit_embedding.threads import DaemonThreads
from legit_embedding.values import TaskKind

STATS_TIMEOUT_S = 3.0

PREPARE_TIMEOUT_S = 2.0
"""How long images and texts that nobody waits for any more may still be prepared when the worker stops."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs, for the tasks and the remote-control commands."""

    loop: asyncio.AbstractEventLoop
    pipeline: Pipeline
    leftovers: Leftovers
    models: ModelCache
    publisher: Publisher
    switch: RoutingSwitch


_current: Runtime | None = None


def current() -> Runtime:
    """The running runtime.

    Raises:
        WrongPoolError: there is none, because the tasks run under another pool than `legit_async`, or eagerly.
    """
    if _current is None:
        raise WrongPoolError(
            "the embedding tasks run only in a worker with `-P legit_async`: it holds the models and the publisher"
        )
    return _current


def discard_files(kind: TaskKind, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """The broker has done with a task of these arguments: its files in shared memory may go. Any thread."""
    running = _current
    if running is None:
        return
    files = running.leftovers.files_of(kind, args, kwargs)
    if files:
        running.loop.call_soon_threadsafe(running.leftovers.discard, files)


@asynccontextmanager
async def lifespan(app: Celery) -> AsyncIterator[Runtime]:
    """Everything, started; left, it is stopped in the reverse order.

    Raises:
        ConfigurationError: a setting, `models.toml` or the rename tables cannot be used.
        ModelUnavailableError: a model that is to be preloaded cannot be loaded.
    """
    global _current  # noqa: PLW0603  Celery's tasks are global to the process, and so is what they run on
    values = settings()
    async with AsyncExitStack() as stack:
        runtime = await _start(stack, app, values, identity=current_identity(values))
        _current = runtime
        try:
            yield runtime
        finally:
            _current = None


async def _start(stack: AsyncExitStack, app: Celery, values: Settings, *, identity: str) -> Runtime:
    """Builds and starts everything on `stack`."""
    clock = SystemClock()
    metrics = Metrics(identity=identity)
    reporter = SentryReporter(clock=clock)
    names = Names.load(values.contract)
    catalog = Catalog.load(values.models)
    url = results_url(values.results_url, broker_url_of(app))

    stack.push_async_callback(flush_sentry)
    await stack.enter_async_context(MetricsServer(metrics.registry, host=values.metrics_host, port=values.metrics_port))

    switch = RoutingSwitch.connect(url, default=values.reply_to_routing, clock=clock)
    await stack.enter_async_context(switch)
    publisher = Publisher(
        settings=values,
        url=url,
        rules=_routing_rules(app, values, names),
        clock=clock,
        metrics=metrics,
        reporter=reporter,
        routing=switch,
        rejected_field=names.result["rejected_reply_to"],
    )
    await stack.enter_async_context(publisher)

    models = ModelCache(catalog=catalog, settings=values, clock=clock, metrics=metrics, reporter=reporter)
    await stack.enter_async_context(models)
    sources = await stack.enter_async_context(Sources(settings=values, clock=clock, metrics=metrics))
    batcher = Batcher(clock=clock, gate=publisher.wait_for_room, metrics=metrics, reporter=reporter, hold=models.hold)
    await stack.enter_async_context(batcher)

    total_bytes = int(values.budget_bytes)
    metrics.budget_total(total_bytes)
    budget = ByteBudget(total_bytes)
    metrics.watch_budget(lambda: budget.statistics().used_bytes)
    pipeline = Pipeline(
        settings=values,
        names=names,
        identity=identity,
        sources=sources,
        models=models,
        batcher=batcher,
        publisher=publisher,
        budget=budget,
        preparer=_preparer(stack, values, clock=clock, metrics=metrics),
        clock=clock,
        metrics=metrics,
        reporter=reporter,
    )
    stack.callback(pipeline.close)
    leftovers = Leftovers(settings=values, names=names, sources=sources, reporter=reporter)
    stack.push_async_callback(leftovers.close)

    stats = StatsPublisher(
        identity=identity,
        commands=RedisWire(url=url, timeout_s=STATS_TIMEOUT_S),
        metrics=metrics,
        extra=lambda: _figures_of(publisher, batcher, switch),
        clock=clock,
        reporter=reporter,
        interval_s=values.stats_interval_s,
    )
    await stack.enter_async_context(stats)
    await models.preload()
    return Runtime(
        loop=asyncio.get_running_loop(),
        pipeline=pipeline,
        leftovers=leftovers,
        models=models,
        publisher=publisher,
        switch=switch,
    )


def _preparer(stack: AsyncExitStack, values: Settings, *, clock: SystemClock, metrics: Metrics) -> Preparer:
    count = values.prepare_threads or usable_cpus()
    threads = DaemonThreads(count, "legit-prepare")
    stack.push_async_callback(threads.close, PREPARE_TIMEOUT_S)
    return Preparer(threads, threads=count, clock=clock, observe=partial(metrics.stage, "prepare"))


def broker_url_of(app: Celery) -> str:
    """The broker that tasks are really sent to and taken from: Celery's own ways (`-b`, CELERY_BROKER_URL) win."""
    found = app.conf.broker_write_url or app.conf.broker_url
    return found if isinstance(found, str) else ";".join(found or ())


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _routing_rules(app: Celery, values: Settings, names: Names) -> RoutingRules:
    prefix = (app.conf.broker_transport_options or {}).get("global_keyprefix", "")
    return RoutingRules.create(values, queues={*names.queues.values(), *app.amqp.queues}, key_prefix=prefix)


def _figures_of(publisher: Publisher, batcher: Batcher, switch: RoutingSwitch) -> dict[str, str | int]:
    """What the parts know of themselves, beside the metrics."""
    written, batches = publisher.statistics(), batcher.statistics()
    return {
        "results_confirmed": written.confirmed,
        "results_retried": written.retried,
        "results_rejected_reply_to": written.rejected,
        "result_server_trouble": written.trouble or "",
        "batches_queued_items": batches.queued,
        "reply_to_routing": switch.value,
    }

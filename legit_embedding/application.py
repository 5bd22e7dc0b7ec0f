"""The Celery app: what `celery -A legit_embedding` finds.

It never becomes `celery.current_app` by being imported; a worker makes it current itself.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from celery import Celery
from celery.concurrency import get_implementation
from celery.signals import celeryd_init, worker_init

import legit_embedding.control  # noqa: F401  registers the remote-control commands, for the worker and the command line
from legit_embedding import broker
from legit_embedding.config import settings, unknown_variables
from legit_embedding.errors import ConfigurationError
from legit_embedding.pool.legit_async import TaskPool
from legit_embedding.telemetry.identity import adopt_identity, log_formats
from legit_embedding.telemetry.sentry import start_sentry

HOME = Path(__file__).resolve().parent.parent
"""The folder that holds `legit_embedding`, `tasks` and `celeryconfig.py`, installed or checked out."""


def require_own(name: str) -> None:
    """Makes sure that importing `name` finds the module that belongs to this package.

    `tasks` and `celeryconfig` are common names, and `celery -A` puts the working folder first on the path.

    Raises:
        ConfigurationError: another one would be imported; names both files.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ConfigurationError(f"the module {name!r} of legit-embedding is missing beside {HOME}: install it again")
    found = Path(spec.origin).resolve()
    expected = {HOME / f"{name}.py", HOME / name / "__init__.py"}
    if found not in expected:
        raise ConfigurationError(
            f"a foreign module {name!r} at {found} hides legit-embedding's own ({HOME / name}): "
            "start the worker from another folder, or take that folder off PYTHONPATH"
        )


def create_app() -> Celery:
    """A Celery app with this package's settings and tasks.

    Raises:
        ConfigurationError: a setting cannot be used, or a foreign module hides one of ours.
    """
    if settings().broker_transport == "legit":
        broker.install()
    celeryconfig = _own_module("celeryconfig")
    require_own("tasks")
    app = Celery(
        "legit_embedding",
        task_cls="legit_embedding.pool.task:AsyncTask",
        events="legit_embedding.pool.events:Events",
        set_as_current=False,
    )
    app.config_from_object(celeryconfig)
    return app


def _own_module(name: str) -> ModuleType:
    require_own(name)
    return importlib.import_module(name)


@celeryd_init.connect
def _before_worker(instance: Any = None, **_: object) -> None:
    """Runs before the worker builds anything: its name, its error reporting, and a word on misspelt settings."""
    worker_app = getattr(instance, "app", None)
    if worker_app is not app:
        return
    for line in unknown_variables():
        sys.stderr.write(f"legit-embedding: {line}\n")
    identity = adopt_identity(instance, settings())
    instance.app.conf.update(log_formats(identity))
    start_sentry(settings(), identity=identity)


@worker_init.connect
def _fit_to_pool_and_broker(sender: object = None, **_: object) -> None:
    """Refuses to start under another pool: there is no runtime there, and every task would fail.

    Raises:
        SystemExit: a signal's handler may raise any `Exception` without stopping anything.
    """
    worker_app = getattr(sender, "app", None)
    if worker_app is not app:
        return
    pool = get_implementation(getattr(sender, "pool_cls", None))
    if not issubclass(pool, TaskPool):
        raise SystemExit(
            "legit-embedding: the embedding tasks need `-P legit_async`; "
            f"this worker was started with {pool.__module__}:{pool.__name__}"
        )
    if broker.outlives_connections(worker_app):
        # What still runs keeps its messages, and acknowledges them over the next connection: nothing to cancel.
        worker_app.conf.worker_cancel_long_running_tasks_on_connection_loss = False


app = create_app()

"""A worker's one name: in Celery's node name, results, logs, metrics and Sentry. Never a PID: it survives a restart."""

from typing import Protocol

from celery.utils.nodenames import default_nodename

from legit_embedding.config import Settings


class Named(Protocol):
    """Celery's worker, before it has built anything."""

    hostname: str


_adopted: str | None = None


def adopt_identity(worker: Named, settings: Settings) -> str:
    """Gives `worker` its name, and this process the same one.

    `LEGIT_WORKER_ID` wins, then a name given by `-n`; else it is `<service>@<host>`.
    """
    global _adopted  # noqa: PLW0603  one process is one worker
    given = worker.hostname if worker.hostname != default_nodename("") else None
    _adopted = settings.worker_id or given or settings.identity
    worker.hostname = _adopted
    return _adopted


def log_formats(identity: str) -> dict[str, str]:
    """Celery's log formats with the worker's name where Celery has the process's, which is always MainProcess here."""
    head = f"[%(asctime)s: %(levelname)s/{identity.replace('%', '%%')}]"
    return {
        "worker_log_format": f"{head} %(message)s",
        "worker_task_log_format": f"{head} %(task_name)s[%(task_id)s]: %(message)s",
    }


def current_identity(settings: Settings) -> str:
    """What this process is called; outside a worker, what a worker would be."""
    return _adopted or settings.identity

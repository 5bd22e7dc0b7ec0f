"""Makes `-P legit_async` known to Celery, by whichever way a worker is started."""

import sys

from celery import concurrency
from celery.signals import worker_init

from legit_embedding.pool.controller import adopt

NAME = "legit_async"
IMPLEMENTATION = "legit_embedding.pool.legit_async:TaskPool"


def register_pool() -> None:
    """Adds the name where Celery looks for pools; a second call changes nothing.

    The choices of the `-P` option are frozen when `celery.bin.worker` is imported, which the `celery` command does
    before it loads the app; but the app is loaded before the option is parsed, so the choices can still be widened.
    """
    concurrency.ALIASES[NAME] = IMPLEMENTATION
    worker_init.connect(adopt, dispatch_uid="legit_async")
    command = sys.modules.get("celery.bin.worker")
    if command is not None and NAME not in command.WORKERS_POOL.choices:
        command.WORKERS_POOL.choices = (*command.WORKERS_POOL.choices, NAME)

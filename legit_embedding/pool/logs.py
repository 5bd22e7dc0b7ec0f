"""Logging while a signal's handler waits for other threads."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def others_may_log() -> Iterator[None]:
    """Lends the locks of the log's handlers that this thread holds to whoever has to log meanwhile.

    Celery shuts down inside signal handlers. One that interrupts a log line, and waits for a thread that wants to log,
    would wait until its time is up. The interrupted line may have another one in its middle then.
    """
    lent = [(lock, count) for lock in _locks() if (count := _release(lock))]
    try:
        yield
    finally:
        for lock, count in lent:
            for _ in range(count):
                lock.acquire()


def _locks() -> list[Any]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    return [handler.lock for handler in handlers if handler.lock is not None]


def _release(lock: "threading.RLock") -> int:
    """Lets go of a lock; how often this thread had taken it."""
    count = 0
    while True:
        try:
            lock.release()
        except RuntimeError:  # not this thread's, or no longer
            return count
        count += 1

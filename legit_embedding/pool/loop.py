"""The thread on which the event loop runs, and the lifespan of what runs there."""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from celery import Celery
from celery.utils.imports import symbol_by_name
from celery.worker import state

from legit_embedding.pool.offload import offloading

logger = logging.getLogger(__name__)

Lifespan = Callable[[Celery], AbstractAsyncContextManager[Any]]

POLL_S = 0.2
"""How often the thread that waits for a start looks for a signal to stop."""

ABORT_TIMEOUT_S = 10.0
"""How long a lifespan whose start is called off may clean up."""


def lifespan_of(app: Celery) -> Lifespan | None:
    """What the app's setting `legit_async_lifespan` names: a callable, or `module:attribute` of one."""
    found = app.conf.get("legit_async_lifespan")
    return symbol_by_name(found) if isinstance(found, str) else found


class LoopThread:
    """One event loop on one thread. `start` and `stop` are called from the thread that owns it.

    `executor` runs the tracer's blocking calls. `on_death` is called, on the loop's thread, where the loop ends before
    `stop`.
    """

    def __init__(self, app: Celery, *, executor: Executor, on_death: Callable[[], None]) -> None:
        self.loop = asyncio.new_event_loop()
        self._app = app
        self._executor = executor
        self._on_death = on_death
        self._stopping = False
        self._entered = False
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._end: asyncio.Event | None = None
        self._life: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="legit-loop", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the loop still runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Returns when the lifespan has been entered.

        Raises:
            Exception: what entering it raised; the loop is closed then.
            WorkerShutdown, WorkerTerminate: a signal came first.
        """
        self._thread.start()
        while not self._ready.wait(POLL_S):
            if state.should_stop is not None or state.should_terminate is not None:
                self.stop(ABORT_TIMEOUT_S)
                state.maybe_shutdown()
        if self._failure is not None:
            self._thread.join(ABORT_TIMEOUT_S)
            state.maybe_shutdown()  # the failure may be what a signal's handler made of the start
            raise self._failure

    def call(self, function: Callable[..., Any], *args: Any) -> bool:
        """Runs `function` on the loop soon; False where the loop is gone."""
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # closed
            return False
        return True

    def stop(self, timeout_s: float) -> None:
        """Leaves the lifespan, then ends the loop; after `timeout_s` seconds it is left behind. Idempotent.

        A lifespan that is still being entered is cancelled.
        """
        self._stopping = True
        if not self.alive:
            return
        self.call(self._leave)
        self._thread.join(timeout_s)
        if self.alive:
            logger.error("the event loop did not end within %g s and is left behind", timeout_s)

    def _leave(self) -> None:
        if self._end is not None:
            self._end.set()
        if not self._entered and self._life is not None:
            self._life.cancel()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self._app.set_current()  # which app is current is a matter of each thread
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                try:
                    runner.run(self._live())
                except BaseException as error:  # noqa: BLE001  SystemExit of a body's child ends a loop, too
                    self._note(error)
                # Now, not after the runner has cancelled what is left: that takes as long as the bodies like.
                if self._entered and not self._stopping:
                    self._on_death()
                self._ready.set()
        except Exception:
            logger.exception("the event loop was not closed in good order")

    def _note(self, error: BaseException) -> None:
        if self._entered:
            if not isinstance(error, asyncio.CancelledError):
                logger.error("the event loop ended with an error", exc_info=error)
        elif isinstance(error, Exception):
            self._failure = error
        else:
            self._failure = RuntimeError(f"the start was stopped: {error!r}")
            self._failure.__cause__ = error

    async def _live(self) -> None:
        self._life = asyncio.current_task()
        self._end = asyncio.Event()
        lifespan = lifespan_of(self._app)
        with offloading(self._app, self._executor):
            async with lifespan(self._app) if lifespan is not None else nullcontext():
                self._entered = True
                self._ready.set()
                await self._end.wait()

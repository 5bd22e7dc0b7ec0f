"""Threads for blocking calls that never keep the process from ending, and the way to a thread and back."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from queue import Empty
from typing import Any, ParamSpec, TypeAlias, TypeVar

from legit_embedding.handover import Handover

P = ParamSpec("P")
T = TypeVar("T")

Work: TypeAlias = tuple[Future[Any], Callable[[], Any]]


class DaemonThreads(Executor):
    """As `ThreadPoolExecutor`, with two differences that a shutdown and a time limit need.

    The interpreter does not wait for its threads when it ends, and one that is stuck can be left behind: another takes
    its place. At most `size` threads serve, started as they are needed; each calls `initializer` first.
    """

    def __init__(self, size: int, name: str, initializer: Callable[[], object] = lambda: None) -> None:
        self._size = size
        self._name = name
        self._initializer = initializer
        self._queue: Handover[Work | None] = Handover()
        self._lock = threading.Lock()
        self._started = 0
        self._serving = 0
        self._unfinished: set[Future[Any]] = set()
        self._left_behind: set[Future[Any]] = set()
        self._closed = False

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Runs the call on the next free thread.

        Raises:
            RuntimeError: after `shutdown`, or where no thread can be started.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("these threads are shut down")
            self._serve_one_more(len(self._unfinished) + 1)
            self._unfinished.add(future)
            self._queue.put((future, partial(function, *args, **kwargs)))
        return future

    def offer(self, future: "Future[Any]", function: Callable[[], object]) -> bool:
        """As `submit`, with a future of the caller's; False, and nothing done, where a thread would have to be started.

        It takes no lock: for a caller whose signal handlers may wait for what it is about to hand over.
        """
        # Counted first: `leave_behind`, on another thread, then either sees it and starts a thread for it, or has taken
        # its thread away already, and the offer is refused.
        self._unfinished.add(future)
        if self._closed or self._serving < min(len(self._unfinished), self._size):
            self._unfinished.discard(future)
            return False
        self._put((future, function))
        return True

    def leave_behind(self, future: Future[Any]) -> None:
        """Its call will not end, as far as anyone knows: its thread no longer counts."""
        with self._lock:
            if not future.running() or future in self._left_behind:
                return
            self._left_behind.add(future)
            self._serving -= 1
            self._unfinished.discard(future)
            if not self._closed:  # at once: what is queued already would wait for the next `submit`
                self._serve_one_more(len(self._unfinished))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002  never waits
        """What is queued is cancelled, idle threads end, busy ones when they are done. Takes no lock, and no time."""
        self._closed = True
        while True:
            try:
                work = self._queue.get_nowait()
            except Empty:
                break
            if work is not None:
                work[0].cancel()
        for _ in range(self._size):  # not as many as there are: one may be starting
            self._queue.put(None)

    async def close(self, timeout_s: float) -> bool:
        """Shuts down and gives the calls that run at most `timeout_s` seconds; whether they ended within them.

        For calls into native code: the end of the interpreter under their feet may crash the process.
        """
        self.shutdown()
        running = [asyncio.wrap_future(future) for future in tuple(self._unfinished) if not future.done()]
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*running, return_exceptions=True)
                return True
        return False

    def _serve_one_more(self, calls: int) -> None:
        """Starts a thread, if there are fewer than `calls` and fewer than allowed."""
        if self._serving >= min(calls, self._size):
            return
        threading.Thread(target=self._serve, name=f"{self._name}-{self._started + 1}", daemon=True).start()
        self._started += 1
        self._serving += 1

    def _serve(self) -> None:
        self._initializer()
        while True:
            work = self._take()
            if work is None or not self._call(*work):
                return
            del work  # an idle thread must not keep the last call's arguments alive

    def _put(self, work: Work) -> None:
        """Hands over what was offered."""
        self._queue.put(work)

    def _take(self) -> Work | None:
        """The next call for the thread that asks; None: it ends."""
        return self._queue.get()

    def _call(self, future: "Future[Any]", function: Callable[[], Any]) -> bool:
        """Whether this thread goes on."""
        if future.set_running_or_notify_cancel():
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001  whoever waits for the future gets it
                future.set_exception(error)
            else:
                future.set_result(result)
        with self._lock:
            if future in self._left_behind:
                self._left_behind.discard(future)
                return False
            self._unfinished.discard(future)
            return True

    def __repr__(self) -> str:
        threads, calls = f"{self._serving} of {self._size} threads", f"{len(self._unfinished)} calls"
        return f"<DaemonThreads {threads}, {calls}, {len(self._left_behind)} left behind>"


async def run_on(executor: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns or raises; for work that is not ours: an adapter, a plugin.

    Raises:
        RuntimeError: `work` let a `StopIteration` or a `CancelledError` out. asyncio cannot pass the first one on (the
            future would never be done), and takes the second for a cancellation of whoever waits.
    """

    def contained() -> T:
        try:
            return work(*args, **kwargs)
        except (StopIteration, asyncio.CancelledError) as error:
            raise RuntimeError(f"{type(error).__name__} left {getattr(work, '__qualname__', work)}") from error

    return await asyncio.get_running_loop().run_in_executor(executor, contained)

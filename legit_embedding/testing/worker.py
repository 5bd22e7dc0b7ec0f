"""A real worker in a process of its own, started as a user starts it."""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from legit_embedding.errors import LegitError
from legit_embedding.testing.processes import GuardedProcess, uninterrupted

READY = " ready."
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
LOOK_S = 0.02
SITE_VARIABLES = ("LEGIT_", "CELERY_", "SENTRY_")


class WorkerStartError(LegitError):
    """The worker did not become ready; the message holds the end of its log."""


class WorkerProcess:
    """`celery -A <app> worker <args>`; a context manager that waits until it is ready and stops it in good order.

    The worker sees this process's environment without what configures Celery and us, and `env` over it. `cwd` is the
    folder it starts in, None: this process's own. The log level must be INFO or below: readiness is read from the log.
    """

    def __init__(
        self,
        app: str,
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        # The command that users type: one started by `python -m` could not start itself anew, as SIGHUP asks.
        celery = str(Path(sys.executable).with_name("celery"))
        self._command = [celery, "-A", app, "worker", *args]
        self._env = {**environment_without_site_settings(), **(env or {})}
        self._cwd = cwd or Path.cwd()
        self._ready_timeout_s = ready_timeout_s
        self._folder: Path | None = None
        self._process: GuardedProcess | None = None
        self._last_log = ""

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            WorkerStartError: it was never started.
        """
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.running

    @property
    def log(self) -> str:
        """What it has written so far, standard error included; still there after its end."""
        if self._process is not None:
            self._last_log = self._process.log or self._last_log
        return self._last_log

    def start(self) -> Self:
        """Returns when the worker says that it is ready.

        Raises:
            WorkerStartError: it ended first, or took too long.
        """
        self.launch()
        try:
            self.wait_for_log(READY, self._ready_timeout_s)
        except TimeoutError as error:
            tail = self.log[-4000:]
            self.kill()
            raise WorkerStartError(f"the worker did not become ready ({error}); the end of its log:\n{tail}") from error
        return self

    def launch(self) -> None:
        """Starts the process and does not wait."""
        with uninterrupted():
            self._folder = Path(tempfile.mkdtemp(prefix="legit-worker-"))
            self._process = GuardedProcess(
                self._command, folder=self._folder, log_name="worker.log", env=self._env, cwd=self._cwd
            )

    def wait_for_log(self, text: str, timeout_s: float, *, count: int = 1) -> None:
        """Returns once `text` stands in the log `count` times.

        Raises:
            TimeoutError: it did not within `timeout_s` seconds, or the process ended without it.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            ended = not self.running
            if self.log.count(text) >= count:
                return
            if ended:
                raise TimeoutError(f"the worker ended with code {self.wait(0)} and {text!r} is not in its log")
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{text!r} is not in the worker's log after {timeout_s:g} s")
            self.wait(LOOK_S)

    def signal(self, number: int) -> None:
        """Sends a signal: SIGTERM is a warm shutdown, SIGQUIT a cold one."""
        self._started().signal(number)

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code, negative for a signal; None where it still runs after that many seconds."""
        return self._started().wait(timeout_s)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """A warm shutdown: running tasks finish; the exit code. Does nothing more where it has ended already.

        Raises:
            TimeoutError: it did not end in time; it is killed then.
        """
        process = self._started()
        process.signal(signal.SIGTERM)
        code = process.wait(timeout_s)
        self.kill()
        if code is None:
            raise TimeoutError(f"the worker did not end within {timeout_s:g} s of SIGTERM:\n{self._last_log[-4000:]}")
        return code

    def kill(self) -> None:
        """SIGKILL: the worker has no chance to finish anything. Its log stays; its folder goes."""
        if self._process is None or self._folder is None:
            return
        self._process.kill()
        self._last_log = self.log
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:  # Ctrl-C, too: nobody calls __exit__ then
            self.kill()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self.running:
            self.stop()
        else:
            self.kill()

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.pid if self.running else 'not running'}>"

    def _started(self) -> GuardedProcess:
        if self._process is None:
            raise WorkerStartError("the worker was never started")
        return self._process


def environment_without_site_settings() -> dict[str, str]:
    """This process's environment without the variables that configure Celery, Sentry and us."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SITE_VARIABLES)}

"""Child processes that never outlive this one."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

# Ends the child when this process is gone, however it went: its end of the pipe closes with it. PR_SET_PDEATHSIG would
# fire already when the thread that started the child ends.
GUARD = 'cat >/dev/null; kill -s KILL -- "-$1" 2>/dev/null; rm -rf "$2"'


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds back Ctrl-C and a kill's exception until the block is left: what it starts is known to whoever stops it.

    Python runs signal handlers in the main thread only, so another thread has nothing to hold back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)

    # Blocked signals would stay blocked in the children; a handler of Python's does not reach them.
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    ours = {each: handler for each, handler in handlers.items() if callable(handler)}
    for each in ours:
        signal.signal(each, note)
    try:
        yield
    finally:
        for each, handler in ours.items():
            signal.signal(each, handler)
        for number in came:
            signal.raise_signal(number)


class GuardedProcess:
    """A child with its output in `folder`/`log_name`; a guard kills it, and removes `folder`, should this process die.

    What the child starts itself, and leaves in its process group, is killed with it.

    The child has a session of its own: Ctrl-C in a terminal goes to the whole group, and whoever started the child
    decides in which order things end.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        log_name: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.log_path = folder / log_name
        self._killed = False
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=None if env is None else dict(env),
                cwd=cwd or folder,
                start_new_session=True,
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "legit-guard", str(self._process.pid), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it is alive; a paused one is."""
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has written so far."""
        try:
            return self.log_path.read_text(errors="replace")
        except OSError:
            return ""

    def signal(self, number: int) -> None:
        """Sends a signal; does nothing where the child has ended."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code, negative for a signal; None where it still runs after that many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def kill(self) -> None:
        """SIGKILL, to its children too, and the guard goes; a second call does nothing."""
        if not self._killed:
            self._killed = True  # the number of a group that has ended may be given to another one
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._guard.kill()
        self._guard.communicate()

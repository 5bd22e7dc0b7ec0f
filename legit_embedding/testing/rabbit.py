"""A real RabbitMQ of one's own, for tests and benchmarks: Debian's, as a process of ours, without root."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from kombu import Connection

from legit_embedding.testing.processes import GuardedProcess, uninterrupted
from legit_embedding.testing.server import HOST, ServerStartError, free_port

BINARIES = Path("/usr/lib/rabbitmq/bin")
START_TIMEOUT_S = 60.0


class RabbitServer:
    """A node on the loopback interface that ends with this process; a context manager.

    Queues and messages that are durable, as Celery makes them, survive `restart`, and not `stop`.
    """

    def __init__(self) -> None:
        self._port = free_port()
        self._folder: Path | None = None
        self._env: dict[str, str] = {}
        self._epmd: GuardedProcess | None = None
        self._process: GuardedProcess | None = None

    @classmethod
    def missing(cls) -> str | None:
        """Why there is none here; None where there is one."""
        if (BINARIES / "rabbitmq-server").exists():
            return None
        return "no RabbitMQ: install Debian's rabbitmq-server"

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        return self._port

    @property
    def url(self) -> str:
        """`amqp://guest:guest@127.0.0.1:port//`."""
        return amqp_url(self._port)

    def start(self) -> Self:
        """Returns when the node takes connections; does nothing where it runs already.

        Raises:
            ServerStartError: it ended, or took no connection within 60 s.
        """
        if self._process is not None:
            return self
        with uninterrupted():
            self._folder = Path(tempfile.mkdtemp(prefix="legit-rabbit-"))
            self._env = self._environment(self._folder)
            (self._folder / "plugins").write_text("[].\n", encoding="ascii")
            # Else the node starts one that outlives it.
            self._epmd = GuardedProcess(["epmd"], folder=self._folder, log_name="epmd.log", env=self._env)
        try:
            self._launch(self._folder)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Kills the node and removes what it has kept; a second call does nothing."""
        for process in (self._process, self._epmd):
            if process is not None:
                process.kill()
        self._process = self._epmd = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def restart(self) -> None:
        """A stop in good order, and a start.

        Raises:
            ServerStartError: it did not stop within 60 s, or did not start.
        """
        if self._process is None or self._folder is None:
            raise ServerStartError("RabbitMQ does not run")
        self._process.signal(signal.SIGTERM)
        if self._process.wait(START_TIMEOUT_S) is None:
            raise ServerStartError(f"RabbitMQ did not stop:\n{self._process.log[-4000:]}")
        self._process.kill()
        self._launch(self._folder)

    def counts(self, queue: str) -> tuple[int, int]:
        """How many messages wait for a worker, and how many workers hold; takes about a second of CPU time."""
        # Not over AMQP, which does not tell what is unacknowledged.
        done = subprocess.run(
            [str(BINARIES / "rabbitmqctl"), "-q", "list_queues", "name", "messages_ready", "messages_unacknowledged"],
            env=self._env,
            capture_output=True,
            text=True,
            check=True,
        )
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        return next(((int(ready), int(held)) for name, ready, held in rows if name == queue), (0, 0))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self._process is not None and self._process.running else "not running"
        return f"<RabbitServer on port {self._port}, {state}>"

    def _environment(self, folder: Path) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),  # the nodes' shared secret is kept there
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": f"legit-{self._port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            # Two threads are enough, and a test machine has no more.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 -kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _launch(self, folder: Path) -> None:
        with uninterrupted():
            self._process = process = GuardedProcess(
                [str(BINARIES / "rabbitmq-server")], folder=folder, log_name="rabbit.log", env=self._env
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if time.monotonic() > deadline_s or not process.running:
                raise ServerStartError(f"RabbitMQ did not start:\n{process.log[-4000:]}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with Connection(self.url, connect_timeout=2) as connection:
                connection.connect()
        except OSError:
            return False
        return True


def amqp_url(port: int) -> str:
    """The URL of a node, or of a proxy before one."""
    return f"amqp://guest:guest@{HOST}:{port}//"

"""The brokers that the suite runs on: a Valkey of its own, and a RabbitMQ where one is at hand."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import redis
from kombu import Connection

from legit_embedding.testing.processes import GuardedProcess
from legit_embedding.testing.server import EmbeddedServer, free_port

RABBIT = Path("/usr/lib/rabbitmq/bin")
URL_VARIABLE = "LEGIT_TEST_AMQP_URL"
START_TIMEOUT_S = 60


class ValkeyBroker:
    """What a queue holds is read from kombu's own keys."""

    name = "valkey"
    transport = "kombu"
    redis = True

    def __init__(self):
        self._server = EmbeddedServer()

    @property
    def url(self):
        return self._server.url()

    def start(self):
        self._server.start()

    def stop(self):
        self._server.stop()

    def restart(self):
        """A death, and a start: everything that it held is gone."""
        self._server.restart()

    def counts(self, queue):
        """How many messages wait for a worker, and how many workers hold."""
        with self._client() as client:
            ready, values = client.llen(queue), client.hvals("unacked")
        held = [json.loads(value) for value in values]
        return ready, sum(routing_key == queue for _message, _exchange, routing_key in held)

    def _client(self):
        return redis.Redis.from_url(self.url)


class PipelinedBroker(ValkeyBroker):
    """The same server, by way of our own transport."""

    name = "pipelined"
    transport = "legit"


class RabbitBroker:
    """Debian's server as a process of ours, or the one that LEGIT_TEST_AMQP_URL names."""

    name = "rabbitmq"
    transport = "kombu"
    redis = False

    def __init__(self):
        self._given = os.environ.get(URL_VARIABLE)
        self._port = free_port()
        self._epmd = self._process = self._folder = None

    @classmethod
    def missing(cls):
        """Why there is none here; None where there is one."""
        if os.environ.get(URL_VARIABLE) or (RABBIT / "rabbitmq-server").exists():
            return None
        return f"no RabbitMQ: install Debian's rabbitmq-server, or name one in {URL_VARIABLE}"

    @property
    def url(self):
        return self._given or f"amqp://guest:guest@127.0.0.1:{self._port}//"

    def start(self):
        if self._given:
            return
        self._folder = Path(tempfile.mkdtemp(prefix="legit-rabbit-"))
        epmd_port = free_port()
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),  # the nodes' shared secret is kept there
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"legit-{self._port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._folder),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self._folder / "none"),
            # Two threads are enough, and a test machine has no more.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 -kernel inet_dist_use_interface {127,0,0,1}",
        }
        (self._folder / "plugins").write_text("[].\n", encoding="ascii")
        # Else the node starts one that outlives it.
        self._epmd = GuardedProcess(["epmd"], folder=self._folder, log_name="epmd.log", env=self._env)
        self._launch()

    def _launch(self):
        self._process = GuardedProcess(
            [str(RABBIT / "rabbitmq-server")], folder=self._folder, log_name="rabbit.log", env=self._env
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if time.monotonic() > deadline_s or not self._process.running:
                raise RuntimeError(f"RabbitMQ did not start:\n{self._process.log[-4000:]}")
            time.sleep(0.1)

    def _answers(self):
        try:
            with Connection(self.url, connect_timeout=2) as connection:
                connection.connect()
        except OSError:
            return False
        return True

    def stop(self):
        if self._process is not None:
            self._process.kill()
            self._epmd.kill()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._process = None

    def restart(self):
        """A stop in good order, and a start: it keeps queues and messages, which are durable as Celery makes them."""
        self._process.signal(signal.SIGTERM)
        if self._process.wait(START_TIMEOUT_S) is None:
            raise RuntimeError(f"RabbitMQ did not stop:\n{self._process.log[-4000:]}")
        self._process.kill()
        self._launch()

    def counts(self, queue):
        """How many messages wait for a worker, and how many workers hold."""
        # Not over AMQP, which does not tell what is unacknowledged.
        if self._given:
            pytest.skip(f"the broker that {URL_VARIABLE} names does not tell us what is unacknowledged")
        done = subprocess.run(
            [str(RABBIT / "rabbitmqctl"), "-q", "list_queues", "name", "messages_ready", "messages_unacknowledged"],
            env=self._env,
            capture_output=True,
            text=True,
            check=True,
        )
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        return next(((int(ready), int(held)) for name, ready, held in rows if name == queue), (0, 0))


BROKERS = {broker.name: broker for broker in (ValkeyBroker, PipelinedBroker, RabbitBroker)}

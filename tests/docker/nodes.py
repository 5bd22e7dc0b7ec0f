"""pytest-celery's setup and nodes, made for our image: a producer, a worker, and brokers that tell what they hold."""

import base64
import io
from contextlib import contextmanager
from datetime import datetime

from PIL import Image
from pytest_celery import (
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerContainer,
    RabbitMQTestBroker,
    RedisContainer,
    RedisTestBroker,
)
from pytest_docker_tools.wrappers.container import wait_for_callable

from legit_embedding.contract import Names, parse_entry
from legit_embedding.publish.reader import StreamReader

STREAM = "docker-test:vectors"
IMAGE_TASK = ("tasks.preparation.prepare_images", "image_preparation")
TEXT_TASK = ("tasks.text_embedding.embed_texts", "text_embedding")

# Two models are loaded first, perhaps on a busy machine.
READY_TIMEOUT_S = 120

# Answers of a model that computes on a CPU which others use too.
READ_TIMEOUT_S = 300
REPLY_TIMEOUT_S = 60
STOP_TIMEOUT_S = 120


class EmbeddingSetup(CeleryTestSetup):
    """The producer's and the reader's side: pytest-celery's app has a broker and nothing of ours."""

    @classmethod
    def config(cls, celery_worker_cluster_config):
        """Without the backend node: that is the streams' server and no result backend of Celery's."""
        config = super().config(celery_worker_cluster_config)
        config.pop("result_backend", None)
        return config

    @contextmanager
    def connection(self):
        """To the broker where it is now: a restart publishes another port."""
        with self.app.connection_for_write(self.broker.config()["host_url"]) as connection:
            yield connection

    def send(self, task, items):
        """Sends as any producer does; the task's id."""
        with self.connection() as connection:
            return self._send(task, items, connection)

    def send_pictures(self, count):
        """So many tasks of one image each, at once; their ids."""
        with self.connection() as connection:
            return {self._send(IMAGE_TASK, [item], connection) for item in pictures(count)}

    def _send(self, task, items, connection):
        name, queue = task
        envelope = {"items": items, "reply_to": STREAM}
        return self.app.send_task(name, args=[envelope], queue=queue, connection=connection).id

    def answering(self, *, timeout_s=REPLY_TIMEOUT_S):
        """The names of the workers that answer a ping; returns at once when all have."""
        with self.connection() as connection:
            names = [worker.hostname() for worker in self.worker_cluster]
            replies = self.app.control.ping(names, timeout=timeout_s, connection=connection)
        assert all(reply == {"ok": "pong"} for answer in replies for reply in answer.values())
        return {name for answer in replies for name in answer}

    def revoke(self, task_id, **options):
        """Returns once the worker has confirmed it."""
        with self.connection() as connection:
            (answer,) = self.app.control.revoke(
                task_id,
                destination=[self.worker.hostname()],
                reply=True,
                timeout=REPLY_TIMEOUT_S,
                connection=connection,
                **options,
            )
        (reply,) = answer.values()
        assert "ok" in reply

    def results_url(self):
        """Where the streams are: on the backend node, or on the broker."""
        return (self.backend or self.broker).config()["host_url"]

    def entries(self, *, until):
        """The stream's entries from its first on, as soon as `until` holds of them."""
        names = Names.load(None)
        found = []
        with StreamReader(self.results_url()) as reader:
            for _, _, fields in reader.read([STREAM], timeout_s=READ_TIMEOUT_S):
                found.append(parse_entry(fields, names=names))
                if until(found):
                    return found
        raise AssertionError(f"{len(found)} entries in {READ_TIMEOUT_S} s, and not those that are waited for")

    def first_entry(self):
        """The stream's first entry, once there is one: a task has begun."""
        return self.entries(until=lambda found: True)[0]

    def entries_of(self, task_ids):
        """The stream's entries up to the one with which each of the tasks has one."""
        return self.entries(until=lambda found: set(task_ids) <= {entry.task_id for entry in found})

    def all_entries(self):
        """What is on the stream now."""
        client = (self.backend or self.broker).container.client
        try:
            written = client.xlen(STREAM)
        finally:
            client.close()
        return self.entries(until=lambda found: len(found) == written) if written else []

    def wait_until_drained(self, *queues):
        """Returns once the broker holds no message of these queues, neither ready nor with a worker."""
        wait_for_callable(
            f"Waiting until nothing is left on {', '.join(queues)}",
            lambda: all(self.broker.messages(queue) == (0, 0) for queue in queues),
            timeout=READ_TIMEOUT_S,
        )


class EmbeddingWorkerContainer(CeleryWorkerContainer):
    """The image as a user runs it: its own command, and settings from the environment."""

    @classmethod
    def command(cls, *args, **kwargs):
        return None

    @classmethod
    def worker_name(cls):
        return "legit-embedding"

    @classmethod
    def worker_queue(cls):
        return TEXT_TASK[1]

    @classmethod
    def initial_env(cls, celery_worker_cluster_config, initial=None):
        broker = celery_worker_cluster_config["celery_broker_cluster_config"]
        backend = celery_worker_cluster_config["celery_backend_cluster_config"]
        results = {"LEGIT_RESULTS_URL": ";".join(backend["urls"])} if backend else {}
        return {
            "CELERY_BROKER_URL": ";".join(broker["urls"]),
            "LEGIT_MODELS": "/models/models.toml",
            "LEGIT_PRELOAD": "defaults",
            **results,
            **celery_worker_cluster_config["settings"],
            **(initial or {}),
        }

    def logs(self):
        """Of the life that runs, or ran last: the `ready.` of an earlier one says nothing."""
        started = datetime.fromisoformat(self.attrs["State"]["StartedAt"])
        return self._container.logs(since=started.timestamp()).decode()

    def _wait_ready(self, timeout=READY_TIMEOUT_S):
        return super()._wait_ready(timeout)


class EmbeddingWorker(CeleryTestWorker):
    """A worker that can be waited for."""

    def wait_for_exit(self):
        """The exit code of its last life."""
        wait_for_callable(f"Waiting for {self.name()} to end", self._exited, timeout=STOP_TIMEOUT_S)
        return self.container.attrs["State"]["ExitCode"]

    def started_at(self):
        """When the life that runs began."""
        self.container.reload()
        assert self.container.status == "running"
        return self.container.attrs["State"]["StartedAt"]

    def run(self, *command):
        """The exit code and the output of `command` in the running container."""
        code, output = self.container.exec_run(list(command))
        return code, output.decode()

    def _exited(self):
        self.container.reload()
        return self.container.status == "exited"


class ValkeyContainer(RedisContainer):
    """A server that keeps its data over a restart, as docs/docker.md has it."""

    @classmethod
    def command(cls, *args, **kwargs):
        return super().command("--appendonly", "yes", "--dir", "/tmp", *args, **kwargs)


class ValkeyBroker(RedisTestBroker):
    def messages(self, queue):
        """How many messages are ready on `queue`, and how many of any queue a worker holds."""
        client = self.container.client
        try:
            return client.llen(queue), client.hlen("unacked")
        finally:
            client.close()


class RabbitBroker(RabbitMQTestBroker):
    def messages(self, queue):
        """How many messages are ready on `queue`, and how many of it a worker holds."""
        # Asked inside: AMQP does not tell.
        columns = ("name", "messages_ready", "messages_unacknowledged")
        code, output = self.container.exec_run(["/usr/lib/rabbitmq/bin/rabbitmqctl", "-q", "list_queues", *columns])
        assert code == 0, output
        rows = [line.split("\t") for line in output.decode().splitlines()]
        return next(((int(ready), int(held)) for name, ready, held in rows if name == queue), (0, 0))


def picture(shade):
    """A small JPEG, in base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (shade % 256, 90, 255 - shade % 256)).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def pictures(count):
    """The items of a task of `count` images."""
    return [{"data": picture(shade)} for shade in range(count)]

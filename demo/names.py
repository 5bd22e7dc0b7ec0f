"""Names that one run has to itself: its worker takes nobody's tasks, and what it leaves on a server can be removed."""

import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError

from legit_embedding.contract.names import EMBED_TEXTS, PREPARE_IMAGES, TASK_QUEUES
from legit_embedding.publish.errors import ResultServerError
from legit_embedding.publish.reader import StreamReader
from legit_embedding.telemetry.stats import KEY_PREFIX

WEEK_S = 7 * 24 * 3600
CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class DemoNames:
    """The queues, the streams and the worker of one run. The server may be a site's own."""

    prefix: str
    queues: Mapping[str, str]
    """The demo's own, by canonical name."""

    @classmethod
    def create(cls) -> Self:
        """Names that nobody else has."""
        prefix = f"demo:{uuid.uuid4().hex[:8]}"
        return cls(prefix, {canonical: f"{prefix}:{canonical}" for canonical in TASK_QUEUES.values()})

    @property
    def image_queue(self) -> str:
        """Where the producer sends images."""
        return self.queues[TASK_QUEUES[PREPARE_IMAGES]]

    @property
    def text_queue(self) -> str:
        """Where the producer sends texts."""
        return self.queues[TASK_QUEUES[EMBED_TEXTS]]

    @property
    def reply_to(self) -> str:
        """The stream that half of the tasks name."""
        return f"{self.prefix}:replies"

    @property
    def results(self) -> str:
        """The global stream."""
        return f"{self.prefix}:results"

    @property
    def dead(self) -> str:
        """The stream of the tasks given up."""
        return f"{self.prefix}:dead"

    @property
    def worker(self) -> str:
        """The worker's identity: no other worker on this host has it."""
        return self.prefix.replace(":", "-")

    def environment(self, folder: Path) -> dict[str, str]:
        """What makes a worker use these names; writes `contract.toml` into `folder`."""
        contract = folder / "contract.toml"
        renamed = [f"{canonical} = {json.dumps(deployed)}" for canonical, deployed in self.queues.items()]
        contract.write_text("\n".join(["[queues]", *renamed, ""]), encoding="utf-8")
        return {
            "LEGIT_CONTRACT": str(contract),
            "LEGIT_WORKER_ID": self.worker,
            "LEGIT_RESULTS_STREAM": self.results,
            "LEGIT_DEAD_LETTER_STREAM": self.dead,
            # What another's worker has held unacknowledged for that long would be handed out again by the demo's.
            "LEGIT_VISIBILITY_TIMEOUT_S": str(WEEK_S),
        }

    def remove(self, broker: str, results: str) -> None:
        """Deletes the queues with their bindings, and the streams; silent about a server that is gone."""
        with suppress(OperationalError), Connection(broker, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            connection.ensure_connection(max_retries=1)
            for name in self.queues.values():
                exchange = Exchange(name)(connection.default_channel)
                queue = Queue(name, Exchange(name), routing_key=name)(connection.default_channel)
                queue.declare()  # over Redis kombu deletes only bindings that it has made on this connection
                queue.delete()
                exchange.delete()
        with suppress(ResultServerError), StreamReader(results) as reader:
            reader.delete(self.reply_to, self.results, self.dead, f"{KEY_PREFIX}{self.worker}")

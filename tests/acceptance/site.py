"""The two sides of a worker, as a test plays them: a plain producer, and a reader of result streams."""

import urllib.request
import uuid

from celery import Celery

from legit_embedding.contract import Names, parse_entry
from legit_embedding.publish.reader import StreamReader

QUEUES = {
    "tasks.preparation.prepare_images": "image_preparation",
    "tasks.embedding.embed_images": "image_embedding",
    "tasks.text_embedding.embed_texts": "text_embedding",
}
IMAGES, PREPARED, TEXTS = QUEUES


class Site:
    """Sends tasks by name, as producers that know nothing of the worker do, and reads the entries that come."""

    def __init__(self, url, *, results_url=None, names=None, backend=None):
        self.app = Celery("site", broker=url, backend=backend, set_as_current=False)
        self._results_url = results_url or url
        self._names = names or Names()

    def send(self, task, envelope, **options):
        """Sends one task to its queue; its `AsyncResult`."""
        options.setdefault("queue", QUEUES.get(task))
        return self.app.send_task(task, args=[envelope], **options)

    def entries(self, stream, count, timeout_s=60):
        """The first `count` entries of a stream, parsed; fewer where they did not come in time."""
        with StreamReader(self._results_url) as reader:
            found = reader.read([stream], expected=count, timeout_s=timeout_s)
            return [parse_entry(fields, names=self._names) for _, _, fields in found]

    def embed(self, task, envelope, **options):
        """Sends a task with a stream of its own as `reply_to`; its entries in the order of their items."""
        stream = f"site:{uuid.uuid4().hex}"
        self.send(task, {"reply_to": stream, **envelope}, **options)
        count = len(envelope.get("items") or envelope.get("texts"))
        return sorted(self.entries(stream, count), key=lambda entry: entry.index)


def metrics(worker):
    """What a scraper of a worker with `LEGIT_METRICS_PORT=0` reads; the port stands in its log."""
    line = next(line for line in worker.log.splitlines() if "metrics on http://" in line)
    with urllib.request.urlopen(line.partition("metrics on ")[2].strip(), timeout=10) as answer:
        return answer.read().decode()

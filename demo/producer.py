"""A plain producer: it imports celery and nothing of ours, as the producers in the field do.

    python producer.py BROKER_URL IMAGE_FOLDER TEXT_FILE REPLY_TO IMAGE_QUEUE TEXT_QUEUE

Sends one task for every two images and one for every four texts; every other one names `reply_to`, the rest leave their
results to the global stream. Prints the ids of what it sent, one JSON line each.
"""

import base64
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from celery import Celery

T = TypeVar("T")


def in_groups(things: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Runs of `size`, the last one perhaps shorter."""
    for start in range(0, len(things), size):
        yield things[start : start + size]


def image_envelope(paths: Sequence[Path]) -> dict[str, Any]:
    """Images travel inside the message, as base64."""
    return {"items": [{"id": path.stem, "data": base64.b64encode(path.read_bytes()).decode()} for path in paths]}


def text_envelope(lines: Sequence[str]) -> dict[str, Any]:
    """A text is its own id here, so that the reader of the results sees what a vector stands for."""
    return {"items": [{"id": line, "text": line} for line in lines]}


def main(broker_url: str, image_folder: str, text_file: str, reply_to: str, image_queue: str, text_queue: str) -> None:
    """Sends everything."""
    app = Celery(broker=broker_url)
    texts = [line.strip() for line in Path(text_file).read_text(encoding="utf-8").splitlines() if line.strip()]
    images = sorted(Path(image_folder).iterdir())
    work = [("tasks.preparation.prepare_images", image_queue, image_envelope(group)) for group in in_groups(images, 2)]
    work += [("tasks.text_embedding.embed_texts", text_queue, text_envelope(group)) for group in in_groups(texts, 4)]
    for number, (task, queue, envelope) in enumerate(work):
        if number % 2 == 0:
            envelope["reply_to"] = reply_to
        sent = app.send_task(task, args=[envelope], queue=queue)
        print(
            json.dumps({"task_id": sent.id, "items": len(envelope["items"]), "reply_to": envelope.get("reply_to")}),
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A plain producer for the acceptance tests: celery and the standard library, nothing of ours.

    python producer.py BROKER_URL TASKS IMAGE_FILE...

Sends TASKS tasks: of every five, three of texts (one to four each) and two of images (one each); their results go in
turn to one of three streams of the producer's own and to the global stream. Prints one JSON line a task.
"""

import base64
import json
import sys
from pathlib import Path

from celery import Celery

WORDS = "river stone lamp winter copper garden violin market thunder paper harbour clover signal meadow engine".split()
STREAMS = ("acceptance:a", "acceptance:b", "acceptance:c", None)
IMAGES_PER_CYCLE, CYCLE = 2, 5


def sentence(number: int) -> str:
    """A text of three to seventeen words, another for each number."""
    words = [WORDS[(number * 7 + place * (1 + number % 5)) % len(WORDS)] for place in range(3 + number % 15)]
    return " ".join([*words, str(number)])


def main(broker_url: str, count: str, *files: str) -> None:
    """Sends everything."""
    app = Celery(broker=broker_url)
    pictures = [base64.b64encode(Path(file).read_bytes()).decode() for file in files]
    with app.producer_or_acquire() as producer:
        for number in range(int(count)):
            stream = STREAMS[number % len(STREAMS)]
            if number % CYCLE < IMAGES_PER_CYCLE:
                task, queue = "tasks.preparation.prepare_images", "image_preparation"
                items = [{"id": f"i{number}", "data": pictures[number % len(pictures)]}]
            else:
                task, queue = "tasks.text_embedding.embed_texts", "text_embedding"
                items = [{"id": f"t{number}-{k}", "text": sentence(4 * number + k)} for k in range(1 + number % 4)]
            envelope = {"items": items, "source": "acceptance"}
            if stream:
                envelope["reply_to"] = stream
            sent = app.send_task(task, args=[envelope], queue=queue, producer=producer)
            print(json.dumps({"task_id": sent.id, "items": len(items), "stream": stream}))


if __name__ == "__main__":
    main(*sys.argv[1:])

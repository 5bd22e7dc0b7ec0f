"""What the end-to-end benchmarks send: mixed tasks of plain producers, and the models that take them."""

import base64
import io
from pathlib import Path

import numpy as np
from celery import Celery
from PIL import Image

from legit_embedding.testing.checkpoints import minilm_folder, save_small_eva02

STREAM = "benchmark:results"
WORDS = "river stone lamp winter copper garden violin market thunder paper harbour clover".split()
CYCLE, IMAGES_A_CYCLE = 5, 2
"""Of every five tasks two are of one image each, three of one to four texts."""


def sentence(number: int) -> str:
    """Six to twenty-five words, others for each number."""
    return " ".join(WORDS[(number * 5 + place * (1 + number % 3)) % len(WORDS)] for place in range(6 + number % 20))


def pictures(count: int = 8) -> list[str]:
    """Noisy JPEGs of several sizes, as base64."""
    random = np.random.default_rng(7)
    encoded = []
    for number in range(count):
        buffer = io.BytesIO()
        pixels = random.integers(0, 255, (96 + 40 * number, 320 - 20 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        encoded.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
    return encoded


def queue_mixed_tasks(url: str, tasks: int) -> int:
    """Sends the tasks to the broker at `url`; how many items they hold."""
    images = pictures()
    items_sent = 0
    app = Celery(broker=url)
    with app.producer_or_acquire() as producer:
        for number in range(tasks):
            if number % CYCLE < IMAGES_A_CYCLE:
                task, queue = "tasks.preparation.prepare_images", "image_preparation"
                items = [{"data": images[number % len(images)]}]
            else:
                task, queue = "tasks.text_embedding.embed_texts", "text_embedding"
                items = [{"text": sentence(4 * number + k)} for k in range(1 + number % 4)]
            app.send_task(task, args=[{"items": items, "reply_to": STREAM}], queue=queue, producer=producer)
            items_sent += len(items)
    return items_sent


def write_models(folder: Path) -> Path:
    """A models.toml with a small seeded EVA02 and the real MiniLM."""
    image = save_small_eva02(folder / "eva02")
    path = folder / "models.toml"
    path.write_text(
        f'[defaults]\nimage = "clip"\ntext = "minilm"\n'
        f'[models.clip]\nadapter = "open_clip"\nweights = "{image}"\n'
        f'[models.minilm]\nadapter = "transformers"\nweights = "{minilm_folder()}"\n',
        encoding="utf-8",
    )
    return path

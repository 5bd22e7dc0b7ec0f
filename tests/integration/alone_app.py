"""The two lines of docs/pool.md where what the rest of this package needs is not installed; run as a program."""

import asyncio
import sys

OTHERS = """
aiohttp huggingface_hub numpy open_clip PIL prometheus_client pydantic pydantic_settings rich safetensors sentry_sdk
tokenizers torch transformers typer
""".split()


class Absent:
    """They cannot be imported."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OTHERS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())

from celery import Celery  # noqa: E402
from celery.contrib.testing.worker import start_worker  # noqa: E402

import legit_embedding.pool  # noqa: E402, F401  makes `-P legit_async` known

app = Celery("mine", task_cls="legit_embedding.pool.task:AsyncTask", broker="memory://", backend="cache+memory://")


@app.task
async def fetch(number):
    await asyncio.sleep(0)
    return number


@app.task
def resize(number):
    return number


if __name__ == "__main__":
    with start_worker(app, pool="legit_async", perform_ping_check=False, shutdown_timeout=30):
        results = [task.delay(number) for number, task in enumerate((fetch, resize))]
        print([result.get(timeout=30) for result in results])

"""`two_lines_app.py` where what the rest of this package needs cannot be imported; run as a program."""

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

from celery.contrib.testing.worker import start_worker  # noqa: E402
from celery.utils.nodenames import gethostname  # noqa: E402
from two_lines_app import app, plain_rest, rest  # noqa: E402

if __name__ == "__main__":
    with start_worker(app, pool="legit_async", perform_ping_check=False, shutdown_timeout=30):
        results = [task.delay(0) for task in (rest, plain_rest)]
        # The node, which `start_worker` leaves without a name of its own.
        print([result.get(timeout=30) == gethostname() for result in results])

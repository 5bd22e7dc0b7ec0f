"""Runs the demo: see `make demo`. Exits 0 only if every result came and none of them is an error."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from demo import models, pictures, results
from demo.names import DemoNames
from legit_embedding.config import hide_password
from legit_embedding.contract import Names, parse_entry
from legit_embedding.publish.reader import StreamReader
from legit_embedding.publish.urls import results_url
from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess

HERE = Path(__file__).parent
TIMEOUT_S = 300.0
APART = ("--without-mingle", "--without-gossip", "--", "worker.enable_remote_control=no")


@dataclass(frozen=True, slots=True)
class Sent:
    """A task that the producer sent, and when."""

    items: int
    at_s: float


def main() -> int:
    """The whole demo; the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a kill, too, stops what was started
    console = Console()
    try:
        with ExitStack() as stack:
            return run(console, stack)
    except KeyboardInterrupt:
        console.print("\n[yellow]interrupted; everything that was started has been stopped[/]")
        return 130


def run(console: Console, stack: ExitStack) -> int:
    """Starts everything on `stack`, sends the work, and shows what came."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="legit-demo-")))
    url = os.environ.get("LEGIT_BROKER_URL") or stack.enter_context(EmbeddedServer()).url()
    console.print(f"server    {hide_password(url)}", highlight=False)

    demo_models = models.write(folder)
    if not demo_models.image_trained:
        console.print(
            Panel(
                f"The model hub cannot be reached, so the image model ({models.IMAGE_NAME}) is [bold]UNTRAINED[/]: its "
                "weights are seeded random numbers and [bold]its vectors mean nothing[/].\n"
                "The text model is real, and so are its vectors.",
                title="image model without weights",
                border_style="bold red",
            )
        )

    names = DemoNames.create()
    results_at = results_url(os.environ.get("LEGIT_RESULTS_URL"), url)
    stack.callback(names.remove, url, results_at)
    env = {"LEGIT_BROKER_URL": url, "LEGIT_RESULTS_URL": results_at, "LEGIT_MODELS": str(demo_models.path)}
    worker = start_worker(console, stack, {**env, **names.environment(folder)})

    images = pictures.save_all(folder / "images")
    sent = produce(url, folder / "images", names)
    expected = sum(task.items for task in sent.values())
    console.print(
        f"producer  {len(sent)} tasks, {expected} items ({images} of them images), "
        f"half of the tasks with reply_to={names.reply_to}",
        highlight=False,
    )
    with StreamReader(results_at) as reader:
        arrivals = collect(console, reader, (names.reply_to, names.results), sent)
    results.show(console, arrivals)
    return verdict(console, arrivals, expected, worker)


def start_worker(console: Console, stack: ExitStack, env: Mapping[str, str]) -> WorkerProcess:
    """A worker that is ready, and that is stopped with `stack`."""
    worker = WorkerProcess(
        "legit_embedding",
        # The rest keeps it apart from a site's workers: remote control would leave a key on the server.
        args=["-P", "legit_async", "-l", "INFO", *APART],
        env={**env, "LEGIT_PRELOAD": "defaults"},
        ready_timeout_s=TIMEOUT_S,
    )
    stack.callback(worker.kill)  # while it still starts, too
    with console.status("celery -A legit_embedding worker -P legit_async: loading both models …"):
        started_s = time.monotonic()
        worker.start()
    # In good order after an interruption too: a killed worker would leave unacknowledged messages on the server.
    stack.callback(worker.stop)
    console.print(f"worker    ready after {time.monotonic() - started_s:.1f} s", highlight=False)
    return worker


def produce(url: str, images: Path, names: DemoNames) -> dict[str, Sent]:
    """Runs the plain producer; what it sent, by task id."""
    command = [sys.executable, str(HERE / "producer.py"), url, str(images), str(HERE / "texts.txt")]
    command += [names.reply_to, names.image_queue, names.text_queue]
    sent = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            task: Mapping[str, Any] = json.loads(line)
            sent[task["task_id"]] = Sent(task["items"], time.time())
    if process.returncode != 0:
        raise SystemExit(f"the producer failed with exit code {process.returncode}")
    return sent


def collect(
    console: Console, reader: StreamReader, streams: tuple[str, str], sent: Mapping[str, Sent]
) -> list[results.Arrival]:
    """Reads both streams until every item has its result, or the time is up."""
    expected = sum(task.items for task in sent.values())
    names = Names.load(None)
    arrivals: dict[tuple[str, int], results.Arrival] = {}
    columns = (SpinnerColumn(), TextColumn("results"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("results", total=expected)
        for stream, _, fields in reader.read(dict.fromkeys(streams, "0"), timeout_s=TIMEOUT_S):
            entry = parse_entry(fields, names=names)
            if entry.task_id in sent:
                milliseconds = max(0.0, (entry.at_ms or 0) - sent[entry.task_id].at_s * 1000)
                arrivals.setdefault((entry.task_id, entry.index), results.Arrival(stream, entry, milliseconds))
            progress.update(bar, completed=len(arrivals))
            if len(arrivals) == expected:
                break
    return list(arrivals.values())


def verdict(console: Console, arrivals: list[results.Arrival], expected: int, worker: WorkerProcess) -> int:
    """The last line, and the exit code."""
    failed = [arrival for arrival in arrivals if arrival.entry.status != "ok"]
    missing = expected - len(arrivals)
    if not missing and not failed:
        console.print(f"[bold green]{expected} of {expected} results, all from one worker process.[/]")
        return 0
    console.print(f"[bold red]{missing} results are missing, {len(failed)} are errors.[/] The end of the worker's log:")
    console.print(worker.log[-4000:], highlight=False, markup=False)
    return 1


if __name__ == "__main__":
    sys.exit(main())

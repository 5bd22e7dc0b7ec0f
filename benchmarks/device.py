"""How busy the device is kept: images a second from the tower alone up to the whole worker.

    python -m benchmarks.device [--model EVA02-B-16] [--items 4096] [--rounds 3] [--device auto] [--dtype auto]
        [--batches 32,128] [--in-flight 1024] [--without-worker] [--profile]

The tower alone, on a batch that lies on the device already, is the bound that everything else is a share of. Above it
are `forward` on prepared images, one call after the other; the batcher with one and with two batches given to the
device at once; and the whole worker, on tasks of 16 prepared tensors in shared memory, by the ids of its entries. The
weights are random: speed does not depend on them. `--model small` takes the small EVA02 of the tests, for machines
without an accelerator. The stages take turns, because machines are noisy; the table shows medians. `--profile` shows
how long each step of one batch takes, with the device waited for after each.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from celery import Celery
from rich.console import Console
from rich.table import Table

from legit_embedding.batching import Batcher, Ticket
from legit_embedding.clock import SystemClock
from legit_embedding.models import clip_tower
from legit_embedding.models.base import InputLimits
from legit_embedding.models.catalog import Catalog
from legit_embedding.models.clip import OpenClipAdapter, OpenClipModel
from legit_embedding.models.tensors import staging, to_device, to_host
from legit_embedding.publish.reader import StreamReader
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.checkpoints import save_small_eva02
from legit_embedding.testing.reports import NullReporter
from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess
from legit_embedding.values import Options, Prepared

SMALL = "small"
OPTIONS = Options()
TASK, QUEUE, STREAM = "tasks.embedding.embed_images", "image_embedding", "benchmark:results"
TASK_ITEMS = 16
DISTINCT_IMAGES = 1024
"""More than a CPU's caches hold: on their way to the device, images come from memory, as they do in a worker."""

DISTINCT_FILES = 128
"""Every item has a file of its own, as a link to one of these: a container may have little shared memory."""

WARM_UP_BATCHES = 3
PROFILED_BATCHES = 30
SHARED_MEMORY = Path("/dev/shm")
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Load:
    """The model, what goes through it, and how much of it."""

    model: OpenClipModel
    tower: torch.nn.Module
    images: Sequence[Prepared]
    items: int
    in_flight: int
    batch: int

    def batches(self, size: int) -> list[list[Prepared]]:
        """The items in whole batches of `size`, at least one."""
        endless = itertools.cycle(self.images)
        return [list(itertools.islice(endless, size)) for _ in range(max(1, self.items // size))]

    def wait(self) -> None:
        """Returns when the device has computed everything."""
        if self.model.info.device.startswith("cuda"):
            torch.cuda.synchronize(self.model.info.device)


def tower_rate(load: Load, size: int) -> float:
    """Images a second of the tower alone."""
    rounds = max(1, load.items // size)
    with torch.inference_mode():
        inputs = load.model.inputs(load.batches(size)[0])
        for _ in range(WARM_UP_BATCHES):
            load.tower(inputs)
        load.wait()
        started_s = time.perf_counter()
        for _ in range(rounds):
            load.tower(inputs)
        load.wait()
        return rounds * size / (time.perf_counter() - started_s)


def forward_rate(load: Load) -> float:
    """Images a second of `forward`, which returns with the vectors on the host."""
    batches = load.batches(load.batch)
    for batch in batches[:WARM_UP_BATCHES]:
        load.model.forward(batch)
    started_s = time.perf_counter()
    for batch in batches:
        load.model.forward(batch)
    return len(batches) * load.batch / (time.perf_counter() - started_s)


async def batcher_rate(load: Load, depth: int) -> float:
    """Images a second through the batcher, for tasks that wait for their vectors before they send more."""
    reporter, images = NullReporter(), itertools.cycle(load.images)

    async def room() -> None:
        return None

    batcher = Batcher(clock=SystemClock(), gate=room, metrics=Metrics(), reporter=reporter, depth=lambda _: depth)

    async def embed(task: str, count: int) -> None:
        tickets = [Ticket(next(images), OPTIONS, task=task, tag=tag) for tag in range(count)]
        async for _ in batcher.submit(load.model, tickets):
            pass

    async with batcher:
        await embed("warm-up", load.batch * WARM_UP_BATCHES)  # the device's thread sets up its libraries
        left = iter(range(max(1, load.items // TASK_ITEMS)))

        async def produce() -> None:
            for number in left:
                await embed(str(number), TASK_ITEMS)

        before, started_s = batcher.statistics().items, time.perf_counter()
        await asyncio.gather(*(produce() for _ in range(max(1, load.in_flight // TASK_ITEMS))))
        seconds = time.perf_counter() - started_s
        done = batcher.statistics().items - before
    if reporter.errors:
        raise SystemExit(f"the batcher reported {reporter.errors[0]!r}")
    return done / seconds


class Worker:
    """A whole worker with that model, its server, and shared memory; starts at once, ends with `stack`."""

    def __init__(self, load: Load, declaration: str, stack: ExitStack) -> None:
        base = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="legit-benchmark-", dir=base)))
        self._load = load
        self._originals = [self._folder / f"{number}.image" for number in range(DISTINCT_FILES)]
        for path, image in zip(self._originals, itertools.cycle(load.images), strict=False):
            path.write_bytes(image.data.tobytes())
        models = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "models.toml"
        models.write_text(declaration, encoding="utf-8")
        self._url = stack.enter_context(EmbeddedServer()).url()
        self._app = stack.enter_context(Celery(broker=self._url, set_as_current=False))
        env = {"LEGIT_BROKER_URL": self._url, "LEGIT_MODELS": str(models), "LEGIT_PRELOAD": "defaults"}
        env |= {"LEGIT_SHM_ROOT": str(self._folder)}
        args = ["-P", "legit_async", "-l", "INFO"]
        worker = WorkerProcess("legit_embedding", args=args, env=env, ready_timeout_s=TIMEOUT_S)
        self._process = stack.enter_context(worker)
        self._runs = itertools.count()

    def rate(self) -> float:
        """Images a second, by the server's ids: from the last entry of the first batch to the last one of all."""
        tasks = max(1, self._load.items // TASK_ITEMS)
        expected = tasks * TASK_ITEMS
        with StreamReader(self._url) as reader:
            reader.delete(STREAM)
            self._queue(tasks)
            found = list(reader.read([STREAM], expected=expected, timeout_s=TIMEOUT_S))
        failed = [fields for _, _, fields in found if fields["status"] != "ok"]
        if failed or len(found) != expected:
            raise SystemExit(
                f"{len(found)} entries of {expected} items, {len(failed)} failed: {failed[:1]}\n"
                f"{self._process.log[-4000:]}"
            )
        stamps_ms = sorted(int(entry_id.partition("-")[0]) for _, entry_id, _ in found)
        skipped = min(self._load.batch, expected // 2)
        return (expected - skipped) / (max(1, stamps_ms[-1] - stamps_ms[skipped - 1]) / 1000)

    def _queue(self, tasks: int) -> None:
        run, originals = next(self._runs), itertools.cycle(self._originals)
        shape = list(self._load.model.preprocess.shape)
        envelopes = []
        for task in range(tasks):
            paths = [self._folder / f"{run}-{task}-{place}" for place in range(TASK_ITEMS)]
            for path in paths:
                path.hardlink_to(next(originals))
            items = [{"shm": {"path": str(path), "dtype": "uint8", "shape": shape}} for path in paths]
            envelopes.append({"items": items, "reply_to": STREAM})
        with self._app.producer_or_acquire() as producer:
            for envelope in envelopes:
                self._app.send_task(TASK, args=[envelope], queue=QUEUE, producer=producer)


def steps_of(load: Load, batch: Sequence[Prepared]) -> Iterator[str]:
    """Takes the steps that `forward` and `finish` consist of, and names each when it is done."""
    model = load.model
    host = staging((len(batch), *model.preprocess.shape), torch.uint8, model.info.device)
    yield "page-locked buffer"
    np.stack([one.data for one in batch], out=host.numpy())
    yield "stack"
    pixels = to_device(host, model.info.device)
    yield "copy to the device"
    inputs = model.preprocess.normalise(pixels).to(getattr(torch, model.info.dtype))
    yield "normalise"
    output = clip_tower.output_of(load.tower(inputs))
    yield "tower"
    raw = to_host(output)
    yield "copy back"
    model.finish(raw, [OPTIONS] * len(batch))
    yield "finish"
    model.forward(batch)
    yield "forward as a whole"


def profile(load: Load) -> dict[str, float]:
    """Median milliseconds of each step of a batch; the device is waited for at each step's end."""
    batches = itertools.cycle(load.batches(load.batch))
    found_ms: dict[str, list[float]] = {}
    with torch.inference_mode():
        for batch in itertools.islice(batches, WARM_UP_BATCHES + PROFILED_BATCHES):
            load.wait()
            since_s = time.perf_counter()
            for name in steps_of(load, batch):
                load.wait()
                now_s = time.perf_counter()
                found_ms.setdefault(name, []).append((now_s - since_s) * 1000)
                since_s = now_s
    return {name: statistics.median(found[WARM_UP_BATCHES:]) for name, found in found_ms.items()}


def declaration_of(arguments: argparse.Namespace, folder: Path) -> str:
    """The model as models.toml declares it."""
    if arguments.model == SMALL:
        source = f'weights = "{save_small_eva02(folder / "eva02")}"'
    else:
        source = f'name = "{arguments.model}"\nuntrained = true'
    return (
        f'[defaults]\nimage = "clip"\n[models.clip]\nadapter = "open_clip"\n{source}\ndevice = "{arguments.device}"\n'
        f'dtype = "{arguments.dtype}"\nmax_items = {arguments.batches[-1]}\n'
    )


def load_of(arguments: argparse.Namespace, declaration: str) -> Load:
    """The loaded model, and noise of its images' shape."""
    spec = Catalog.parse(declaration).spec("clip")
    model = OpenClipAdapter().load(spec, InputLimits(max_pixels=1_000_000))
    tower = model._tower  # noqa: SLF001  the tower alone is what is compared with
    assert tower is not None
    random, count = np.random.default_rng(7), min(DISTINCT_IMAGES, arguments.items)
    pixels = random.integers(0, 256, (count, *model.preprocess.shape), dtype=np.uint8)
    images = [one for one in model.prepare(list(pixels), OPTIONS) if isinstance(one, Prepared)]
    return Load(model, tower, images, arguments.items, arguments.in_flight, arguments.batches[-1])


def measure(arguments: argparse.Namespace, load: Load, declaration: str, console: Console) -> dict[str, float]:
    """The median images a second of each stage, which all take turns."""
    stages: dict[str, Callable[[], float]] = {
        **{f"tower alone, batches of {size}": partial(tower_rate, load, size) for size in arguments.batches},
        f"forward, batches of {load.batch}": partial(forward_rate, load),
        "batcher, depth 1": lambda: asyncio.run(batcher_rate(load, 1)),
        "batcher, depth 2": lambda: asyncio.run(batcher_rate(load, 2)),
    }
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        if not arguments.without_worker:
            stages["whole worker"] = Worker(load, declaration, stack).rate
        for number in range(arguments.rounds):
            for name in stages if number % 2 == 0 else reversed(stages):
                rates.setdefault(name, []).append(stages[name]())
                console.print(f"{name}: {rates[name][-1]:,.0f} images/s", style="dim", highlight=False)
    return {name: statistics.median(rates[name]) for name in stages}


def show(
    arguments: argparse.Namespace, load: Load, rates: dict[str, float], steps_ms: dict[str, float], console: Console
) -> None:
    """The tables, and the JSON line."""
    info, bound = load.model.info, rates[f"tower alone, batches of {load.batch}"]
    card = torch.cuda.get_device_name(info.device) if info.device.startswith("cuda") else info.device
    table = Table(
        "stage", title=f"{arguments.model} on {card} in {info.dtype}, {load.items} images, median of {arguments.rounds}"
    )
    for column in ("images/s", "of the bound"):
        table.add_column(column, justify="right")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / bound:.3f}")
    console.print(table)
    if steps_ms:
        steps = Table("step", title=f"one batch of {load.batch}, median of {PROFILED_BATCHES}")
        steps.add_column("ms", justify="right")
        for name, step_ms in steps_ms.items():
            steps.add_row(name, f"{step_ms:.2f}")
        console.print(steps)
    results = [
        {"stage": name, "images_per_s": round(rate, 1), "of_bound": round(rate / bound, 4)}
        for name, rate in rates.items()
    ]
    told = {"model": arguments.model, "device": card, "dtype": info.dtype, "items": load.items, "results": results}
    print(json.dumps({**told, "steps_ms": {name: round(step_ms, 3) for name, step_ms in steps_ms.items()}}))


def main() -> None:
    """Runs everything, prints the tables, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="EVA02-B-16", help=f"an architecture of open_clip, or {SMALL!r}")
    parser.add_argument("--items", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batches", default=[32, 128], type=lambda text: sorted(map(int, text.split(","))))
    parser.add_argument("--in-flight", type=int, default=1024)
    parser.add_argument("--without-worker", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        declaration = declaration_of(arguments, Path(folder))
        load = load_of(arguments, declaration)
        medians = measure(arguments, load, declaration, console)
    show(arguments, load, medians, profile(load) if arguments.profile else {}, console)


if __name__ == "__main__":
    main()

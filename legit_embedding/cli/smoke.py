"""`legit-embedding smoke`: one image task and one text task through a running system, the check before any bulk."""

import base64
import io
import time
import uuid
from dataclasses import dataclass
from typing import Annotated

import typer
from celery import Celery
from PIL import Image, ImageDraw
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from legit_embedding.config import hide_password, load_settings
from legit_embedding.contract import EMBED_TEXTS, PREPARE_IMAGES, Names, ResultEntry, parse_entry
from legit_embedding.publish.reader import StreamReader
from legit_embedding.publish.urls import results_url
from legit_embedding.runtime import broker_url_of


@dataclass(frozen=True, slots=True)
class Sent:
    """A task that is on its way."""

    what: str
    task_id: str
    sent_at_s: float


def run(
    *,
    broker: Annotated[str | None, typer.Option(help="Broker URL; default: as the worker's.")] = None,
    results: Annotated[str | None, typer.Option(help="URL of the result server; default: as the worker's.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait for both results.")] = 60.0,
) -> None:
    """Send one image and one text through a running worker and read their vectors back; exit 0 only if both came."""
    settings = load_settings()
    names = Names.load(settings.contract)
    from legit_embedding.application import app

    broker_url = broker or broker_url_of(app)
    url = results_url(results or settings.results_url, broker_url)
    console = Console()
    console.print(f"broker  {hide_password(broker_url)}\nresults {hide_password(url)}", highlight=False, markup=False)

    reply_to = f"legit-smoke:{uuid.uuid4().hex[:12]}"
    with StreamReader(url) as reader:
        streams = {reply_to: "0", settings.results_stream: reader.last_id(settings.results_stream)}
        try:
            sent = _send(app, broker_url, names, reply_to)
            arrived = _collect(reader, streams, sent, names, timeout_s)
        finally:
            reader.delete(reply_to)
    if not _report(console, sent, arrived, timeout_s):
        raise typer.Exit(1)


def _send(app: Celery, broker_url: str, names: Names, reply_to: str) -> list[Sent]:
    """Sends as a plain producer does, with the worker's own settings of the broker."""
    item_id = names.envelope["id"]
    work = (
        ("image", PREPARE_IMAGES, {item_id: "smoke-image", names.envelope["data"]: _picture()}),
        ("text", EMBED_TEXTS, {item_id: "smoke-text", names.envelope["text"]: "A smoke test before the bulk."}),
    )
    sent = []
    # A connection of its own: as a setting of the app, the URL would lose against CELERY_BROKER_URL.
    with app.connection_for_write(broker_url) as connection:
        for what, canonical, item in work:
            envelope = {names.envelope["items"]: [item], names.envelope["reply_to"]: reply_to}
            task = app.send_task(
                names.tasks[canonical][0], args=[envelope], queue=names.queue_of(canonical), connection=connection
            )
            sent.append(Sent(what, str(task.id), time.monotonic()))
    return sent


def _collect(
    reader: StreamReader, streams: dict[str, str], sent: list[Sent], names: Names, timeout_s: float
) -> dict[str, tuple[str, ResultEntry, float]]:
    wanted = {task.task_id: task for task in sent}
    arrived: dict[str, tuple[str, ResultEntry, float]] = {}
    for stream, _, fields in reader.read(streams, timeout_s=timeout_s):
        try:
            entry = parse_entry(fields, names=names)
        except ValueError:
            continue  # somebody else's: the global stream may have other writers
        task = wanted.get(entry.task_id)
        if task is not None and task.task_id not in arrived:
            arrived[task.task_id] = (stream, entry, time.monotonic() - task.sent_at_s)
        if len(arrived) == len(wanted):
            break
    return arrived


def _report(
    console: Console, sent: list[Sent], arrived: dict[str, tuple[str, ResultEntry, float]], timeout_s: float
) -> bool:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("task", "status", "stream", "model", "dim", "ms", "worker"):
        table.add_column(column, overflow="fold")
    passed = True
    for task in sent:
        if task.task_id not in arrived:
            table.add_row(task.what, f"[bold red]nothing came in {timeout_s:g} s[/]")
            passed = False
            continue
        stream, entry, seconds = arrived[task.task_id]
        passed = passed and entry.status == "ok"
        status = (
            "[green]ok[/]" if entry.status == "ok" else f"[bold red]{escape(f'{entry.error_type}: {entry.error}')}[/]"
        )
        dim = str(entry.dim or "")
        table.add_row(task.what, status, stream, entry.model or "", dim, f"{seconds * 1000:.0f}", entry.worker or "")
    console.print(table)
    if not passed:
        console.print(
            "[bold red]smoke failed.[/] Is a worker running (celery -A legit_embedding worker -P legit_async), "
            "on this broker and on these queues, and does its log show an error?",
            highlight=False,
        )
    return passed


def _picture() -> str:
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).ellipse((48, 48, 208, 208), fill="red")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")

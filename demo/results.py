"""What came back, as a person wants to see it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from legit_embedding.contract import ResultEntry


@dataclass(frozen=True, slots=True)
class Arrival:
    """An entry, the stream it was on, and how long after its task was sent the worker wrote it."""

    stream: str
    entry: ResultEntry
    milliseconds: float


def nearest(arrivals: Sequence[Arrival]) -> dict[str | None, tuple[str | None, float]]:
    """For each text the id of the text with the highest cosine to it, and that cosine."""
    entries = [a.entry for a in arrivals if a.entry.modality == "text" and a.entry.embedding is not None]
    if len(entries) <= 1:
        return {}
    vectors = np.stack([entry.embedding for entry in entries if entry.embedding is not None])
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -np.inf)
    best = cosine.argmax(axis=1)
    return {
        entry.item_id: (entries[other].item_id, float(cosine[row, other]))
        for row, (entry, other) in enumerate(zip(entries, best, strict=True))
    }


def show(console: Console, arrivals: Sequence[Arrival]) -> None:
    """A line for each result."""
    neighbours = nearest(arrivals)
    table = Table(title="What came back", header_style="bold", title_style="bold", show_lines=False)
    table.add_column("stream", no_wrap=True)
    table.add_column("item", overflow="fold", ratio=3)
    table.add_column("model", no_wrap=True)
    table.add_column("dim", justify="right", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("nearest text (cosine)", overflow="fold", ratio=3)
    for arrival in sorted(arrivals, key=lambda a: (a.entry.modality, a.stream, a.entry.item_id)):
        entry = arrival.entry
        if entry.status == "ok":
            near = neighbours.get(entry.item_id)
            last = f"{near[0]} [dim]({near[1]:.2f})[/]" if near else "[dim]–[/]"
        else:
            last = f"[bold red]{entry.error_type}: {entry.error}[/]"
        stream = arrival.stream.rpartition(":")[2]
        table.add_row(
            stream, entry.item_id, entry.model or "", str(entry.dim or ""), f"{arrival.milliseconds:.0f}", last
        )
    console.print(table)

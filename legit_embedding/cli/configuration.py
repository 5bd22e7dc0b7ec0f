"""`legit-embedding config`: every setting with its value, unit and origin."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from legit_embedding.config import describe, load_settings, unknown_variables


def show(*, as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False) -> None:
    """Print every setting with its value, unit and where it came from."""
    lines = describe(load_settings())
    if as_json:
        for line in lines:
            print(json.dumps(asdict(line)))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("unit")
    table.add_column("from")
    table.add_column("meaning", overflow="fold", style="dim")
    for line in lines:
        style = "" if line.origin == "default" else "bold green"
        table.add_row(line.variable, escape(line.value), line.unit, line.origin, line.doc, style=style)
    console = Console()
    console.print(table)
    for warning in unknown_variables():
        console.print(f"[bold yellow]warning:[/] {escape(warning)}", highlight=False)

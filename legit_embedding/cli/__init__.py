"""The `legit-embedding` command."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from legit_embedding.cli import configuration, smoke
from legit_embedding.errors import LegitError

cli = typer.Typer(
    help="Looks at and tries an embedding worker. The worker itself: celery -A legit_embedding worker -P legit_async",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
cli.command("config")(configuration.show)
cli.command("smoke")(smoke.run)


def main() -> None:
    """Runs the command; an error of ours is one line and exit code 2, not a traceback."""
    try:
        cli()
    except LegitError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(2)

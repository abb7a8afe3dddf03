"""The typer app, to which the command modules add themselves."""

from __future__ import annotations

from typing import Annotated

import typer

from kdedge._version import __version__

app = typer.Typer(
    name="kdedge",
    help="Distil a large teacher into a small int8 student, export it, and measure it on the board.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kdedge {__version__}")
        raise typer.Exit


@app.callback(epilog="Example: kdedge distill digits --out runs/digits")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Distil a large teacher into a small int8 student, export it, and measure it on the board."""
    del version

"""kdedge report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from kdedge.cli import output
from kdedge.cli.app import app
from kdedge.cli.options import Json


@app.command(epilog="Example: kdedge report runs/demo --out report.html")
def report(
    runs: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(help="Records or folders that hold some; runs/ by default."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Join run records into one page that opens offline."""
    from kdedge.reporting import load_runs, rows_json, table, terminal_table
    from kdedge.reporting import report as write

    loaded = load_runs([*(runs or [])])
    rows = table(loaded)
    page = write(loaded, out)
    if as_json:
        output.document({"report": str(page), "rows": rows_json(rows)})
        return
    from rich.console import Console

    console = Console()
    console.print(terminal_table(rows, spread=console.width >= 110))
    output.result(f"page: {page}")

"""kdedge demo: the whole way, on embedded data, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdedge.cli import output
from kdedge.cli.app import app
from kdedge.cli.options import HostThreads, Json, use_threads


@app.command(epilog="Example: kdedge demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the run.")] = Path("runs/demo"),
    threads: HostThreads = None,
    as_json: Json = False,
) -> None:
    """The whole way on real digits, teacher to page.

    Trains, distils, quantises, exports, measures and reports; needs no data from outside.
    """
    use_threads(threads)
    from kdedge.cli.bench import measure
    from kdedge.cli.export import export_with_parity
    from kdedge.distillation import distill
    from kdedge.progress import Live
    from kdedge.recipe_file import load_recipe
    from kdedge.reporting import SUMMARY_COLUMNS, load_runs, summary_rows, terminal_table
    from kdedge.reporting import report as write_page
    from kdedge_bench.torch_student import bench_student

    with output.libraries_on_stderr():
        trained = distill(load_recipe("digits"), out=out, overwrite=True, progress=Live())
        exports, records = [], []
        for old in sorted((out / "records").glob("*.json")):
            old.unlink()  # a page of this run holds the records of this run
        for format_ in ("onnx", "tflite"):
            output.line(f"export   {format_}")
            exports.append(
                export_with_parity(trained.bundle, format_, data="digits", out=out / f"student-int8.{format_}")
            )
        for precision in ("float32", "int8"):
            output.line(f"bench    {precision} student in torch on this machine")
            records.append(bench_student(trained.bundle, precision, repetitions=200, out_dir=out / "records"))
        for made in exports:
            output.line(f"bench    {made.artifact.name} on this machine")
            records.append(measure(made.artifact, accuracy_data="digits", out=out / "records", repetitions=1000))
        runs = load_runs([out])
        page = write_page(runs, out / "report.html")
    if as_json:
        output.document(
            {
                "distill": trained.to_dict(),
                "exports": [made.to_dict() for made in exports],
                "records": [record.to_dict() for record in records],
                "report": str(page),
            }
        )
        return
    from rich.console import Console

    title = "digits: what was trained, and what runs"
    Console().print(terminal_table(summary_rows(runs), SUMMARY_COLUMNS, title=title, spread=False))
    output.result(f"page: {page}")

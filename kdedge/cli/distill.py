"""kdedge distill."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from kdedge.cli import output
from kdedge.cli.app import app
from kdedge.cli.int8_loss import QuantizationErrors, say_trained_loss
from kdedge.cli.options import CacheDir, Data, HostThreads, Json, use_threads

if TYPE_CHECKING:
    from kdedge.distillation import DistillResult


@app.command(epilog="Example: kdedge distill digits --out runs/digits --set student.training.epochs=10")
def distill(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `kdedge recipes`) or a TOML file.")],
    data: Data = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", metavar="DIR", help="Folder of the run; runs/RECIPE by default."),
    ] = None,
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; may be repeated."),
    ] = None,
    teacher: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--teacher", help="Checkpoint, builtin name, NAME:WEIGHTS of torchvision, or Hub name."),
    ] = None,
    student: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--student", help="Builtin name, or module:function called as function(classes, shape)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR.")] = False,
    reuse: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--reuse", metavar="RUN", help="Copy what the run in RUN trained and this one would train alike."),
    ] = None,
    cache_dir: CacheDir = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where DIR holds a run.")] = False,
    threads: HostThreads = None,
    as_json: Json = False,
) -> None:
    """Train a small int8 student from a large teacher.

    The teacher, the student from its softened logits, then QAT; writes OUT/bundle.
    """
    from kdedge.recipe_file import load_recipe

    chosen = load_recipe(recipe, set_ or [])
    folder = out or Path("runs") / chosen.name
    use_threads(threads)
    from kdedge.distillation import distill as run
    from kdedge.progress import Live
    from kdedge.ranks import speaks

    started = time.monotonic()
    try:
        with output.libraries_on_stderr():
            result = run(
                chosen, out=folder, data=data, teacher=teacher, student=student,
                resume=resume, overwrite=overwrite, reuse=reuse, cache_dir=cache_dir, progress=Live(),
            )  # fmt: skip
    except KeyboardInterrupt:
        if speaks():
            same = "(and the same options" + (", without --overwrite)" if overwrite else ")")
            output.line(f"Stopped. Go on with: kdedge distill {recipe} --out {folder} --resume {same}")
        raise
    if not speaks():
        return
    if as_json:
        output.document(result.to_dict())
    else:
        _summary(result, time.monotonic() - started)
    with output.libraries_on_stderr():
        say_trained_loss(QuantizationErrors(result.bundle, data))


def _summary(result: DistillResult, elapsed_s: float) -> None:
    from kdedge.metrics import in_words

    for name, scores in result.metrics.items():
        if scores is None:
            output.result(f"{name:<14} -")
            continue
        trained_s = result.time_s.get({"student_float": "student", "student_int8": "qat"}.get(name, name))
        seconds = "" if trained_s is None else f"  trained in {trained_s:.0f} s"
        output.result(f"{name:<14} {in_words(scores.to_dict())}  (test, n={scores.n}){seconds}")
    joules = result.energy_j.get("total")
    why = result.unmeasured.get("energy_j.total", "")
    spent = f"{joules:.0f} J ({joules / 3600:.2f} Wh)" if joules is not None else f"not measured: {why}"
    output.result(f"energy         {spent}")
    output.result(f"bundle         {result.bundle.path}  ({elapsed_s:.0f} s in all)")

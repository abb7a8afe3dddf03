"""kdedge bench of several cells, and other commands on several devices: what is asked, done and shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from kdedge.cli import output
from kdedge.cli.fleet_screen import FleetScreen, cells_table, said_of_record

if TYPE_CHECKING:
    from kdedge.cli.conditions import Axes
    from kdedge_agent.run_record import RunRecord
    from kdedge_bench.devices import Device
    from kdedge_bench.fleet import Outcome
    from kdedge_bench.matrix import Cell, LeftOut
    from kdedge_bench.session import OnProgress

R = TypeVar("R")


def bench_matrix(
    axes: Axes,
    *,
    jobs: int,
    resume: bool,
    accuracy_data: str | None,
    split: str,
    out: Path,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Measure every cell, devices at the same time; ``wishes`` are those of ``kdedge_bench.session.bench``.

    Raises:
        UserError: what was asked cannot be; nothing has begun then.
        typer.Exit: with 130 where it was stopped, else with the highest code of the cells that failed.
    """
    from kdedge.cli.samples import about_artifact
    from kdedge_bench.fleet import Outcome
    from kdedge_bench.matrix import cells_of, measured_already, request_of
    from kdedge_bench.selection import select_devices
    from kdedge_bench.session import bench

    _refuse_bundles(axes.artifacts)
    devices = select_devices(axes.devices)
    cells, left_out = cells_of(axes.artifacts, devices, axes.runtimes, axes.threads)
    _refuse_meter(wishes["meter"], devices, cells)
    for cell in cells:
        request_of(cell, wishes)
    with output.libraries_on_stderr():
        files = dict.fromkeys(cell.artifact for cell in cells)
        about = {file.sha256: about_artifact(file.path, accuracy_data, split) for file in files}
        scored = {sha256: data["sha256"] for sha256, (_, _, data) in about.items() if data is not None}
        there = measured_already(cells, out, wishes, scored=scored) if resume else {}

        def measure(cell: Cell, tell: OnProgress) -> RunRecord:
            info, samples, data = about[cell.artifact.sha256]
            return bench(
                cell.artifact, cell.device, runtime=cell.runtime, threads=cell.threads, accuracy_data=samples,
                accuracy_about=data, artifact_info=info, out_dir=out, progress=tell, **wishes,
            )  # fmt: skip

        _announce(left_out, len(there), out)
        missing = [cell for cell in cells if cell not in there]
        work = [(cell.device, cell.label, partial(measure, cell)) for cell in missing]
        fresh = dict(zip(missing, on_devices(work, jobs=jobs, said=said_of_record), strict=True))
    outcomes = [fresh[cell] if cell in fresh else Outcome(there[cell]) for cell in cells]
    if as_json:
        output.document(_document(cells, outcomes, left_out))
    else:
        from rich.console import Console

        Console().print(cells_table(cells, outcomes))
        output.result(f"records      {out}")
    leave(outcomes, then="the same command with --resume goes on")


def on_devices(
    work: Sequence[tuple[Device, str, Callable[[OnProgress], R]]], *, jobs: int, said: Callable[[R], str]
) -> list[Outcome[R]]:
    """Do some work on several devices with a line for each; its outcomes, in order.

    Args:
        work: Where, what in a few words, and what does it.
        jobs: Devices at a time.
        said: A result in a few words.
    """
    from kdedge_bench.fleet import Job, run_jobs

    with FleetScreen([(device.name, label) for device, label, _ in work], said) as screen:
        return run_jobs([Job(device, do) for device, _, do in work], screen, at_once=jobs)


def leave(outcomes: Sequence[Outcome[Any]], *, then: str) -> None:
    """Leave with the code of the worst outcome; say how to go on where it was stopped.

    Raises:
        typer.Exit: with 130, or the highest code of what failed; none where all is done.
    """
    done = sum(outcome.result is not None for outcome in outcomes)
    if any(outcome.is_open for outcome in outcomes):
        output.line(f"stopped: {done} of {len(outcomes)} done; {then}")
        raise typer.Exit(130)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors:
        output.line(f"{len(errors)} of {len(outcomes)} failed; {then}")
        raise typer.Exit(max(error.exit_code for error in errors))


def _refuse_bundles(artifacts: Sequence[Path]) -> None:
    from kdedge.errors import UserError

    for path in artifacts:
        if path.is_dir():
            cure = "Bench it alone on this machine with one number of threads, or export it and bench the artifact"
            raise UserError("a bundle is measured in torch, and makes no matrix", where=path, cure=cure)


def _refuse_meter(meter: str | None, devices: Sequence[Device], cells: Sequence[Cell]) -> None:
    """A meter has one plug or probe, and standard input can be read once."""
    from kdedge.errors import UserError

    if meter is None:
        return
    if len(devices) > 1:
        raise UserError(
            f"--meter {meter} measures one device, and {len(devices)} are named", cure="Measure the devices one by one"
        )
    if meter == "stdin" and len(cells) > 1:
        raise UserError(
            f"--meter stdin can be read once, and there are {len(cells)} cells",
            cure="Let the logger write into a file: --meter csv:FILE",
        )


def _announce(left_out: Sequence[LeftOut], there: int, out: Path) -> None:
    for entry in left_out:
        output.line(str(entry))
    if there:
        output.line(f"{there} cell{'' if there == 1 else 's'} measured already (records in {out})")


def _document(
    cells: Sequence[Cell], outcomes: Sequence[Outcome[RunRecord]], left_out: Sequence[LeftOut]
) -> dict[str, Any]:
    failures = [
        {
            "device": cell.device.name, "artifact": str(cell.artifact.path), "artifact_sha256": cell.artifact.sha256,
            "runtime": cell.runtime, "threads": cell.threads, "error": output.described(outcome.error),
        }
        for cell, outcome in zip(cells, outcomes, strict=True) if outcome.error is not None
    ]  # fmt: skip
    return {
        "records": [outcome.result.to_dict() for outcome in outcomes if outcome.result is not None],
        "failures": failures,
        "stopped": sum(outcome.is_open for outcome in outcomes),
        "left_out": [{"cells": entry.count, "reason": entry.reason} for entry in left_out],
    }

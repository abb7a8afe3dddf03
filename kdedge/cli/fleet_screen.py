"""What is shown of jobs on several devices: a live line for each device, at the end a table of the cells."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.cli import output

if TYPE_CHECKING:
    from rich.table import Table
    from typing_extensions import Self

    from kdedge.errors import KdedgeError
    from kdedge.reporting import Row
    from kdedge_agent.run_record import RunRecord
    from kdedge_bench.fleet import Outcome
    from kdedge_bench.matrix import Cell
    from kdedge_bench.session import Progress

_FIGURES = {"p50": "p50\nms", "peak": "Peak\nMB", "power": "Power\nW"}
_FIGURES_OF_BATCHES = {"throughput": "Rate\nsamples/s", **_FIGURES}


class FleetScreen:
    """Lines on stderr: live ones in a terminal, elsewhere one for each job that ends; a ``fleet.Watch``.

    Args:
        jobs: Of each its device's name, and what it is in a few words; empty where the device says all.
        said: A result in a few words.
    """

    def __init__(self, jobs: Sequence[tuple[str, str]], said: Callable[[Any], str]) -> None:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TextColumn

        self._jobs, self._said = jobs, said
        console = Console(stderr=True)
        self._is_live = console.is_terminal
        text = TextColumn("{task.fields[text]}", markup=False)  # a device's words are no markup
        self._bars = Progress(
            TextColumn("{task.description}"), MofNCompleteColumn(), text,
            console=console, transient=True, disable=not self._is_live, refresh_per_second=4,
        )  # fmt: skip
        names = [name for name, _ in jobs]
        self._tasks = {
            name: self._bars.add_task(name, total=names.count(name), visible=False, text="")
            for name in dict.fromkeys(names)
        }

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def began(self, number: int) -> None:
        """A job begins."""
        name, label = self._jobs[number]
        self._bars.update(self._tasks[name], visible=True, text=label)

    def told(self, number: int, progress: Progress) -> None:
        """How far it is."""
        name, label = self._jobs[number]
        share = "" if progress.done is None else f" {progress.done:4.0%}"
        self._bars.update(self._tasks[name], text=": ".join(filter(None, (label, progress.text))) + share)

    def ended(self, number: int, outcome: Outcome[Any]) -> None:
        """It is done, or has failed."""
        name, label = self._jobs[number]
        task = self._tasks[name]
        self._bars.update(task, advance=1)
        if self._bars.tasks[task].finished:
            self._bars.update(task, visible=False)
        if not self._is_live:
            said = f"error: {output.one_line(outcome.error)}" if outcome.error else self._said(outcome.result)
            output.line(": ".join(filter(None, (name, label, said))))


def said_of_record(record: RunRecord) -> str:
    """A record in a few words."""
    row = _as_reported(record)
    p50, rate = row.cells["p50"].text, row.cells["throughput"]
    if not row.is_offline:
        return f"p50 {p50}, {row.verdict}"
    interval = f" [{rate.interval_text}]" if rate.interval else ""
    return f"throughput {rate.text}{interval}, p50 {p50} of one {row.call}, {row.verdict}"


def cells_table(cells: Sequence[Cell], outcomes: Sequence[Outcome[RunRecord]]) -> Table:
    """A row for each cell: p50, peak memory, power and verdict; or that it failed, and why below the table.

    Where batches were measured, their throughput comes first, and a note says that p50 is of one batch.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from kdedge.reporting.conditions import OFFLINE, scenario
    from kdedge.reporting.terminal import note_lines

    notes: dict[str, int] = {}
    scenarios = {scenario(outcome.result) for outcome in outcomes if outcome.result is not None}
    headings = _FIGURES_OF_BATCHES if OFFLINE in scenarios else _FIGURES
    table = Table(box=box.SIMPLE_HEAD, caption_justify="left", padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("Artifact", overflow="fold")
    table.add_column("Device", overflow="fold")
    table.add_column("Runtime, threads", no_wrap=True)
    for heading in headings.values():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    for cell, outcome in zip(cells, outcomes, strict=True):
        runtime, figures, verdict = _row(cell, outcome, headings, notes)
        words = (cell.artifact.path.name, cell.device.name, runtime, *figures, verdict)
        table.add_row(*map(Text, words))
    table.caption = Text("\n".join(note_lines(notes)))
    return table


def _row(
    cell: Cell, outcome: Outcome[RunRecord], keys: Collection[str], notes: dict[str, int]
) -> tuple[str, list[str], str]:
    """Runtime with threads, figures, and verdict."""
    from kdedge.reporting.terminal import figure_text, note_mark
    from kdedge.reporting.text import plain

    record, error = outcome.result, outcome.error
    if record is None:
        word = "stopped" if error is None else f"failed {note_mark(_failed(cell, error), notes)}"
        return "\n".join(filter(None, (cell.runtime, cell.threads_text))), ["—"] * len(keys), word
    found = _as_reported(record).cells
    name, version = (plain(record.runtime.get(key) or "") for key in ("name", "version"))
    runtime = f"{name}\n{', '.join(filter(None, (version, cell.threads_text)))}"
    return runtime, [figure_text(found[key], notes, spread=key == "throughput") for key in keys], record.verdict


def _failed(cell: Cell, error: KdedgeError) -> str:
    names_it = (error.where or "").partition(":")[0] == cell.device.name
    return output.one_line(error) if names_it else f"{cell.device.name}: {output.one_line(error)}"


def _as_reported(record: RunRecord) -> Row:
    """The record's row of the report."""
    from kdedge.reporting import Run, Runs, table

    (row,) = table(Runs((Run(Path(), record, None),)))
    return row

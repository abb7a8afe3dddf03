"""The rows as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdedge.reporting.cells import Cell
from kdedge.reporting.rows import Column, Row, columns_of

if TYPE_CHECKING:
    from rich.table import Table

_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def terminal_table(
    rows: Sequence[Row], columns: Sequence[Column] = (), *, title: str | None = None, spread: bool = True
) -> Table:
    """A rich table of the rows; below it, numbered, why what is missing is missing.

    Args:
        rows: From ``table`` or ``summary_rows``.
        columns: ``COLUMNS`` or ``SUMMARY_COLUMNS``; by default ``COLUMNS``, and throughput where a row has it.
        title: Above the table.
        spread: 95% intervals under the figures; such a table wants 110 columns or more, one without wants 80.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    notes: dict[str, int] = {}
    result = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", caption_justify="left", pad_edge=False)
    result.add_column("Model", overflow="fold", min_width=12)
    columns = columns or columns_of(rows)
    for column in columns:
        result.add_column(f"{column.short}\n{column.unit.symbol}", justify="right", no_wrap=True)
    for row in rows:
        figures = [Text(figure_text(row.cells[column.key], notes, spread=spread)) for column in columns]
        result.add_row(Text(_model(row)), *figures)
    lines = ["Under each figure: its 95% interval."] if spread else []
    result.caption = Text("\n".join([*lines, *note_lines(notes)]))
    return result


def note_mark(note: str, notes: dict[str, int]) -> str:
    """The raised number of a note below a table; a new one if it is not among ``notes`` yet."""
    return str(notes.setdefault(note, len(notes) + 1)).translate(_RAISED)


def note_lines(notes: dict[str, int]) -> list[str]:
    """What stands below a table: each note behind its number."""
    return [f"{note_mark(note, notes)} {note}" for note in notes]


def figure_text(cell: Cell, notes: dict[str, int], *, spread: bool = False) -> str:
    """A figure in its unit, or a dash, with the mark of its note or of the reason why it is missing."""
    note = cell.reason or cell.note
    mark = note_mark(note, notes) if note else ""
    text = "—" if cell.value is None else cell.unit.number(cell.value)
    interval = f"\n{cell.interval_text}" if spread and cell.interval is not None else ""
    return f"{text}{mark}{interval}"


def _model(row: Row) -> str:
    """Name; precision and device; runtime and threads; verdict: one line each."""
    place = " · ".join(part for part in (row.precision, row.place) if part)
    threads = "" if row.threads is None else f", {row.threads} thread{'' if row.threads == 1 else 's'}"
    lines = (row.label, place, f"{row.runtime.split(' (', maxsplit=1)[0]}{threads}", row.verdict)
    return "\n".join(line for line in lines if line)

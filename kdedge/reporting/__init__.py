"""RunRecords -> page, table, JSON. Derived only: every figure is a record's, or an interval of a record's counts.

    from kdedge.reporting import load_runs, report
    report(load_runs(["runs"]), Path("report.html"))

``load_runs`` reads, ``table`` makes the rows that terminal and page share, ``report`` writes the page.
"""

from __future__ import annotations

from kdedge.reporting.cells import Cell
from kdedge.reporting.page import report
from kdedge.reporting.rows import COLUMNS, SUMMARY_COLUMNS, Column, Row, rows_json, summary_rows, table
from kdedge.reporting.runs import DEFAULT_RUNS, Parity, Run, Runs, Trained, load_runs
from kdedge.reporting.terminal import terminal_table

__all__ = [
    "COLUMNS",
    "DEFAULT_RUNS",
    "SUMMARY_COLUMNS",
    "Cell",
    "Column",
    "Parity",
    "Row",
    "Run",
    "Runs",
    "Trained",
    "load_runs",
    "report",
    "rows_json",
    "summary_rows",
    "table",
    "terminal_table",
]

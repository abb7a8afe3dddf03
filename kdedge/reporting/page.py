"""The page: one file, plotly and style inline, no request to anywhere."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from kdedge._version import __version__
from kdedge.errors import UserError
from kdedge.files import write_atomic
from kdedge.reporting import plots
from kdedge.reporting.cells import JOULES, SECONDS, Cell, Unit, missing, single
from kdedge.reporting.conditions import UNKNOWN, all_facts, conditions, fact, identity, slug, state
from kdedge.reporting.drawing import Plot, points_a_run
from kdedge.reporting.profile_text import OpRow, op_rows, profile_lines
from kdedge.reporting.rows import DETAIL_COLUMNS, MEMORY_SHARES, Column, Row, columns_of, student_rows, table
from kdedge.reporting.runs import Run, Runs, Trained, load_runs
from kdedge.reporting.text import plain
from kdedge_agent.run_record import RunRecord

DEFAULT_PAGE = Path("report.html")
_ROLES = ("teacher", "assistant", "student_float", "student_int8")


@dataclass(frozen=True)
class RunView:
    """One run as the page shows it."""

    index: int
    anchor: str
    row: Row
    run: Run
    columns: tuple[Column, ...]
    conditions: tuple[tuple[str, str], ...]
    short_conditions: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    request: tuple[tuple[str, str], ...]
    profile: tuple[str, ...]
    ops: tuple[OpRow, ...]
    plot: Plot | None


@dataclass(frozen=True)
class DeviceView:
    """A device with its runs of one scenario, and what it is in one line."""

    name: str
    what: str
    is_offline: bool
    runs: tuple[RunView, ...]


@dataclass(frozen=True)
class TrainedView:
    """A bundle's networks, and what training cost."""

    name: str
    rows: tuple[Row, ...]
    costs: tuple[tuple[str, Cell, Cell], ...]
    versions: tuple[tuple[str, str], ...]


def report(runs: Runs | Path | str | Sequence[Path | str] = (), out: Path | str = DEFAULT_PAGE) -> Path:
    """Write the page of these runs, whole or not at all.

    Args:
        runs: From ``load_runs``; or files and folders, as ``load_runs`` takes them.
        out: The file to write.

    Returns:
        Path of the page.

    Raises:
        UserError: no run, a bad one (see ``load_runs``), or the page cannot be written.
    """
    out = Path(out)
    if out.is_dir():
        raise UserError("is a folder, not a file to write", where=out, cure=f"Use --out {out / 'report.html'}")
    loaded = runs if isinstance(runs, Runs) else load_runs(runs)
    if not loaded.runs:
        raise UserError("no run to report", cure="kdedge bench ARTIFACT measures one and stores its record")
    write_atomic(out, render(loaded))
    return out


def render(runs: Runs) -> str:
    """The page as text; the same runs give the same text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    rows = table(runs)
    views = _run_views(runs.runs, rows)
    students = [row for trained in runs.trained for row in student_rows(trained)]
    overview = plots.overview(runs.runs, rows, students)
    every = overview + [view.plot for view in views if view.plot is not None]
    return environment.get_template("report.html.j2").render(
        version=__version__,
        columns=columns_of(rows),
        title=", ".join(dict.fromkeys(row.device for row in sorted(rows, key=lambda row: row.device))),
        devices=_devices(views),
        runs=views,
        trained=[_trained_view(trained) for trained in runs.trained],
        overview=overview,
        specs={plot.id: plot.spec for plot in every},
        summary=_summary(views),
        style=_resource("report.css"),
        script=_resource("report.js"),
        plotly=_plotly(),
    )


def _resource(name: str) -> str:
    return resources.files("kdedge.reporting").joinpath("templates").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> str:
    """plotly.js; a closing tag inside it would end the page's script element."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _run_views(runs: Sequence[Run], rows: Sequence[Row]) -> list[RunView]:
    most = points_a_run(len(runs))
    views = []
    for index, (run, row) in enumerate(zip(runs, rows, strict=True)):
        record = run.record
        short = [state(record, title) for title in ("Governor", "Frequency", "Temperature")]
        views.append(
            RunView(
                index=index,
                anchor=f"run-{index}-{slug(row.label)}",
                row=row,
                run=run,
                columns=(*columns_of([row]), *_told(record)),
                conditions=conditions(record),
                short_conditions=tuple(part for part in short if part != UNKNOWN),
                facts=all_facts(record.facts),
                request=all_facts(record.request),
                profile=tuple(profile_lines(record.profile or {}, row.calls)),
                ops=op_rows(record.profile or {}),
                plot=plots.over_time(run, row, index, most),
            )
        )
    return views


def _told(record: RunRecord) -> list[Column]:
    """The columns of the details; without memory that older records do not speak of, nor any but a Jetson's."""
    spoken_of = {*record.memory_bytes, *(key.removeprefix("memory_bytes.") for key in record.unmeasured)}
    return [column for column in DETAIL_COLUMNS if column not in MEMORY_SHARES or column.key in spoken_of]


def _devices(views: Sequence[RunView]) -> list[DeviceView]:
    """The runs by device; those in batches apart, whose latencies are no inference's."""
    groups: dict[tuple[tuple[str, str, str], bool], list[RunView]] = {}
    for view in views:
        groups.setdefault((identity(view.run.record), view.row.is_offline), []).append(view)
    devices = []
    for ((name, _, _), is_offline), mine in sorted(groups.items()):
        record = mine[0].run.record
        facts = [fact(record, title) for title in ("Board", "CPU", "OS", "Kernel")]
        kind = "" if record.device_kind == name else plain(record.device_kind)
        what = " · ".join(dict.fromkeys([text for text in (kind, *facts) if text]))
        devices.append(DeviceView(plain(name), what, is_offline, tuple(mine)))
    return devices


def _summary(views: Sequence[RunView]) -> tuple[tuple[str, str], ...]:
    records = [view.run.record for view in views]
    dates = sorted({plain(record.created_at)[:10] for record in records})
    unsteady = [view for view in views if view.row.verdict != "steady"]
    return (
        ("Runs", str(len(views))),
        ("Devices", str(len({identity(record) for record in records}))),
        ("Artifacts", str(len({record.artifact_sha256 for record in records}))),
        ("Measured (UTC)", dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"),
        ("Not steady", f"{len(unsteady)} of {len(views)}"),
    )


def _trained_view(trained: Trained) -> TrainedView:
    manifest = trained.manifest
    times, energies = _mapping(manifest, "time_s"), _mapping(manifest, "energy_j")
    unmeasured = _mapping(manifest, "unmeasured")
    stages = list(dict.fromkeys([*times, *energies]))
    costs = tuple(
        (
            plain(stage),
            _cost(times.get(stage), SECONDS, unmeasured, "time_s", stage),
            _cost(energies.get(stage), JOULES, unmeasured, "energy_j", stage),
        )
        for stage in stages
    )
    versions = tuple((plain(k), plain(v)) for k, v in sorted(_mapping(manifest, "versions").items()))
    return TrainedView(
        plain("/".join(trained.path.parts[-2:])), student_rows(trained, _roles(trained)), costs, versions
    )


def _roles(trained: Trained) -> list[str]:
    """Whose scores the manifest holds; few recipes have an assistant."""
    return [role for role in _ROLES if role != "assistant" or role in _mapping(trained.manifest, "metrics")]


def _cost(value: object, unit: Unit, unmeasured: Mapping[str, Any], quantity: str, stage: str) -> Cell:
    reason = unmeasured.get(f"{quantity}.{stage}") or unmeasured.get(quantity)
    text = plain(reason) if reason else "the manifest holds no value and no reason"
    cell = single(value, unit, text, why="one training: no spread")
    return cell if cell.value is not None else missing(unit, text)


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = document.get(key)
    return part if isinstance(part, Mapping) else {}

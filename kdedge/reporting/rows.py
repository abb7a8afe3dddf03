"""Runs -> rows: one row a run (or a trained student), the same for the terminal, the page and JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from kdedge.bundle import FLOAT_WEIGHTS, INT8_STATE
from kdedge.reporting.cells import (
    MEGABYTES,
    MILLIJOULES,
    MILLISECONDS,
    PROPORTION,
    SAMPLES_PER_S,
    WATTS,
    Cell,
    Unit,
    missing,
    recorded,
    single,
)
from kdedge.reporting.check import is_number
from kdedge.reporting.conditions import OFFLINE, batch_size, identity, scenario
from kdedge.reporting.energy_text import power_notes
from kdedge.reporting.runs import Run, Runs, Trained
from kdedge.reporting.scores import score_cells
from kdedge.reporting.text import plain
from kdedge_agent.run_record import RunRecord

HOST_NOTE = "measured on the host at export, not on the device"
_ONE_PROCESS = "one process: no spread"
_MEDIAN, _LARGEST = "median of the starts", "largest of the starts"
_EXACT = "exact"
_LABELS = {
    "student_float": "float student",
    "student_int8": "int8 student",
    "teacher": "teacher",
    "assistant": "teacher assistant",
}
_WEIGHTS = {"student_float": FLOAT_WEIGHTS, "student_int8": INT8_STATE}
_OFFLINE_ALONE = "measured by --scenario offline"
_JETSON_ALONE = "told by a Jetson alone"
_NOT_BENCHED = "not benched in torch; `kdedge bench BUNDLE` measures it"


@dataclass(frozen=True)
class Column:
    """A column of figures: key of the cell, heading, the terminal's shorter one, unit."""

    key: str
    title: str
    short: str
    unit: Unit


COLUMNS = (
    Column("accuracy", "Accuracy", "Accuracy", PROPORTION),
    Column("size", "Size", "Size", MEGABYTES),
    Column("p50", "Latency p50", "p50", MILLISECONDS),
    Column("p90", "Latency p90", "p90", MILLISECONDS),
    Column("p99", "Latency p99", "p99", MILLISECONDS),
    Column("peak", "Peak memory", "Peak", MEGABYTES),
    Column("energy", "Energy per inference", "Energy", MILLIJOULES),
)
THROUGHPUT = Column("throughput", "Throughput", "Rate", SAMPLES_PER_S)
MEMORY_SHARES = (
    Column("pss", "Proportional memory (PSS)", "PSS", MEGABYTES),
    Column("private", "Private memory", "Private", MEGABYTES),
    Column("private_dirty", "Private memory, written to", "Dirty", MEGABYTES),
    Column("gpu_shared", "Memory shared with the GPU", "GPU", MEGABYTES),
)
DETAIL_COLUMNS = (
    Column("f1_macro", "F1 (macro)", "F1", PROPORTION),
    Column("load", "Load time", "Load", MILLISECONDS),
    Column("first", "First inference", "First", MILLISECONDS),
    Column("steady", "Steady memory", "Steady", MEGABYTES),
    *MEMORY_SHARES,
    Column("power", "Power under load", "Power", WATTS),
    Column("net_energy", "Energy net of idle", "Net", MILLIJOULES),
)
SUMMARY_COLUMNS = tuple(column for column in COLUMNS if column.key != "p99")
_ALL_COLUMNS = (*COLUMNS, THROUGHPUT, *DETAIL_COLUMNS)
_PER_SAMPLE = "per sample"


@dataclass(frozen=True)
class Row:
    """One run, or one student of a bundle, with its figures by column key.

    Attributes:
        key: Unique within the report: the run id, or the bundle's name and the student.
        label: File name of the artifact, or the student's role.
        format: ``onnx``, ``tflite`` or ``torch``.
        precision: ``int8`` or ``float32``; empty where the record does not say.
        device: Name of the device; empty for a student that was not benched.
        board: As the device names it; empty where it does not.
        cpu: Likewise.
        place: The device's name, with board and CPU where the report has another device of that name.
        scenario: ``single-stream`` or ``offline``; empty for a student that was not benched.
        batch_size: Samples in one timed call of ``offline``; None of all else.
        runtime: Name, version and provider or delegate.
        threads: Intra-op threads; None for a student that was not benched.
        verdict: Of the run; empty for a student.
        verdict_reasons: In plain words.
        cells: Figures by column key.
    """

    key: str
    label: str
    format: str
    precision: str
    device: str
    board: str
    cpu: str
    place: str
    scenario: str
    batch_size: int | None
    runtime: str
    threads: int | None
    verdict: str
    verdict_reasons: tuple[str, ...]
    cells: Mapping[str, Cell] = field(repr=False)

    @property
    def is_offline(self) -> bool:
        """Whether its latencies are those of batches, while its energy is that of a sample."""
        return self.scenario == OFFLINE

    @property
    def call(self) -> str:
        """What one latency is of."""
        return _batch(self.batch_size) if self.is_offline else "inference"

    @property
    def calls(self) -> str:
        """The same of several."""
        return _batches(self.batch_size) if self.is_offline else "inferences"


def columns_of(rows: Sequence[Row]) -> tuple[Column, ...]:
    """``COLUMNS``; with ``offline`` among the rows also throughput, and energy by sample, which an inference is too."""
    if not any(row.is_offline for row in rows):
        return COLUMNS
    columns = []
    for column in COLUMNS:
        columns.append(replace(column, title="Energy per sample") if column.key == "energy" else column)
        if column.key == "p99":
            columns.append(THROUGHPUT)
    return tuple(columns)


def table(runs: Runs) -> tuple[Row, ...]:
    """One row a run, in the order of ``runs``, with the cells of every column."""
    names = Counter(name for name, _, _ in {identity(run.record) for run in runs.runs})
    return tuple(_run_row(run, is_told_apart=names[run.record.device] > 1) for run in runs.runs)


def summary_rows(runs: Runs) -> tuple[Row, ...]:
    """The students in torch (float, int8), then every artifact: what the demo prints at its end.

    A student that was benched in torch has its run's row; one that was not has its manifest's.
    """
    benched = {run.record.artifact_sha256 for run in runs.runs if run.record.artifact.get("format") == "torch"}
    students: list[Row] = []
    for trained in runs.trained:
        files = _part(trained.manifest, "files")
        roles = [role for role, name in _WEIGHTS.items() if _part(files, name).get("sha256") not in benched]
        students += student_rows(trained, roles)
    rows = [*students, *table(runs)]
    # Among the students the float one first, as it came first.
    return tuple(
        sorted(rows, key=lambda row: (row.format != "torch", row.format == "torch" and row.precision == "int8"))
    )


def student_rows(trained: Trained, roles: Sequence[str] = ("student_float", "student_int8")) -> tuple[Row, ...]:
    """Rows of a bundle's networks in torch: accuracy from its manifest; what was not measured says why."""
    rows = []
    for role in roles:
        metrics = _part(trained.manifest, "metrics").get(role)
        facts = metrics if isinstance(metrics, Mapping) else {}
        reason = f"the bundle's manifest has no metrics of {role}"
        cells = {
            **score_cells(facts, reason),
            "size": _student_size(trained, role),
        }
        for column in _ALL_COLUMNS:
            cells.setdefault(column.key, missing(column.unit, _NOT_BENCHED))
        rows.append(_student_row(trained, role, cells))
    return tuple(rows)


def _student_size(trained: Trained, role: str) -> Cell:
    """Of the weights as the bundle stores them."""
    name = _WEIGHTS.get(role)
    if name is None:
        return missing(MEGABYTES, "the bundle holds the student's weights alone")
    entry = _part(_part(trained.manifest, "files"), name)
    reason = f"the manifest does not list {name}"
    return single(entry.get("size_bytes"), MEGABYTES, reason, why=f"exact ({name})")


def _student_row(trained: Trained, role: str, cells: Mapping[str, Cell]) -> Row:
    version = _part(trained.manifest, "versions").get("torch")
    return Row(
        key=f"{trained.path}:{role}",
        label=_LABELS.get(role, role),
        format="torch",
        precision="int8" if role == "student_int8" else "float32",
        device="",
        board="",
        cpu="",
        place="",
        scenario="",
        batch_size=None,
        runtime=plain(f"torch {version}" if version else "torch"),
        threads=None,
        verdict="",
        verdict_reasons=(),
        cells=cells,
    )


def _run_row(run: Run, *, is_told_apart: bool) -> Row:
    record = run.record
    runtime = record.runtime
    device, board, cpu = map(plain, identity(record))
    machine = ", ".join(filter(None, (board, cpu)))
    engine = [str(runtime[key]) for key in ("name", "version") if runtime.get(key)]
    provider = next((runtime[key] for key in ("provider", "delegate") if runtime.get(key)), None)
    return Row(
        key=record.run_id,
        label=(_LABELS.get(str(record.artifact.get("role"))) or plain(_file_name(record))) + _in_batches(record),
        format=plain(record.artifact.get("format") or record.request.get("format") or ""),
        precision=plain(record.artifact.get("precision") or ""),
        device=device,
        board=board,
        cpu=cpu,
        place=f"{device} ({machine})" if is_told_apart and machine else device,
        scenario=scenario(record),
        batch_size=batch_size(record),
        runtime=plain(" ".join(engine) + (f" ({provider})" if provider else "")),
        threads=record.threads,
        verdict=record.verdict,
        verdict_reasons=tuple(plain(reason) for reason in record.verdict_reasons),
        cells=_run_cells(run),
    )


def _in_batches(record: RunRecord) -> str:
    """Beside the name of an ``offline`` run, whose latencies are those of batches; empty of any other."""
    return f" in {_batches(batch_size(record))}" if scenario(record) == OFFLINE else ""


def _of_a_batch(record: RunRecord) -> str | None:
    """What is said beside every latency of ``offline``."""
    return f"of one {_batch(batch_size(record))}" if scenario(record) == OFFLINE else None


def _batch(size: int | None) -> str:
    return "batch" if size is None else f"batch of {size}"


def _batches(size: int | None) -> str:
    return "batches" if size is None else f"batches of {size}"


def _file_name(record: RunRecord) -> str:
    return PurePosixPath(str(record.artifact.get("path") or record.artifact_sha256[:12])).name


def _run_cells(run: Run) -> dict[str, Cell]:
    record = run.record
    latency, memory, why = record.latency_s, record.memory_bytes, partial(_reason, run)
    of_a_batch = _of_a_batch(record)
    starts = f"{record.starts} starts" if record.starts > 1 else None
    intervals = latency.get("ci95") or {}
    cells = {
        key: recorded(
            latency.get(key),
            MILLISECONDS,
            latency.get("n"),
            intervals.get(key),
            why(f"latency_s.{key}", "latency_s"),
            no_interval=why(f"latency_s.ci95.{key}"),
            note=_noted(of_a_batch, starts),
        )
        for key in ("p50", "p90", "p99")
    }
    cells["throughput"] = _throughput(run, starts)
    cells |= _scores(run)
    cells["size"] = single(record.artifact.get("size_bytes"), MEGABYTES, why("artifact.size_bytes"), why=_EXACT)
    median, largest = (_MEDIAN, _LARGEST) if record.starts > 1 else (_ONE_PROCESS, _ONE_PROCESS)
    for name, key in (("load", "load_s"), ("first", "first_inference_s")):
        cells[name] = single(getattr(record, key), MILLISECONDS, why(key), why=median, n=record.starts)
    cells["first"] = replace(cells["first"], note=of_a_batch)
    for key in ("peak", "steady", *(column.key for column in MEMORY_SHARES)):
        reason = why(f"memory_bytes.{key}", "memory_bytes") or (_JETSON_ALONE if key == "gpu_shared" else None)
        cells[key] = single(memory.get(key), MEGABYTES, reason, why=largest, n=record.starts)
    return cells | _power(run)


def _throughput(run: Run, starts: str | None) -> Cell:
    """Samples per second of ``offline``; n counts its batches."""
    rate, why = run.record.throughput or {}, partial(_reason, run)
    reason = why("throughput.samples_per_s", "throughput")
    if scenario(run.record) != OFFLINE:
        reason = reason or _OFFLINE_ALONE
    return recorded(
        rate.get("samples_per_s"),
        SAMPLES_PER_S,
        rate.get("batches"),
        rate.get("ci95"),
        reason,
        no_interval=why("throughput.ci95"),
        note=starts,
    )


def _scores(run: Run) -> dict[str, Cell]:
    """Accuracy and F1 on the device; else those of the parity record, said to be the host's."""
    record, why = run.record, partial(_reason, run)
    found = record.accuracy or {}
    if is_number(found.get("accuracy")) or is_number(found.get("exact_match")):
        return score_cells(found, why("accuracy.f1_macro", "f1_macro", "accuracy"))
    if run.parity is not None:
        parity = run.parity.document["parity"]
        scores = parity.get("scores_artifact") or {"n": parity.get("n"), "accuracy": parity.get("accuracy_artifact")}
        return score_cells(scores, "not in the parity record", note=HOST_NOTE)
    given = why("accuracy")
    absent = "no accuracy in the record and no parity record of this artifact beside it"
    return score_cells({}, f"{given}; {absent}" if given else absent)


def _power(run: Run) -> dict[str, Cell]:
    """Watts under load, joules per inference (of ``offline`` per sample); n counts the sensor's readings under load."""
    record = run.record
    power = record.power or {}
    inside = _part(power, "reasons")
    is_offline = scenario(record) == OFFLINE
    notes = power_notes(power, "samples" if is_offline else "inferences")
    figures = {
        "power": (record.power_w, WATTS, "power_w", "load_w"),
        "energy": (record.energy_j_per_inference, MILLIJOULES, "energy_j_per_inference", "gross_j_per_inference"),
        "net_energy": (power.get("net_j_per_inference"), MILLIJOULES, "net_j_per_inference", "net_j_per_inference"),
    }
    cells = {}
    for key, (value, unit, name, inner) in figures.items():
        given = _reason(run, name, f"power.{inner}", "energy_j_per_inference", "power_w", "power")
        reason = plain(inside[inner]) if inside.get(inner) else given
        cell = recorded(value, unit, _readings(power), power.get(f"{inner}_ci95"), reason)
        error = power.get("net_error_j_per_inference")
        extra = [f"idle drift alone: ±{unit.text(float(error))}"] if key == "net_energy" and is_number(error) else []
        of_what = [_PER_SAMPLE] if is_offline and key != "power" else []
        cells[key] = replace(cell, note=_noted(*of_what, *notes, *extra))
    return cells


def _readings(power: Mapping[str, Any]) -> int | None:
    """New values of the sensor in the window under load; else its readings there; all where they bear no time."""
    if is_number(power.get("readings")):
        return int(power["readings"])
    samples = power.get("samples")
    if not isinstance(samples, list):
        return None
    timed = [sample[0] for sample in samples if isinstance(sample, list) and sample and is_number(sample[0])]
    window_s = power.get("window_s")
    return sum(0 <= at_s <= window_s for at_s in timed) if timed and is_number(window_s) else len(samples)


def _reason(run: Run, *keys: str) -> str | None:
    """The first reason that the record gives under one of some keys, or None."""
    for key in keys:
        if run.record.unmeasured.get(key):
            return plain(run.record.unmeasured[key])
    return None


def _noted(*notes: str | None) -> str | None:
    return " · ".join(note for note in notes if note) or None


def _part(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = document.get(key)
    return part if isinstance(part, Mapping) else {}


def rows_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain values: SI units; null where unmeasured, the reason beside it."""
    return [
        {
            "key": row.key,
            "label": row.label,
            "format": row.format,
            "precision": row.precision,
            "device": row.device or None,
            "board": row.board or None,
            "cpu": row.cpu or None,
            "scenario": row.scenario or None,
            "batch_size": row.batch_size,
            "runtime": row.runtime,
            "threads": row.threads,
            "verdict": row.verdict or None,
            "figures": {
                key: {
                    "value": cell.value,
                    "n": cell.n,
                    "ci95": None if cell.interval is None else list(cell.interval),
                    "reason": cell.reason,
                    "note": cell.note,
                }
                for key, cell in row.cells.items()
            },
        }
        for row in rows
    ]

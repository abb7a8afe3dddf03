"""Cells: artifacts × devices × runtimes × threads; which of them exist, and which are measured already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kdedge._version import __version__
from kdedge.errors import UserError
from kdedge.files import read_json
from kdedge.reporting.check import looks_like_record, parse_record

from kdedge_agent.protocol import ProtocolError
from kdedge_agent.run_record import RunRecord
from kdedge_agent.run_request import RunRequest
from kdedge_agent.runtimes import RUNTIMES
from kdedge_bench.artifact_file import ArtifactFile, check_artifact
from kdedge_bench.devices import Device
from kdedge_bench.meters import find_meter
from kdedge_bench.session import run_request

#: Of a request, what does not change what is measured, or is compared by itself.
_NO_CONDITIONS = {"artifact", "wait_s", "runtime"}
#: What a meter's own rate decides.
_OF_A_METER = {"external_meter", "power_window_s", "idle_s"}


@dataclass(frozen=True)
class Cell:
    """One measurement of a matrix.

    Attributes:
        artifact: What is measured.
        device: Where.
        runtime: By what; None takes the first that is there.
        threads: Of the runtime.
    """

    artifact: ArtifactFile
    device: Device
    runtime: str | None
    threads: int

    @property
    def label(self) -> str:
        """What is measured by what, in one line, without the device."""
        return ", ".join(filter(None, (self.artifact.path.name, self.runtime, self.threads_text)))

    @property
    def threads_text(self) -> str:
        """Their number in words."""
        return f"{self.threads} thread{'' if self.threads == 1 else 's'}"


@dataclass(frozen=True)
class LeftOut:
    """Cells that do not exist: how many, and why."""

    count: int
    reason: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.count} cell{'' if self.count == 1 else 's'} left out: {self.reason}"


def cells_of(
    artifacts: Sequence[Path], devices: Sequence[Device], runtimes: Sequence[str | None], threads: Sequence[int]
) -> tuple[list[Cell], list[LeftOut]]:
    """The cells of a matrix, those of an artifact together, and those that were left out.

    Raises:
        ArtifactError: a file that cannot be measured.
        UserError: an unknown runtime (the nearest is named), or no cell at all.
    """
    _check_runtimes(runtimes)
    size = len(devices) * len(threads)
    files: dict[str, ArtifactFile] = {}
    cells: list[Cell] = []
    left_out: list[LeftOut] = []
    for path in artifacts:
        artifact = check_artifact(path)
        same = files.setdefault(artifact.remote_file, artifact)
        if same is not artifact:
            left_out.append(LeftOut(size * len(runtimes), f"{path} is the same file as {same.path}"))
            continue
        for runtime in runtimes:
            if runtime is not None and runtime not in RUNTIMES[artifact.format]:
                left_out.append(LeftOut(size, f"{runtime} opens no {artifact.format} ({path})"))
                continue
            cells += [Cell(artifact, device, runtime, count) for device in devices for count in threads]
    if not cells:
        reasons = "; ".join(entry.reason for entry in left_out)
        raise UserError(f"nothing is left to measure: {reasons}", cure="Name a runtime of the artifact's format")
    return cells, left_out


def _check_runtimes(runtimes: Sequence[str | None]) -> None:
    known = [name for names in RUNTIMES.values() for name in names]
    for runtime in runtimes:
        if runtime is not None and runtime not in known:
            near = get_close_matches(runtime, known, 1, 0.4)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(f"no runtime {ascii(runtime)[:80]}", cure=f"{hint}Known are {', '.join(known)}")


def request_of(cell: Cell, wishes: Mapping[str, Any]) -> RunRequest:
    """What will be asked of the cell's device, but for the artifact's path there.

    Args:
        cell: Which.
        wishes: As ``session.bench`` takes them; what is no matter of the request is passed over.

    Raises:
        UserError: a wish that cannot be met.
    """
    known = {field.name for field in fields(RunRequest)}
    asked = {key: value for key, value in wishes.items() if key in known}
    return run_request(cell.artifact, runtime=cell.runtime, threads=cell.threads, **asked)


def measured_already(
    cells: Sequence[Cell], folder: Path, wishes: Mapping[str, Any], *, scored: Mapping[str, str]
) -> dict[Cell, RunRecord]:
    """The newest record of each cell that was measured under the same conditions before.

    The same are the artifact's hash, the device's name, address and interpreter, runtime, threads, version of kdedge,
    data of the accuracy, meter, and all of the request but how long it may wait; a cell without a runtime's name was
    measured without one.

    Args:
        cells: Of the matrix.
        folder: Of the records; what is none in it is passed over.
        wishes: As ``session.bench`` takes them.
        scored: SHA-256 of an artifact -> that of the samples and labels that its accuracy is to be measured on; absent
            where it is not.

    Raises:
        UserError: the folder cannot be read, or a wish cannot be met.
    """
    found: dict[Cell, RunRecord] = {}
    records = list(_records(folder)) if folder.is_dir() else []
    meter = _meter_of(wishes)
    for cell in cells:
        asked = request_of(cell, wishes)
        for record in records:
            if _is_of(record, cell, asked, meter=meter, data=scored.get(asked.artifact_sha256)):
                found[cell] = max(found.get(cell, record), record, key=lambda each: (each.created_at, each.run_id))
    return found


def _records(folder: Path) -> Iterator[RunRecord]:
    for file in sorted(folder.glob("*.json")):
        record = _record(file)
        if record is not None:
            yield record


def _record(file: Path) -> RunRecord | None:
    """None of what this kdedge cannot read as a record: its cell is measured again."""
    try:
        document = read_json(file)
        return parse_record(document) if looks_like_record(document) else None
    except (UserError, ProtocolError):
        return None


def _meter_of(wishes: Mapping[str, Any]) -> tuple[str, float | None] | None:
    """Name and accuracy of the meter; None where none is named."""
    meter = wishes.get("meter")
    if meter is None:
        return None
    return (find_meter(meter) if isinstance(meter, str) else meter).name, wishes.get("meter_accuracy")


def _is_of(
    record: RunRecord, cell: Cell, asked: RunRequest, *, meter: tuple[str, float | None] | None, data: str | None
) -> bool:
    read_by = (record.power or {}).get("meter") or {}
    metered = meter is not None
    runtimes = (record.request.get("runtime"), record.runtime.get("name")) if cell.runtime else ()
    return (
        record.artifact_sha256 == cell.artifact.sha256
        and (record.device, record.device_sha256) == (cell.device.name, cell.device.sha256)
        and record.versions.get("kdedge") == __version__
        and (cell.runtime in runtimes if cell.runtime else record.request.get("runtime") is None)
        and (data is None or ((record.accuracy or {}).get("data") or {}).get("sha256") == data)
        and bool(record.request.get("external_meter")) == metered
        and (meter is None or (read_by.get("name"), read_by.get("accuracy")) == meter)
        and _conditions(record.request, metered) == _conditions(asked.to_dict(), metered)
    )


def _conditions(request: Mapping[str, Any], metered: bool) -> dict[str, Any]:
    """The settings that matter; one that an older record does not have yet was at its default."""
    defaults = {field.name: field.default for field in fields(RunRequest) if field.default is not MISSING}
    passed_over = _NO_CONDITIONS | _OF_A_METER if metered else _NO_CONDITIONS
    return {key: value for key, value in {**defaults, **request}.items() if key not in passed_over}

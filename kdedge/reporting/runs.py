"""Run records from files and folders, and what lies beside them: bundle manifests and parity records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge.errors import UserError
from kdedge.files import read_json
from kdedge.reporting.check import is_number, looks_like_record, parse_record
from kdedge.reporting.conditions import OFFLINE, identity, scenario
from kdedge_agent.protocol import ProtocolError
from kdedge_agent.run_record import RunRecord

DEFAULT_RUNS = Path("runs")
_PARITY_SUFFIX = ".parity.json"
_MANIFEST = "manifest.json"
_MEASURE = "kdedge bench ARTIFACT measures one and stores its record"


@dataclass(frozen=True)
class Parity:
    """What export found about an artifact on the host.

    Attributes:
        path: Of the parity record.
        sha256: Of the artifact it speaks of.
        document: The record as written.
    """

    path: Path
    sha256: str
    document: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """What a bundle's manifest says of training, with the folder's weight files.

    Attributes:
        path: Folder of the bundle.
        manifest: The manifest as written; any part may be absent.
    """

    path: Path
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One record with what was found beside it.

    Attributes:
        path: Of the record's file.
        record: The record.
        parity: Of the same artifact (joined by SHA-256), or None.
    """

    path: Path
    record: RunRecord
    parity: Parity | None


@dataclass(frozen=True)
class Runs:
    """Everything one report is made of; ``runs`` by device, scenario, runtime, artifact, time."""

    runs: tuple[Run, ...]
    trained: tuple[Trained, ...] = ()


def load_runs(paths: Path | str | Sequence[Path | str] = ()) -> Runs:
    """Read run records and what lies beside them.

    Args:
        paths: Files (each a run record) or folders (searched with their sub-folders); none means ``runs/``.

    Raises:
        UserError: a path that is missing, a file that is no record or a damaged one (named, with the reason),
            a folder without any record, two different records of one run id.
    """
    given = [paths] if isinstance(paths, (str, Path)) else paths
    records: dict[Path, RunRecord] = {}
    parities: dict[str, Parity] = {}
    trained: dict[Path, Trained] = {}
    for path in [Path(p) for p in given] or [DEFAULT_RUNS]:
        if path.is_dir():
            beside: Iterable[Path] = _json_files(path)
            found = _records_in(path, beside)
        elif path.exists():
            found = {path.resolve(): _record(path, read_json(path))}
            beside = _beside(path)
        else:
            raise UserError("no such file or folder", where=path, cure=_MEASURE)
        records.update(found)
        for file in beside:
            if file.name.endswith(_PARITY_SUFFIX):
                parity = _parity(file)
                parities[parity.sha256] = parity
            elif file.name == _MANIFEST and (bundle := _trained(file)) is not None:
                trained[file.parent.resolve()] = bundle
    runs = [Run(path, record, parities.get(record.artifact_sha256)) for path, record in _unique(records).items()]
    return Runs(tuple(sorted(runs, key=_order)), tuple(trained[path] for path in sorted(trained)))


def _order(run: Run) -> tuple[tuple[str, str, str], bool, str, str, str, str]:
    record = run.record
    return (
        identity(record),
        scenario(record) == OFFLINE,
        str(record.runtime.get("name")),
        str(record.artifact.get("path")),
        record.created_at,
        record.run_id,
    )


def _records_in(folder: Path, files: Iterable[Path]) -> dict[Path, RunRecord]:
    records = {}
    for file in files:
        if file.name == _MANIFEST or file.name.endswith(_PARITY_SUFFIX):
            continue
        document = read_json(file)
        if looks_like_record(document):
            records[file.resolve()] = _record(file, document)
    if not records:
        raise UserError("no run record in this folder", where=folder, cure=_MEASURE)
    return records


def _json_files(folder: Path) -> list[Path]:
    """JSON files below a folder; hidden ones (half-written, caches) and what belongs to a bundle are left out."""
    files = [
        file
        for file in sorted(folder.rglob("*.json"))
        if not any(part.startswith(".") for part in file.relative_to(folder).parts) and file.is_file()
    ]
    owned = {path for file in files if file.name == _MANIFEST for path in _owned(file)}
    return [file for file in files if file not in owned or _is_record(file)]


def _owned(manifest: Path) -> list[Path]:
    """The files that a bundle's manifest lists: read by who opens the bundle, not here."""
    bundle = _trained(manifest)
    names = bundle.manifest.get("files") if bundle is not None else None
    return [manifest.parent / name for name in names if name != _MANIFEST] if isinstance(names, Mapping) else []


def _is_record(file: Path) -> bool:
    """Whether a file holds a run record, where one that holds nothing readable is no error."""
    try:
        return looks_like_record(read_json(file))
    except UserError:
        return False


def _beside(file: Path) -> list[Path]:
    """Where a single record's bundle and parity records lie: its own folder and the one above."""
    found = []
    for folder in (file.resolve().parent, file.resolve().parent.parent):
        found += sorted(folder.glob(f"*{_PARITY_SUFFIX}"))
        found += [path for path in (folder / "bundle" / _MANIFEST,) if path.exists()]
    return found


def _record(path: Path, document: Any) -> RunRecord:
    if not looks_like_record(document):
        raise UserError("not a run record (no run_id)", where=path, cure=f"Name a run's file or folder; {_MEASURE}")
    try:
        return parse_record(document)
    except ProtocolError as error:
        raise UserError(
            f"not a run record that this kdedge can read: {error}", where=path, cure="Measure again, or leave it out"
        ) from None


def _parity(path: Path) -> Parity:
    document = read_json(path)
    parity = document.get("parity") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(document.get("sha256"), str) or not isinstance(parity, dict):
        raise UserError("not a parity record", where=path, cure="Export again: kdedge export BUNDLE --format ...")
    for key in ("n", "agreement", "accuracy_student", "accuracy_artifact"):
        if parity.get(key) is not None and not is_number(parity[key]):
            raise UserError(f"parity record: {key!r} is no number", where=path, cure="Export again")
    return Parity(path, document["sha256"], document)


def _trained(path: Path) -> Trained | None:
    """The bundle of a manifest; None for a manifest of something else."""
    document = read_json(path)
    if not isinstance(document, dict) or not {"metrics", "recipe", "bundle_id"} & set(document):
        return None
    return Trained(path.parent, document)


def _unique(records: Mapping[Path, RunRecord]) -> dict[Path, RunRecord]:
    """The records without copies of one and the same; two that differ under one run id are refused."""
    seen: dict[str, Path] = {}
    for path, record in records.items():
        other = seen.setdefault(record.run_id, path)
        if records[other] != record:
            raise UserError(
                f"two different records of one run id {record.run_id!r}",
                where=f"{other} and {path}",
                cure="Leave one of them out",
            )
    return {path: records[path] for path in seen.values()}

"""What decides the outcome of each stage of a run, as one hash: a later run may take over a stage of the same hash."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from kdedge.bundle import library_versions
from kdedge.files import sha256_file
from kdedge.recipe import DistillRecipe, told
from kdedge.text import PACKAGE
from kdedge.training.objective import Objective


def stage_hashes(
    recipe: DistillRecipe, fingerprint: str, teacher: str | None, device: str, *, versions: bool = True
) -> dict[str, str]:
    """Stage -> hash of all that decides what it trains: its keys, the data, the libraries, and the stages before it.

    A run without a teacher to follow has no such stage, nor an assistant.

    Args:
        recipe: Of the run.
        fingerprint: Of its data.
        teacher: ``--teacher``.
        device: ``cpu`` or ``cuda``, whose sums differ.
        versions: Whether those of the libraries count; a run that is resumed may go on with others.
    """
    given = [_content(spec) for spec in (teacher, recipe.teacher.model, recipe.text.tokenizer)]
    # The fingerprint has the samples, but neither the size that streamed ones are decoded to nor their channels.
    data = dataclasses.replace(recipe.data, name="", loader_threads=0)
    sources = (fingerprint, data, recipe.augment, recipe.text, given)
    shared = (recipe.task, recipe.seed, *sources, device, library_versions() if versions else None)
    followed = Objective(recipe.distillation).needs_guides
    # A text student that learns alone still starts from the layers of the teacher's checkpoint.
    hashes = _of_teacher(recipe, shared) if followed else {}
    before = hashes.get("teacher") or _sha256(recipe.teacher.model)
    if followed and recipe.assistant is not None:
        assistant = recipe.assistant
        before = _sha256(*shared, assistant, _content(assistant.model), recipe.distillation, before)
        hashes["assistant"] = before
    hashes["student"] = _sha256(*shared, recipe.student, _content(recipe.student.model), recipe.distillation, before)
    hashes["qat"] = _sha256(hashes["student"], recipe.qat)
    return hashes


def _of_teacher(recipe: DistillRecipe, shared: tuple[Any, ...]) -> dict[str, str]:
    """The hashes of its generations, the last under ``teacher``; the first learns from labels alone."""
    first, *others = recipe.teacher.stages
    hashes = {first: _sha256(*shared, dataclasses.replace(recipe.teacher, generations=1))}
    for before, stage in zip([first, *others], others, strict=False):
        hashes[stage] = _sha256(hashes[before], recipe.distillation)
    return hashes


def _sha256(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([told(part) for part in parts], sort_keys=True).encode()).hexdigest()


def _content(spec: str | None) -> str | None:
    """A net or tokenizer by what it holds: files, the module of a user's function, a package's version.

    Names of nets and of the Hub stand for themselves; what a user's module imports goes unseen.
    """
    path = Path(spec).expanduser() if spec else None
    if spec is None or path is None:
        return spec
    if path.exists():
        files = sorted(found for found in (path.rglob("*") if path.is_dir() else [path]) if found.is_file())
        return _sha256(*(sha256_file(file) for file in files))
    if spec.startswith(PACKAGE):
        with suppress(metadata.PackageNotFoundError):
            return _sha256(spec, metadata.version(spec.removeprefix(PACKAGE)))
    elif ":" in spec:
        with suppress(ImportError, ValueError):  # what cannot be found is said where it is loaded
            module = importlib.util.find_spec(spec.partition(":")[0])
            if module is not None and module.origin is not None and Path(module.origin).is_file():
                return _sha256(spec, sha256_file(Path(module.origin)))
    return spec

"""Bundle: training's output. A folder with a manifest, safetensors weights, quantised state; no pickle.

It loads without the training data. Every file's SHA-256 stands in the manifest, so that a damaged, truncated or
foreign bundle is refused with the file and the reason.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge._version import __version__
from kdedge.errors import BundleError, KdedgeError
from kdedge.files import read_json, sha256_file, write_atomic, write_json, write_tensors
from kdedge.inputs import InputSpec, examples, output_count
from kdedge.recipe import Activations, DistillRecipe
from kdedge.recipe_file import recipe_from_dict

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.fx import GraphModule

    from kdedge.examples import Preprocessing
    from kdedge.quantize import WidenedScale

FORMAT = "kdedge-bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
FLOAT_WEIGHTS = "student.safetensors"
INT8_STATE = "student-int8.safetensors"
QUANTISATION = "quantisation.json"
REQUIRED: dict[str, type] = {
    "task": str,
    "model": str,
    "recipe": dict,
    "recipe_sha256": str,
    "versions": dict,
    "data": dict,
    "labels": list,
    "preprocessing": dict,
    "files": dict,
}
"""What every manifest has."""
RENEW = "Copy the bundle anew, or train it again"
LIBRARIES = ("torch", "torchvision", "torchao", "numpy", "safetensors")


def library_versions() -> dict[str, str]:
    """Versions of Python, kdedge and the libraries that decide a training's outcome."""
    versions = {"python": ".".join(map(str, sys.version_info[:3])), "kdedge": __version__}
    return versions | {name: importlib.metadata.version(name) for name in LIBRARIES}


def write_bundle(
    folder: Path,
    *,
    recipe: DistillRecipe,
    student: nn.Module,
    prepared: GraphModule | None,
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
    data: dict[str, Any],
    results: dict[str, Any],
) -> Bundle:
    """Write a bundle: into a folder beside the target first, renamed when it is whole.

    Args:
        folder: Where it goes; a bundle already there is replaced.
        recipe: What was asked.
        student: The float student.
        prepared: The student after QAT; None for a float bundle.
        labels: Names of the classes, by index.
        preprocessing: Samples -> the student's inputs.
        data: Source, fingerprint and counts of the data.
        results: ``metrics``, ``time_s``, ``energy_j``, ``unmeasured`` of the run.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    from kdedge import quantize

    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        write_tensors(part / FLOAT_WEIGHTS, student.state_dict())
        names = [FLOAT_WEIGHTS]
        for name, text in preprocessing.files().items():
            write_atomic(part / name, text)
            names.append(name)
        quantisation: dict[str, Any] = {}
        if prepared is not None:
            write_tensors(part / INT8_STATE, quantize.quantised_state(prepared))
            converted = quantize.convert(prepared)
            write_json(part / QUANTISATION, [dataclasses.asdict(q) for q in quantize.qparams(converted)])
            names += [INT8_STATE, QUANTISATION]
            quantisation = {
                "float_ops": [dataclasses.asdict(op) for op in quantize.float_ops(converted)],
                "integer_macs_share": quantize.integer_macs_share(converted),
                "widened_scales": [dataclasses.asdict(scale) for scale in quantize.widened_scales(prepared)],
            }
        files = {
            name: {"sha256": sha256_file(part / name), "size_bytes": (part / name).stat().st_size} for name in names
        }
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "created_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "task": recipe.task,
            "model": recipe.student.model,
            "recipe": recipe.to_dict(),
            "recipe_sha256": recipe.sha256,
            "versions": library_versions(),
            "data": data,
            "labels": list(labels),
            "preprocessing": preprocessing.to_dict(),
            "inputs": [spec.to_dict() for spec in preprocessing.inputs],
            "net": describe() if callable(describe := getattr(student, "describe", None)) else None,
            "output": {"name": "logits", "kind": "logits", "classes": len(labels)},
            **quantisation,
            **results,
            "files": files,
        }
        write_json(part / MANIFEST, manifest)
        _replace(part, folder)
    except OSError as error:
        raise BundleError(f"cannot write the bundle: {error.strerror or error}", where=folder) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Bundle.load(folder)


def _replace(part: Path, folder: Path) -> None:
    """Rename ``part`` onto ``folder``; an older bundle steps aside first and goes last."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened and whose files are whole.

    Attributes:
        path: Its folder.
        manifest: All that is known of it, as plain values.
        recipe: What was asked.
        labels: Names of the classes, by index.
        preprocessing: Samples -> the student's inputs.
        calibration: Where it was quantised after training, here in memory (``calibrated``).
    """

    path: Path
    manifest: dict[str, Any]
    recipe: DistillRecipe
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    calibration: Calibration | None = None
    _prepared: list[GraphModule] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def load(cls, path: Path | str) -> Bundle:
        """Open a bundle and check every file against the manifest.

        Raises:
            BundleError: missing, foreign, of a newer format, damaged; names the file and the reason.
        """
        from kdedge.tasks import restore_preprocessing

        path = Path(path)
        manifest = _read_manifest(path)
        for name, entry in manifest["files"].items():
            _check_file(path, name, entry)
        try:
            recipe = recipe_from_dict(manifest["recipe"], where=path / MANIFEST)
            if manifest["task"] != recipe.task:
                raise BundleError(
                    f"damaged manifest: its task is '{manifest['task']}', the recipe's '{recipe.task}'",
                    where=path / MANIFEST,
                    cure=RENEW,
                )
            return cls(
                path,
                manifest,
                recipe,
                tuple(map(str, manifest["labels"])),
                restore_preprocessing(manifest["preprocessing"], _texts(path, manifest)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"damaged manifest: {error!r}", where=path / MANIFEST, cure=RENEW) from error

    @property
    def task(self) -> str:
        """The task, such as ``image-classification``."""
        return str(self.manifest["task"])

    @property
    def model_name(self) -> str:
        """The student's name."""
        return str(self.manifest["model"])

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What the student takes."""
        return self.preprocessing.inputs

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample of the first input: (channels, height, width) of an image."""
        return self.inputs[0].shape

    @property
    def bundle_id(self) -> str:
        """Hash over the recipe and every file: two bundles of one id are the same student."""
        parts = [
            self.manifest["recipe_sha256"],
            *(e["sha256"] for _, e in sorted(self.manifest["files"].items())),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def is_quantised(self) -> bool:
        """Whether the student went through QAT, or was quantised after training."""
        return self.calibration is not None or INT8_STATE in self.manifest["files"]

    @property
    def activations(self) -> Activations:
        """How its activations are quantised."""
        return self.recipe.qat.activations if self.calibration is None else self.calibration.activations

    def float_student(self) -> nn.Module:
        """The float student in eval mode, on the CPU.

        Raises:
            BundleError: the weights do not fit the net of this kdedge or of the user's module.
        """
        from kdedge.students import rebuild_student

        net = rebuild_student(self.recipe, output_count(self.labels), self.preprocessing, self.manifest.get("net"))
        try:
            net.load_state_dict(self._tensors(FLOAT_WEIGHTS))
        except RuntimeError as error:
            raise BundleError(
                f"the weights do not fit '{self.model_name}': {str(error).splitlines()[0]}", where=self.path
            ) from error
        return net.eval()

    def qat_student(self) -> GraphModule:
        """The student with its fake-quantisation, as QAT or calibration left it: a copy for every caller.

        torch.export follows the student once, however often it is asked for.

        Raises:
            BundleError: the bundle is float, or its quantised state does not fit this version of the libraries.
        """
        from kdedge import quantize

        return quantize.copied(self._prepared_once())

    def _prepared_once(self) -> GraphModule:
        if not self._prepared:
            self._prepared.append(self._prepare())
        return self._prepared[0]

    def _prepare(self) -> GraphModule:
        from kdedge import quantize

        if not self.is_quantised:
            raise BundleError(
                "this bundle holds a float student",
                where=self.path,
                cure="Train it with qat.training.epochs above 0, or export it with --calibrate 500",
            )
        example = examples(self.inputs, 2)
        prepared = quantize.prepare_qat(self.float_student(), example, activations=self.activations)
        state = self._tensors(INT8_STATE) if self.calibration is None else self.calibration.state
        try:
            quantize.load_quantised_state(prepared, state)
        except KdedgeError as error:
            was = self.manifest["versions"]
            raise BundleError(
                f"the quantised state does not fit: {error.what}",
                where=self.path / INT8_STATE,
                cure=f"Written with torch {was.get('torch')} and torchao {was.get('torchao')}: install those",
            ) from error
        return prepared

    def quantisation(self) -> dict[str, Any]:
        """How the int8 student came about.

        Returns:
            ``method``, ``activations``, ``calibration_samples`` (None after QAT), ``widened_scales`` (dictionaries of
            ``quantize.WidenedScale``; None where an older kdedge wrote the bundle).
        """
        made = self.calibration
        about = {"method": "qat" if made is None else "calibration", "activations": self.activations}
        if made is None:
            return {**about, "calibration_samples": None, "widened_scales": self.manifest.get("widened_scales")}
        widened = [dataclasses.asdict(scale) for scale in made.widened_scales]
        return {**about, "calibration_samples": made.samples, "widened_scales": widened}

    def calibrated(self, batches: Iterable[tuple[torch.Tensor, ...]], activations: Activations | None = None) -> Bundle:
        """This student quantised after training (PTQ): ranges from samples, weights as float training left them.

        Args:
            batches: The student's inputs, of training samples, batch by batch; at least one.
            activations: ``affine`` or ``symmetric``; None takes the recipe's.

        Returns:
            A bundle like this one, in memory, in place of whose QAT the calibration stands.
        """
        from kdedge import quantize

        chosen = activations or self.recipe.qat.activations
        prepared = quantize.prepare_qat(self.float_student(), examples(self.inputs, 2), activations=chosen)
        samples = 0

        def counted() -> Iterator[tuple[torch.Tensor, ...]]:
            nonlocal samples
            for batch in batches:
                samples += len(batch[0])
                yield batch

        quantize.set_fake_quantize(prepared, False)  # ranges of the float student, not of one half quantised
        quantize.calibrate(prepared, counted())
        quantize.set_fake_quantize(prepared, True)
        widened = tuple(quantize.widened_scales(prepared))
        calibration = Calibration(quantize.quantised_state(prepared), chosen, samples, widened)
        return dataclasses.replace(self, calibration=calibration)

    def int8_program(self) -> GraphModule:
        """The converted int8 program: images float32 [N, C, H, W] -> logits float32 [N, classes].

        Raises:
            BundleError: as ``qat_student``.
        """
        from kdedge import quantize

        return quantize.convert(self._prepared_once())

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.path / name)
        except (SafetensorError, OSError) as error:
            raise BundleError(f"cannot read the weights: {error}", where=self.path / name) from error


@dataclass(frozen=True)
class Calibration:
    """A student quantised after training.

    Attributes:
        state: As ``quantize.quantised_state`` gives it.
        activations: ``affine`` or ``symmetric``.
        samples: How many samples the ranges are from.
        widened_scales: As ``quantize.widened_scales`` gives them.
    """

    state: Mapping[str, torch.Tensor]
    activations: Activations
    samples: int
    widened_scales: tuple[WidenedScale, ...]


def _texts(path: Path, manifest: dict[str, Any]) -> dict[str, str]:
    """The bundle's text files, such as a tokenizer."""
    names = [name for name in manifest["files"] if name not in (FLOAT_WEIGHTS, INT8_STATE, QUANTISATION)]
    return {name: (path / name).read_text(encoding="utf-8") for name in names}


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        what = "a bundle is a folder, this is a file" if path.exists() else "no such bundle"
        raise BundleError(what, where=path, cure="`kdedge distill` writes one to OUT/bundle")
    try:
        manifest = read_json(path / MANIFEST)
    except KdedgeError as error:
        raise BundleError(f"no readable manifest: {error.what}", where=path / MANIFEST) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError("not a kdedge bundle", where=path / MANIFEST)
    version = manifest.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise BundleError(
            f"bundle of format version {version}, this kdedge reads up to {FORMAT_VERSION}",
            where=path,
            cure="Install the kdedge that wrote it, or a newer one",
        )
    for key, kind in REQUIRED.items():
        if not isinstance(manifest.get(key), kind):
            raise BundleError(
                f"damaged manifest: no '{key}' of type {kind.__name__}", where=path / MANIFEST, cure=RENEW
            )
    if FLOAT_WEIGHTS not in manifest["files"]:
        raise BundleError("damaged manifest: it names no weights", where=path / MANIFEST, cure=RENEW)
    return manifest


def _check_file(path: Path, name: str, entry: Any) -> None:
    if Path(name).name != name:
        raise BundleError(f"the manifest names a file outside the bundle: {name!r}", where=path / MANIFEST)
    kinds = {"size_bytes": int, "sha256": str}
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in kinds.items()):
        raise BundleError(f"damaged manifest: no size and hash of '{name}'", where=path / MANIFEST, cure=RENEW)
    file = path / name
    if not file.is_file():
        raise BundleError("a file of the bundle is missing", where=file)
    size, wanted = file.stat().st_size, entry["size_bytes"]
    if size != wanted:
        kind = "truncated" if size < wanted else "of the wrong size"
        raise BundleError(f"a file of the bundle is {kind}: {size} of {wanted} bytes", where=file)
    if sha256_file(file) != entry["sha256"]:
        raise BundleError("a file of the bundle is damaged: its SHA-256 is not the manifest's", where=file)

"""The JSON document inside every artifact, under the key ``kdedge``: labels, preprocessing, origin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdedge._version import __version__

if TYPE_CHECKING:
    from kdedge.bundle import Bundle
    from kdedge.recipe import DataRecipe

METADATA_KEY = "kdedge"
FORMAT_VERSION = 1
OUTPUT_NAME = "logits"
DYNAMIC = -1
"""In a shape: a dimension that the caller chooses."""


@dataclass(frozen=True)
class ArtifactInput:
    """One input as the file takes it.

    Attributes:
        name: Of the tensor.
        layout: ``NCHW``, ``NHWC``, ``NC`` or ``NL``.
        dtype: ``float32``, ``int8`` or ``int32``.
        shape: Of the tensor; -1 where the caller chooses.
    """

    name: str
    layout: str
    dtype: str
    shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**vars(self), "shape": list(self.shape)}


def describe(
    bundle: Bundle,
    precision: str,
    *,
    inputs: Sequence[ArtifactInput],
    output_shape: Sequence[int],
    float_ops: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """The document of one artifact.

    Args:
        bundle: Where it comes from.
        precision: ``int8`` or ``float32``.
        inputs: In the order of the bundle's. A file of one input also describes it under ``input``, where agents of
            older versions look.
        output_shape: Of the logits: [batch, classes], or [batch, 2, tokens] in question answering; -1 as above.
        float_ops: Ops that compute in float in this artifact (name, op, reason).
    """
    described = [entry.to_dict() for entry in inputs]
    return {
        "format_version": FORMAT_VERSION,
        "kdedge_version": __version__,
        "model": bundle.model_name,
        "precision": precision,
        "task": bundle.task,
        "labels": list(bundle.labels),
        "preprocessing": bundle.preprocessing.to_dict(),
        **_files(bundle),
        # How the data were split: whoever scores the file later gets the test images that training never saw.
        "splits": _splits(bundle.recipe.data),
        **({"input": described[0]} if len(described) == 1 else {}),
        "inputs": described,
        "output": {
            "name": OUTPUT_NAME,
            "kind": "logits",
            "classes": output_shape[1],
            "shape": list(output_shape),
        },
        "bundle_id": bundle.bundle_id,
        "quantisation": bundle.quantisation() if precision == "int8" else None,
        "float_ops": [dict(op) for op in float_ops],
    }


def _splits(data: DataRecipe) -> dict[str, Any]:
    """The recipe's keys that decide which samples are in a split, and their pixels; of some only what is set."""
    splits: dict[str, Any] = {
        "validation_fraction": data.validation_fraction,
        "test_fraction": data.test_fraction,
        "split_seed": data.split_seed,
    }
    if data.on_corrupt != "error":
        splits["on_corrupt"] = data.on_corrupt
    if data.streamed:
        splits["streamed"] = True
    return splits


def _files(bundle: Bundle) -> dict[str, dict[str, str]]:
    """What preprocessing needs beside its values, such as a tokenizer, packed; nothing for images."""
    from kdedge.text.tokenization import pack_tokenizer

    files = bundle.preprocessing.files()
    return {"files": {name: pack_tokenizer(text) for name, text in files.items()}} if files else {}


def encode(document: Mapping[str, Any]) -> str:
    """The document as it is stored: compact JSON, keys in the order given."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

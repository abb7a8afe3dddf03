"""The JSON document inside every artifact, under the key ``kdedge``: labels, preprocessing, origin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdedge._version import __version__

if TYPE_CHECKING:
    from kdedge.bundle import Bundle

METADATA_KEY = "kdedge"
FORMAT_VERSION = 1
INPUT_NAME, OUTPUT_NAME = "image", "logits"


def describe(
    bundle: Bundle,
    precision: str,
    *,
    layout: str,
    dtype: str,
    shape: Sequence[int],
    float_ops: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """The document of one artifact.

    Args:
        bundle: Where it comes from.
        precision: ``int8`` or ``float32``.
        layout: ``NCHW`` or ``NHWC``, of the input.
        dtype: Of the input tensor.
        shape: Of the input tensor; -1 where the caller chooses.
        float_ops: Ops that compute in float in this artifact (name, op, reason).
    """
    return {
        "format_version": FORMAT_VERSION,
        "kdedge_version": __version__,
        "model": bundle.model_name,
        "precision": precision,
        "task": bundle.task,
        "labels": list(bundle.labels),
        "preprocessing": bundle.preprocessing.to_dict(),
        # How the data were split: whoever scores the file later gets the test images that training never saw.
        "splits": {
            "validation_fraction": bundle.recipe.data.validation_fraction,
            "test_fraction": bundle.recipe.data.test_fraction,
            "split_seed": bundle.recipe.data.split_seed,
        },
        "input": {"name": INPUT_NAME, "layout": layout, "dtype": dtype, "shape": list(shape)},
        "output": {"name": OUTPUT_NAME, "kind": "logits", "classes": len(bundle.labels)},
        "bundle_id": bundle.bundle_id,
        "float_ops": [dict(op) for op in float_ops],
    }


def encode(document: Mapping[str, Any]) -> str:
    """The document as it is stored: compact JSON, keys in the order given."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

"""The parts that a source may have, by split, and which of them are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np
from torch import Tensor

SPLIT_NAMES = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}


def parts_for(split: str | None, there: Collection[str]) -> dict[str, str]:
    """Which parts of a source have to be decoded to get at one split, and what each is then called.

    All of them under their own names for None, and wherever the split has to be carved out of train. Public sets
    often keep the test labels to themselves: then their validation split serves as test.
    """
    if split == "test" and "test" in there:
        return {"test": "test"}
    if split == "test" and "validation" in there:
        return {"validation": "test"}
    if split == "validation" and {"validation", "test"} <= set(there):
        return {"validation": "validation"}
    return {part: part for part in there}


def digest(*tensors: Tensor) -> bytes:
    """SHA-256 over the bytes of tensors, one after another."""
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(np.ascontiguousarray(tensor.numpy()).data)
    return state.digest()

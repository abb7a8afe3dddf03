"""What a cache is the cache of: all that decides a teacher's logits, in plain words, and its hash.

The student, the loss and the epochs do not stand in it, nor how many views there are: view number 3 is the same in
every run of a seed. Code and libraries do not stand in it either; what they make of the samples does (``probe``), so
that an augmentation or a decoder that works otherwise than before has another key. Code of the user's own does, where a
teacher is made of it: what its ``forward`` computes is in no weight.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdedge.files import sha256_file
from kdedge.recipe import DistillationRecipe, DistillRecipe, told
from kdedge.teacher_cache.layout import Layout
from kdedge.training.feeds import Feed
from kdedge.training.material import Material
from kdedge.training.optimization import autocast_dtype

STAGE = "student"
"""The stage whose views are cached."""

PROBED_SAMPLES = 8

_LIBRARIES = ("kdedge", "torch", "torchvision", "transformers")


def layout_of(wish: DistillationRecipe, samples: int, classes: int) -> Layout:
    """The sizes of the cache that a recipe asks for; as many top logits as there are classes are all of them."""
    return Layout(samples, classes, wish.cache_top_k if wish.cache_top_k < classes else 0)


def made_of(
    recipe: DistillRecipe, material: Material, teacher: nn.Module, layout: Layout, device: str
) -> dict[str, Any]:
    """All that decides the logits.

    Args:
        recipe: Of the run.
        material: Its data.
        teacher: In eval mode, its weights loaded.
        layout: Of the cache.
        device: ``cpu`` or ``cuda``, where the teacher computes.

    Returns:
        Plain values, ready for JSON.
    """
    precision = autocast_dtype(recipe.distillation.teacher_precision, device)
    preprocessing = material.preprocessing
    stored: dict[str, Any] = {"dtype": "float16", "logits": "all"}
    if layout.top_k:  # the mass of the others is that at a temperature
        stored.update(logits=f"top {layout.top_k}", temperature=recipe.distillation.temperature)
    own_code = code_sha256(teacher)
    return {
        "teacher": {
            "weights_sha256": weights_sha256(teacher),
            "structure_sha256": structure_sha256(teacher),
            **({"code_sha256": own_code} if own_code else {}),
        },
        "teacher_precision": "float32" if precision is None else str(precision).removeprefix("torch."),
        "data": {"fingerprint": material.splits.fingerprint, "split": "train"},
        "preprocessing_sha256": _sha256([preprocessing.to_dict(), preprocessing.files()]),
        "image_size": material.feed.image_size,
        "views": {
            "seed": recipe.seed,
            "stage": STAGE,
            "augment": told(recipe.augment),
            "probe_sha256": probe(material.feed),
        },
        "stored": stored,
    }


def key_of(parts: dict[str, Any]) -> str:
    """SHA-256 of what ``made_of`` returns, hexadecimal."""
    return _sha256(parts)


def weights_sha256(net: nn.Module) -> str:
    """Over names, shapes, dtypes and values of the state dict, whatever the device or the layout in memory."""
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def structure_sha256(net: nn.Module) -> str:
    """Over the modules and their settings: the same weights with another stride are another teacher.

    Dropout is left out: in eval mode it does nothing.
    """
    modules = [(name, module) for name, module in net.named_modules() if not isinstance(module, nn.Dropout)]
    lines = [f"{name}: {type(m).__module__}.{type(m).__qualname__}({m.extra_repr()})" for name, m in modules]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def code_sha256(net: nn.Module) -> dict[str, str]:
    """Module -> hash of its file, of those that define the net's classes and are not of kdedge or its libraries.

    What these import goes unseen.
    """
    modules = {type(module).__module__ for module in net.modules()}
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in modules}
    return {
        name: sha256_file(Path(file))
        for name, file in sorted(files.items())
        if name.partition(".")[0] not in _LIBRARIES and file is not None and Path(file).is_file()
    }


def probe(feed: Feed) -> str:
    """SHA-256 of what the teacher would see of a few samples in view 0: of the very pixels or tokens."""
    count = min(PROBED_SAMPLES, len(feed))
    index = torch.arange(count) * (len(feed) // count)
    digest = hashlib.sha256()
    for batch in feed.batches(STAGE, 0, feed.image_size, [index], "cpu", guided=True):
        for tensor in batch.guide_inputs:
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

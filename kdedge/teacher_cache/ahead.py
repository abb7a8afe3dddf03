"""Building a cache without a run."""

from __future__ import annotations

from pathlib import Path

import torch

from kdedge.errors import ModelError, RecipeError
from kdedge.progress import Progress
from kdedge.recipe import DistillRecipe
from kdedge.teacher import find_teacher
from kdedge.teacher_cache.build import Built, build, open_cache
from kdedge.teacher_cache.root import cache_root
from kdedge.training.loop import place
from kdedge.training.material import load_material


def build_ahead(
    recipe: DistillRecipe, *, data: str | None, teacher: str | None, cache_dir: Path | None, progress: Progress
) -> tuple[Path, Built]:
    """Build what runs of the recipe with this teacher and data will replay.

    Args:
        recipe: Its ``distillation.cached_views`` says how many views.
        data: Overrides the recipe's data set.
        teacher: See ``find_teacher``; it must be trained.
        cache_dir: See ``cache_root``.
        progress: Shows the work.

    Returns:
        The cache's folder, and what was built.

    Raises:
        KdedgeError: bad recipe, data or teacher; a disk that is full.
    """
    if not recipe.distillation.cached_views:
        raise RecipeError("distillation.cached_views is 0: there are no views to cache", cure=_VIEWS)
    if recipe.assistant is not None:
        raise RecipeError("the student follows the recipe's assistant, which this does not train", cure=_ASSISTANT)
    material = load_material(recipe, data, teacher)
    found = find_teacher(teacher, recipe, material.splits, material.preprocessing)
    if found.to_train is not None:
        raise ModelError(f"the teacher '{found.name}' has to be trained first", cure=_TRAINED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = place(found.net, device).eval().requires_grad_(False)
    cache = open_cache(recipe, material, net, cache_root(cache_dir), device, name=found.name)
    try:
        return cache.folder, build(
            cache, recipe.distillation.cached_views, recipe, material.feed, net, device, progress
        )
    finally:
        cache.close()


_VIEWS = "Say how many, such as --set distillation.cached_views=4"
_ASSISTANT = "Let the run build its cache itself, when its assistant is trained"
_TRAINED = "Give --teacher the folder of one that a run trained (OUT/teacher), or let the run build its cache itself"

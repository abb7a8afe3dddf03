"""kdedge distill: teacher → softened logits (→ assistant) → float student → QAT → Bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kdedge.bundle import library_versions
from kdedge.data.splits import DataSplits
from kdedge.energy import EnergyMeter
from kdedge.errors import UserError
from kdedge.pipeline import Pipeline
from kdedge.progress import JsonLog, Progress, Silent
from kdedge.ranks import RankError, Ranks, joined
from kdedge.recipe import DistillRecipe
from kdedge.run_figures import DistillResult
from kdedge.run_folder import RunFolder
from kdedge.stage_hashes import stage_hashes
from kdedge.tasks import NOUNS
from kdedge.teacher_cache.root import cache_root
from kdedge.training.material import load_material
from kdedge.training.optimization import bfloat16_pays
from kdedge.training.stage import Setting


def distill(
    recipe: DistillRecipe,
    *,
    out: Path,
    data: str | None = None,
    teacher: str | None = None,
    student: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reuse: Path | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> DistillResult:
    """Train what the recipe says and write ``out/bundle``.

    Args:
        recipe: What to do.
        out: Folder of the run: bundle, teacher, checkpoints, log.
        data: Overrides the recipe's data set (``digits``, a folder, a Hub name).
        teacher: Overrides the recipe's teacher, see ``teacher.find_teacher``.
        student: Overrides the recipe's student: a name, or ``module:function``.
        resume: Go on with the run in ``out``; with a finished one, give its results again.
        overwrite: Start anew where ``out`` already holds a run.
        reuse: An earlier run: its stages that this one would train alike are copied, not trained again.
        cache_dir: Where caches lie that outlive the run, see ``teacher_cache.root.cache_root``.
        progress: Shows the run; silent by default.

    Returns:
        The bundle and the figures on the test split.

    Raises:
        KdedgeError: bad recipe, data or teacher; a disk that is full. What was trained up to then is kept.
        KeyboardInterrupt: the user stopped; ``resume`` goes on.
    """
    with joined() as ranks:
        progress = progress if progress is not None and ranks.writes else Silent()
        if student is not None:
            recipe = dataclasses.replace(recipe, student=dataclasses.replace(recipe.student, model=student))
        material = load_material(recipe, data, teacher)
        splits, preprocessing = material.splits, material.preprocessing
        identity = {"recipe_sha256": recipe.sha256, "data_fingerprint": splits.fingerprint, "teacher": teacher}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        made_of = stage_hashes(recipe, splits.fingerprint, teacher, device)
        contents = stage_hashes(recipe, splits.fingerprint, teacher, device, versions=False)
        _check_overwrite(out, overwrite=overwrite, resume=resume, needed={"--reuse": reuse, "--teacher": teacher})
        folder = RunFolder(
            out, identity, made_of, contents=contents, resume=resume, overwrite=overwrite, reads_only=not ranks.writes
        )
        with folder as run:
            with ranks.writer_first():
                run.begin()
                if resume and run.is_new:
                    progress.say(f"{out} holds no run yet: it begins anew")
                if reuse is not None and ranks.writes:
                    taken = ", ".join(run.take_over(reuse))
                    progress.say(f"taken from {reuse}: {taken or 'nothing, every stage would be trained otherwise'}")
            require_one_disk(run, ranks)
            jsonl = JsonLog(out / "log.jsonl" if ranks.writes else None)
            jsonl.write(
                "start",
                recipe=recipe.to_dict(),
                data=splits.describe(),
                versions=library_versions(),
                device=device,
                ranks=ranks.count,
            )
            progress.say(_in_a_line(recipe, splits, device, ranks))
            if device == "cpu" and "bfloat16" in _precisions(recipe) and not bfloat16_pays():
                progress.say(
                    "note: this CPU is no faster in bfloat16 than in float32; "
                    "the recipe's bfloat16 stages run in float32"
                )
            if student is not None:
                for key in recipe.student.idle_keys:
                    progress.say(f"note: student.{key} has no effect on '{student}'")
            setting = Setting(
                material.feed,
                splits.validation,
                preprocessing,
                recipe.seed,
                device,
                run.checkpoints,
                jsonl,
                progress,
                ranks,
            )
            pipeline = Pipeline(recipe, material, run, setting, EnergyMeter(), cache_root(cache_dir))
            pipeline.check_batches()
            pipeline.check_student()
            guide = pipeline.assistant(pipeline.teacher(teacher))
            student_net = pipeline.student(guide)
            prepared = pipeline.qat(student_net, guide)
            result = pipeline.bundle(student_net, prepared)
            jsonl.write("done", **result.to_dict())
            return result


def _check_overwrite(out: Path, *, overwrite: bool, resume: bool, needed: Mapping[str, str | Path | None]) -> None:
    """Refuse to put a run in place of one that is to be gone on with, or that the new one needs.

    Raises:
        UserError: with the option that does.
    """
    if not overwrite:
        return
    if resume:
        raise UserError("--resume goes on with a run, --overwrite begins another", cure="Leave one of the two out")
    for option, spec in needed.items():
        path = None if spec is None else Path(spec).expanduser().resolve()
        if path is not None and path.exists() and path.is_relative_to(out.resolve()):
            raise UserError(f"--overwrite would take away what {option} names", where=spec, cure="Choose another --out")


def require_one_disk(run: RunFolder, ranks: Ranks) -> None:
    """Refuse processes that do not see the folder that rank 0 writes.

    Raises:
        RankError: there is one.
    """
    mine = float(int(run.token, 16))
    if ranks.any(mine != ranks.means(mine)[0]):
        raise RankError(
            "the processes do not see the same --out",
            where=run.folder,
            cure="Give a folder on a disk that all machines of the run share",
        )


def _in_a_line(recipe: DistillRecipe, splits: DataSplits[Any], device: str, ranks: Ranks) -> str:
    """Data and device of a run."""
    classes = f" of {len(splits.labels)} classes" if splits.labels else ""
    each = f" in each of {ranks.count} processes" if ranks.count > 1 else ""
    return (
        f"{splits.source}: {len(splits.train)} train, {len(splits.validation)} validation, "
        f"{len(splits.test)} test {NOUNS[recipe.task]}{classes}; {device}, {torch.get_num_threads()} threads{each}"
    )


def _precisions(recipe: DistillRecipe) -> set[str]:
    """The precisions that the stages of a recipe ask for."""
    nets = (recipe.teacher, recipe.assistant, recipe.student, recipe.qat)
    return {recipe.distillation.teacher_precision, *(net.training.precision for net in nets if net is not None)}


__all__ = ["DistillResult", "distill"]

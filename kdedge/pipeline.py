"""The stages of one run, teacher to bundle; each is skipped where an earlier run of the command finished it."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from kdedge import quantize
from kdedge.bundle import Bundle, write_bundle
from kdedge.data.splits import DataSplits
from kdedge.energy import Energy, EnergyMeter
from kdedge.evaluation import evaluate
from kdedge.examples import Preprocessing
from kdedge.files import write_tensors
from kdedge.inputs import examples, output_count
from kdedge.metrics import in_words, scores_from_dict
from kdedge.recipe import DistillationRecipe, DistillRecipe, ModelRecipe, TrainingRecipe
from kdedge.run_figures import DistillResult, cost, run_figures, together
from kdedge.run_folder import RunFolder, stage_file
from kdedge.students import build_student, preprocessing_of, projection
from kdedge.teacher import find_teacher, load_teacher
from kdedge.teacher_cache.build import build, open_cache
from kdedge.teacher_cache.folder import CacheFolder
from kdedge.teacher_cache.memory import memory_note
from kdedge.text.teacher import is_users_own
from kdedge.training.checkpoint import load_tensors, save_tensors
from kdedge.training.depth import Depth
from kdedge.training.feeds import Feed
from kdedge.training.loop import place, shareable, train
from kdedge.training.material import Material
from kdedge.training.objective import Objective
from kdedge.training.stage import Setting, Stage
from kdedge.written_teacher import save_teacher


@dataclass
class Pipeline:
    """The stages of one run; each is skipped where it is finished.

    Attributes:
        recipe: What to do.
        material: Data, preprocessing and feed of the net that is followed.
        run: What is finished, and where it lies.
        setting: What every stage trains in; takes on the inputs of the net that is trained.
        meter: Joules of the stages.
        caches: Where caches lie that outlive the run.
    """

    recipe: DistillRecipe
    material: Material
    run: RunFolder
    setting: Setting
    meter: EnergyMeter
    caches: Path

    @property
    def splits(self) -> DataSplits[Any]:
        """The data."""
        return self.material.splits

    @property
    def preprocessing(self) -> Preprocessing:
        """Of the inputs of the net that is followed."""
        return self.material.preprocessing

    def check_batches(self) -> None:
        """Refuse batches that cannot be shared out to the ranks, of any stage, before the first of them.

        Raises:
            RecipeError: with the stage.
        """
        recipe, ranks = self.recipe, self.setting.ranks
        stages = {
            "teacher": recipe.teacher,
            "assistant": recipe.assistant,
            "student": recipe.student,
            "qat": recipe.qat,
        }
        for name, stage in stages.items():
            if stage is not None:
                shareable(stage.training.batch_size, len(self.setting.feed), ranks, name)

    def check_student(self) -> None:
        """Refuse a net that cannot be trained as the recipe says, or not become integers, before any is trained for it.

        Raises:
            ModelError: a net of the user's, with the reason, which QAT would else come upon at the end.
            RecipeError: it is to grow, and has no blocks for it.
        """
        recipe = self.recipe
        if recipe.student.training.start_depth < 1 and self.preprocessing.kind == "image":
            fresh = build_student(recipe, output_count(self.splits.labels), self.preprocessing, None)
            Depth(fresh, recipe.student.training.start_depth)
        if recipe.qat.training.epochs == 0 or not is_users_own(recipe.student.model):
            return
        net = build_student(recipe, output_count(self.splits.labels), self.preprocessing, None)
        inputs = examples(preprocessing_of(net, self.preprocessing).inputs, 2)
        quantize.fold_batch_norm(quantize.capture(net.eval(), inputs))

    def teacher(self, spec: str | None) -> nn.Module | None:
        """The teacher in eval mode, trained where it has to be; None where nothing follows one."""
        recipe = self.recipe
        if not Objective(recipe.distillation).needs_guides:
            return None
        folder = self.run.folder / "teacher"
        if self.run.trained("teacher") is not None:
            net = load_teacher(folder, self.splits, self.preprocessing).net
            return self._frozen(place(net, self.setting.device))
        torch.manual_seed(_seed(recipe.seed, "teacher init"))
        found = find_teacher(spec, recipe, self.splits, self.preprocessing)
        net = place(found.net, self.setting.device)
        if found.to_train is None:
            self.run.finish("teacher", name=found.name, trained_here=False, **self._test(net))
        else:
            figures = self._generations(net, recipe.teacher.stages, found.to_train.training)
            if self.setting.ranks.writes:
                save_teacher(folder, net, found.to_train, self.splits, self.preprocessing)
            self.run.finish("teacher", name=found.name, trained_here=True, **figures, **self._test(net))
        self._say("teacher", f"{found.name}: ")
        return self._frozen(net)

    def _generations(self, net: nn.Module, names: Sequence[str], training: TrainingRecipe) -> dict[str, Any]:
        """Train a teacher in place, each generation after the first by the one before; what all of them cost."""
        stage, spent = Stage.alone(names[0], training), []
        for following in names[1:]:
            path = self.run.folder / stage_file(stage.name)
            if self.run.trained(stage.name) is not None:
                load_tensors(net, path)
            else:
                figures = self._train(net, stage)
                if self.setting.ranks.writes:
                    save_tensors(net, path)
                self.run.finish(stage.name, spent=figures, **self._test(net))
                self._say(stage.name)
            figures = self.run.state["finished"][stage.name]
            if "reused_from" not in figures:
                spent.append(figures["spent"])
            whole = dataclasses.replace(training, start_depth=1.0)  # its blocks have joined
            before = self._frozen(copy.deepcopy(net))
            stage = self._following(net, before, following, whole, self.recipe.distillation)
        return together([*spent, self._train(net, stage)])

    def _following(
        self, net: nn.Module, guide: nn.Module, name: str, training: TrainingRecipe, wish: DistillationRecipe
    ) -> Stage:
        """A stage in which one net follows another."""
        objective = Objective(wish, training.label_smoothing)
        return Stage(
            name,
            training,
            (guide,),
            objective,
            projection=projection(net, guide, wish) if objective.needs_states else None,
            guide_precision=wish.teacher_precision,
            cached_views=wish.cached_views,
        )

    def assistant(self, teacher: nn.Module | None) -> nn.Module | None:
        """Whom the student follows: the recipe's assistant in eval mode, the teacher where there is none."""
        recipe = self.recipe
        if teacher is None or recipe.assistant is None:
            return teacher
        net = self._fresh("assistant", recipe.assistant, teacher)
        path = self.run.checkpoints / "assistant.safetensors"
        if self.run.trained("assistant") is not None:
            load_tensors(net, path)
        else:
            wish = _of_logits(recipe.distillation)
            figures = self._train(net, self._following(net, teacher, "assistant", recipe.assistant.training, wish))
            if self.setting.ranks.writes:
                save_tensors(net, path)
            self.run.finish("assistant", name=recipe.assistant.model, **figures, **self._test(net))
            self._say("assistant")
        taken = self.setting.preprocessing  # what was the net's is now its guide's
        self.material = dataclasses.replace(
            self.material, preprocessing=taken, feed=self.setting.feed.for_nets(taken, taken)
        )
        return self._frozen(net)

    def student(self, teacher: nn.Module | None) -> nn.Module:
        """The converged float student."""
        recipe = self.recipe
        net = self._fresh("student", recipe.student, teacher)
        path = self.run.checkpoints / "student.safetensors"
        if self.run.trained("student") is not None:
            load_tensors(net, path)
            return net.eval()
        training, stored = recipe.student.training, None if teacher is None else self._stored(teacher)
        if teacher is None:
            stage = Stage.alone("student", training)
        else:
            stage = self._following(net, teacher, "student", training, recipe.distillation)
        stage = dataclasses.replace(stage, stored=stored)
        figures = self._train(net, stage)
        if stored is not None:
            stored.close()
        if self.setting.ranks.writes:
            save_tensors(net, path)
        self.run.finish("student", **figures, **self._test(net))
        self._say("student")
        return net.eval()

    def _stored(self, teacher: nn.Module) -> CacheFolder | None:
        """The teacher's logits in files, all that the student will need; None where they are kept in memory."""
        recipe, setting = self.recipe, self.setting
        wish = recipe.distillation
        views = min(wish.cached_views, recipe.student.training.epochs)
        if wish.cache != "shared":
            held = memory_note(views, len(setting.feed), output_count(self.splits.labels))
            if held is not None:
                setting.progress.say(held)
            return None
        name = self.run.state["finished"]["teacher" if recipe.assistant is None else "assistant"]["name"]
        self.meter.begin("cache")
        cache = open_cache(recipe, self.material, teacher, self.caches, setting.device, name=name)
        self.setting.ranks.wait()  # they build it together, from the same beginning
        built = build(cache, views, recipe, self.material.feed, teacher, setting.device, setting.progress)
        built = built.by_all(setting.ranks)
        energy = self.meter.end("cache")
        setting.log.write("cache", path=str(cache.folder), **dataclasses.asdict(built))
        if built.built_shards:
            before = [self.run.state["finished"]["cache"]] if self.run.finished("cache") else []
            if built.found_shards and not before and energy.energy_j is not None:
                energy = Energy(None, reason="a part of the cache was there: the joules that it took are not known")
            self.run.finish("cache", **together([*before, cost(built.time_s, energy)]))
        return cache

    def qat(self, student: nn.Module, teacher: nn.Module | None) -> GraphModule | None:
        """The student after quantization-aware training; None where the recipe wants no QAT."""
        recipe = self.recipe
        if recipe.qat.training.epochs == 0:
            return None
        example = tuple(x.to(self.setting.device) for x in examples(self.setting.preprocessing.inputs, 2))
        activations = recipe.qat.activations
        prepared = quantize.prepare_qat(copy.deepcopy(student).eval(), example, activations=activations)
        path = self.run.checkpoints / "qat.safetensors"
        if self.run.trained("qat") is not None:
            from safetensors.torch import load_file

            quantize.load_quantised_state(prepared, load_file(path))
            return prepared
        guides = _guides(recipe.qat.teacher, student, teacher)
        if not (self.run.checkpoints / "qat.pt").exists():
            self._calibrate(prepared)
        # KL, whatever trained the student: DKD's weights of T² and beta are more than frozen batch norms bear. At a
        # rate that suits KL its loss rose from 0.01 to 1013 (one student).
        wish = dataclasses.replace(_of_logits(recipe.distillation), alpha=recipe.qat.alpha, loss="kd")
        objective = Objective(wish, recipe.qat.training.label_smoothing)
        stage = Stage(
            "qat",
            recipe.qat.training,
            guides,
            objective,
            observer_fraction=recipe.qat.observer_fraction,
            guide_precision=recipe.distillation.teacher_precision,
        )
        # Unmixed, since the ranges have to be those of the samples that the artifact will see.
        figures = self._train(prepared, stage, feed=self.setting.feed.unmixed())
        quantize.set_observers(prepared, False)
        if self.setting.ranks.writes:
            write_tensors(path, quantize.quantised_state(prepared))
        self.run.finish("qat", **figures)
        return prepared

    def bundle(self, student: nn.Module, prepared: GraphModule | None) -> DistillResult:
        """Score what was trained on the test split and write the bundle."""
        finished = self.run.state["finished"]
        if prepared is not None and "metrics" not in finished["qat"]:
            program = quantize.convert(prepared)
            self.run.finish("qat", **finished["qat"], **self._test(program))
            self._say("qat", "int8: ")
        names = {"teacher": "teacher", "assistant": "assistant", "student": "student_float", "qat": "student_int8"}
        if self.recipe.assistant is None:
            del names["assistant"]
        metrics = {
            new: scores_from_dict(finished[old]["metrics"]) if old in finished else None for old, new in names.items()
        }
        figures = run_figures(finished)
        folder, ranks = self.run.folder / "bundle", self.setting.ranks
        if not ranks.writes:
            ranks.wait()
            return DistillResult(
                Bundle.load(folder), metrics, figures["time_s"], figures["energy_j"], figures["unmeasured"]
            )
        bundle = write_bundle(
            folder,
            recipe=self.recipe,
            student=student.cpu(),
            prepared=prepared,
            labels=self.splits.labels,
            preprocessing=self.setting.preprocessing,
            data=self.splits.describe(),
            results={
                "metrics": {name: None if m is None else m.to_dict() for name, m in metrics.items()},
                "teacher": finished.get("teacher", {}).get("name"),
                **figures,
            },
        )
        ranks.wait()
        return DistillResult(bundle, metrics, figures["time_s"], figures["energy_j"], figures["unmeasured"])

    def _train(self, net: nn.Module, stage: Stage, feed: Feed | None = None) -> dict[str, Any]:
        setting = self.setting if feed is None else dataclasses.replace(self.setting, feed=feed)
        resumed = (self.setting.folder / f"{stage.name}.pt").exists()
        rank = setting.ranks.rank  # dropout draws other numbers on each
        torch.manual_seed(_seed(self.recipe.seed, f"{stage.name}, rank {rank}" if rank else stage.name))
        self.meter.begin(stage.name)
        elapsed_s = train(net, stage, setting)
        energy = self.meter.end(stage.name)
        if resumed and energy.energy_j is not None:
            energy = Energy(None, reason="the stage was interrupted: joules before the interruption are not known")
        return cost(elapsed_s, energy)

    @torch.no_grad()
    def _calibrate(self, prepared: GraphModule) -> None:
        """Set the first ranges from training images, before the first step sees them."""
        recipe, train_set = self.recipe, self.splits.train
        batch = recipe.qat.training.batch_size
        quantize.set_observers(prepared, True)
        quantize.set_fake_quantize(prepared, False)
        generator = torch.Generator().manual_seed(_seed(recipe.seed, "calibration"))
        order = torch.randperm(len(train_set), generator=generator)[: batch * recipe.qat.calibration_batches]
        rows = (train_set.training_columns(index) for index in torch.split(order, batch))
        on_device = (tuple(column.to(self.setting.device) for column in columns) for columns in rows)
        quantize.calibrate(prepared, (self.setting.preprocessing.prepare(columns) for columns in on_device))
        quantize.set_fake_quantize(prepared, True)

    def _test(self, net: nn.Module | GraphModule) -> dict[str, Any]:
        setting = self.setting
        scores = evaluate(net, self.splits.test, setting.preprocessing, device=setting.device, ranks=setting.ranks)
        return {"metrics": scores.to_dict()}

    def _say(self, stage: str, prefix: str = "") -> None:
        figures = self.run.state["finished"][stage]
        scores = figures["metrics"]
        self.setting.log.write("stage", stage=stage, **figures)
        self.setting.progress.say(f"{stage:<9} {prefix}test {in_words(scores)} (n={scores['n']})")

    def _fresh(self, stage: str, wish: ModelRecipe, teacher: nn.Module | None) -> nn.Module:
        """The net of a stage before its first step; from here on what is trained takes its inputs."""
        torch.manual_seed(_seed(self.recipe.seed, f"{stage} init"))
        recipe = dataclasses.replace(self.recipe, student=wish)
        fresh = build_student(recipe, output_count(self.splits.labels), self.preprocessing, teacher)
        own = preprocessing_of(fresh, self.preprocessing)
        feed = self.material.feed.for_nets(own, self.preprocessing)  # its teacher may take more
        self.setting = dataclasses.replace(self.setting, feed=feed, preprocessing=own)
        return place(fresh, self.setting.device)

    @staticmethod
    def _frozen(net: nn.Module) -> nn.Module:
        return net.eval().requires_grad_(False)


def _of_logits(wish: DistillationRecipe) -> DistillationRecipe:
    """The loss without what stands beside the logits."""
    return dataclasses.replace(wish, hidden_weight=0.0, attention_weight=0.0)


def _guides(choice: str, student: nn.Module, teacher: nn.Module | None) -> tuple[nn.Module, ...]:
    """Whom QAT follows; the float student stands in where there is no teacher."""
    own = copy.deepcopy(student).eval().requires_grad_(False)
    if choice == "none":
        return ()
    if choice == "student" or teacher is None:
        return (own,)
    return (teacher,) if choice == "teacher" else (teacher, own)


def _seed(seed: int, word: str) -> int:
    digest = hashlib.sha256(json.dumps([seed, word]).encode()).digest()
    return int.from_bytes(digest[:7], "big")


__all__ = ["Pipeline"]

"""The wall time of a whole distillation schedule with cached views against the same schedule as a plain loop.

ResNet-50 to MobileNetV2 on images of 32 px. The plain loop is what tutorials show: a DataLoader over images with
torchvision's transforms, contiguous tensors, the teacher's forward pass in every step. kdedge's is
``training.loop.train`` itself, feed, augmentation and cache included. A schedule of E epochs with K cached views has
two kinds of epochs: in K of them the teacher looks on, in the others its logits are replayed; steps of one kind cost
the same. So each round measures some steps of each kind, and of the plain loop, in turn (the first of an epoch is left
out), and the schedule is

    (K * building + (E - K) * replaying) / (E * plain),

medians of the round's steps. Scores after an epoch, which both do, are not counted; nor is the teacher's training, nor
QAT. Also printed: a replaying step against one of the student on labels alone. Each with n rounds, median and spread.

Run: OMP_NUM_THREADS=1 python benchmarks/schedule_time.py [--rounds 5] [--steps 8] [--stem cifar-stride2]
         [--epochs 50] [--views 8]
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from kdedge import models
from kdedge.data.images import ImageSet
from kdedge.images.preprocessing import ImagePreprocessing
from kdedge.progress import JsonLog, Silent
from kdedge.recipe import AugmentRecipe, DistillationRecipe, ModelRecipe, TrainingRecipe
from kdedge.training.feeds import ImageFeed
from kdedge.training.loop import place, train
from kdedge.training.objective import Objective
from kdedge.training.stage import Setting, Stage
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.distill_step import plain_step

CLASSES, SIZE = 10, 32
SHAPE = (3, SIZE, SIZE)
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


class Clock(Silent):
    """Seconds of the steps of each epoch but its first: that has the scores of the epoch before in it."""

    def __init__(self) -> None:
        self.seconds: list[list[float]] = []
        self._epoch, self._last = -1, 0.0

    def step(self, *_: int, epoch: int, **__: float) -> None:
        """A step is done."""
        now = time.perf_counter()
        if epoch != self._epoch:
            self.seconds.append([])
        else:
            self.seconds[-1].append(now - self._last)
        self._epoch, self._last = epoch, now


class Transformed(Dataset[tuple[Tensor, int]]):
    """Images as a tutorial's data set gives them: one by one, each transformed by itself."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.transform = v2.Compose(
            [
                v2.RandomCrop(SIZE, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


class Schedules:
    """The three loops on the same nets and images."""

    def __init__(self, stem: str, steps: int, batch: int) -> None:
        torch.manual_seed(0)
        self.training = TrainingRecipe(epochs=1, batch_size=batch, optimizer="sgd", learning_rate=0.01)
        self.images = torch.randint(0, 256, (steps * batch, *SHAPE), dtype=torch.uint8)
        self.labels = torch.randint(0, CLASSES, (steps * batch,))
        wish = [ModelRecipe(name, self.training, stem) for name in ("resnet50", "mobilenet_v2")]  # type: ignore[arg-type]
        self.teacher = models.build(wish[0], models.TEACHERS, CLASSES, SHAPE).eval()
        self.student = models.build(wish[1], models.STUDENTS, CLASSES, SHAPE)
        data = ImageSet(self.images, self.labels)
        preprocessing = ImagePreprocessing(image_size=(SIZE, SIZE), channels=3, mean=MEAN, std=STD)
        feed = ImageFeed(data, preprocessing, AugmentRecipe(crop_padding=4, horizontal_flip=True), 0, CLASSES)
        self._temporary = tempfile.TemporaryDirectory(prefix="kdedge-schedule-")  # goes with this object
        folder = Path(self._temporary.name)
        few = ImageSet(self.images[:32], self.labels[:32])
        self.setting = Setting(feed, few, preprocessing, 0, "cpu", folder, JsonLog(None), Silent())

    def plain(self) -> dict[str, float]:
        """Seconds of a step, teacher on the fly."""
        student, teacher = copy.deepcopy(self.student).train(), copy.deepcopy(self.teacher)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        loader = DataLoader(Transformed(self.images, self.labels), self.training.batch_size, shuffle=True)
        seconds, last = [], 0.0
        for x, y in loader:
            with torch.no_grad():
                logits = teacher(x)
            plain_step(student, optimizer, x, y, logits)
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
        return {"plain": statistics.median(seconds[1:])}

    def cached(self) -> dict[str, float]:
        """Seconds of a step in which the teacher looks on, and of one that replays it."""
        teacher = place(copy.deepcopy(self.teacher), "cpu")
        objective = Objective(DistillationRecipe(3.0, 0.5))
        training = replace(self.training, epochs=2)
        built, replayed = self._train(Stage("student", training, (teacher,), objective, cached_views=1))
        return {"building": built, "replaying": replayed}

    def labels_alone(self) -> dict[str, float]:
        """Seconds of a step of the student on labels alone."""
        (seconds,) = self._train(Stage.alone("student", self.training))
        return {"labels": seconds}

    def _train(self, stage: Stage) -> list[float]:
        clock = Clock()
        for left in self.setting.folder.glob("*.pt"):
            left.unlink()
        net: nn.Module = place(copy.deepcopy(self.student), "cpu")
        train(net, stage, replace(self.setting, progress=clock))
        return [statistics.median(seconds) for seconds in clock.seconds]


def show(name: str, values: list[float]) -> None:
    """One line."""
    print(f"{name:<52} median {statistics.median(values):.3f}  [{min(values):.3f}, {max(values):.3f}]  n={len(values)}")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What a schedule is made of, and how often it is measured."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--stem", default="cifar-stride2", choices=["imagenet", "cifar-stride2", "cifar"])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--views", type=int, default=8)
    return parser


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__).parse_args()
    epochs, views = options.epochs, options.views
    print(
        f"MobileNetV2 from ResNet-50, stem {options.stem}, batch {options.batch}, {SIZE} px, {epochs} epochs with "
        f"{views} views; torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}"
    )
    schedules = Schedules(options.stem, options.steps, options.batch)
    loops: list[Callable[[], dict[str, float]]] = [schedules.plain, schedules.cached, schedules.labels_alone]
    whole, warm, steps = [], [], []
    for _ in range(options.rounds):
        took: dict[str, float] = {}
        for loop in loops:
            took |= loop()
        loops = loops[1:] + loops[:1]
        ours = (views * took["building"] + (epochs - views) * took["replaying"]) / epochs
        whole.append(ours / took["plain"])
        warm.append(took["replaying"] / took["labels"])
        steps.append(took["building"] / took["plain"])
    show("whole schedule, kdedge/plain", whole)
    show("step with the teacher on the fly, kdedge/plain", steps)
    show("step that replays / student on labels alone", warm)


if __name__ == "__main__":
    main()

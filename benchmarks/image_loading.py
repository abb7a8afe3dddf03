"""How fast photographs are decoded for training at 224 px, against the training step that they are decoded for.

Rounds in one process: the loader alone with threads (kdedge's ``prefetch``) and with processes (torch's DataLoader, its
workers kept from round to round), 1 and 2 of each; a MobileNetV2 step on images in memory; and the step fed by one
thread and by one process. Printed: images/s of each, then ratios within a round, with n, median and spread. Files come
from the page cache, so no disk is measured. ``--short-side`` enlarges the photographs first: ImageNet's own are about
500×375 pixels.

Run: OMP_NUM_THREADS=1 python benchmarks/image_loading.py [FOLDER] [--rounds 5] [--short-side 375] [--batch 32]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import PIL
import torch
from kdedge import models
from kdedge.data.image_stream import EpochCrops, LazyImageSet
from kdedge.data.images import list_class_folders
from kdedge.images.preprocessing import ImagePreprocessing
from kdedge.prefetch import prefetch
from kdedge.recipe import DataRecipe, ModelRecipe, TrainingRecipe
from kdedge.small_maps import products_on_small_maps
from kdedge.training.feeds import Batch
from kdedge.training.loop import place, train_step
from kdedge.training.stage import Stage
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

SIZE = 224
RATIOS = (
    ("load, 1 thread", "train, images in memory"),
    ("load, 2 threads", "train, images in memory"),
    ("load, 1 thread", "load, 1 process"),
    ("load, 2 threads", "load, 2 processes"),
    ("load, 2 threads", "load, 1 thread"),
    ("train, fed by 1 thread", "train, images in memory"),
    ("train, fed by 1 process", "train, images in memory"),
    ("train, fed by 1 thread", "train, fed by 1 process"),
)
PREPROCESSING = ImagePreprocessing((SIZE, SIZE), 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Batches(Dataset[Tensor]):
    """Item k is the k-th batch of crops."""

    def __init__(self, data: LazyImageSet, batch: int, count: int) -> None:
        self.data, self.count = data, count
        generator = torch.Generator().manual_seed(0)
        self.indices = torch.randint(len(data), (count, batch), generator=generator)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Tensor:
        return self.data.random_crops(self.indices[number], EpochCrops(0, "student", 0), SIZE)


def threads(batches: Batches, workers: int) -> Iterator[Tensor]:
    """Batches by kdedge's own loader."""
    return prefetch(range(len(batches)), batches.__getitem__, workers=workers, depth=2 * workers)


def enlarged(folder: Path, short_side: int, out: Path) -> Path:
    """A copy of class folders with the photographs at another size."""
    for path in sorted(folder.rglob("*.jp*g")):
        with Image.open(path) as image:
            scale = short_side / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            target = out / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target, quality=92)
    return out


def trainer(batch: int) -> Callable[[Iterable[Tensor]], None]:
    """A function that trains a MobileNetV2 of 1,000 classes on batches uint8 [n, 3, 224, 224]."""
    training = TrainingRecipe(epochs=1, batch_size=batch, optimizer="sgd", learning_rate=0.001)
    recipe = ModelRecipe("mobilenet_v2", training)
    torch.manual_seed(0)
    net = place(models.build(recipe, models.STUDENTS, 1000, (3, SIZE, SIZE)), "cpu").train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9, nesterov=True)
    stage, labels = Stage("student", training), torch.randint(1000, (batch,))

    def run(batches: Iterable[Tensor]) -> None:
        with products_on_small_maps(net, "cpu"):
            for images in batches:
                inputs = PREPROCESSING.prepare((images,))
                train_step(net, optimizer, stage, Batch(inputs, inputs, labels), None)

    return run


def exhaust(batches: Iterable[Tensor]) -> None:
    """Take them and do nothing."""
    for _ in batches:
        pass


def show(name: str, values: list[float], unit: str) -> None:
    """One line."""
    print(
        f"{name:<58} median {statistics.median(values):8.2f} {unit:<9} [{min(values):.2f}, {max(values):.2f}]  "
        f"n={len(values)}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("../shared/data/imagenet-sample"), help="class folders of JPEGs"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--short-side", type=int, default=0, help="pixels; 0 takes the photographs as they are")
    parser.add_argument("--load-batches", type=int, default=24)
    parser.add_argument("--train-batches", type=int, default=3)
    options = parser.parse_args()
    if not options.folder.is_dir():
        print(f"skipped: no photographs in {options.folder}")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = enlarged(options.folder, options.short_side, Path(scratch)) if options.short_side else options.folder
        parts, _ = list_class_folders(folder)
        measure(LazyImageSet.of(parts["train"], DataRecipe(name="-")), options)


def measure(data: LazyImageSet, options: argparse.Namespace) -> None:
    """All rounds, then the figures."""
    load = Batches(data, options.batch, options.load_batches)
    few = Batches(data, options.batch, options.train_batches)
    train, in_memory = trainer(options.batch), [few[0]] * options.train_batches

    def processes(batches: Batches, workers: int) -> DataLoader[Tensor]:
        return DataLoader(batches, batch_size=None, num_workers=workers, persistent_workers=True)

    one, two, feeder = processes(load, 1), processes(load, 2), processes(few, 1)
    ways: dict[str, tuple[Callable[[], None], int]] = {
        "load, 1 thread": (lambda: exhaust(threads(load, 1)), options.load_batches),
        "load, 2 threads": (lambda: exhaust(threads(load, 2)), options.load_batches),
        "load, 1 process": (lambda: exhaust(one), options.load_batches),
        "load, 2 processes": (lambda: exhaust(two), options.load_batches),
        "train, images in memory": (lambda: train(in_memory), options.train_batches),
        "train, fed by 1 thread": (lambda: train(threads(few, 1)), options.train_batches),
        "train, fed by 1 process": (lambda: train(feeder), options.train_batches),
    }
    sizes = [data.encoded.stamp(row)[1] for row in range(len(data))]
    print(
        f"{len(data)} JPEGs of {statistics.mean(sizes) / 1e3:.0f} kB on average to {SIZE} px, batch {options.batch}; "
        f"torch {torch.__version__}, Pillow {PIL.__version__}, {torch.get_num_threads()} thread(s), "
        f"{platform.machine()}"
    )
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):  # the first one warms up
        names = list(ways) if number % 2 else list(ways)[::-1]
        for name in names:
            work, batches = ways[name]
            started = time.perf_counter()
            work()
            if number:
                rates[name].append(batches * options.batch / (time.perf_counter() - started))
    for name, values in rates.items():
        show(name, values, "images/s")
    for above, below in RATIOS:
        show(f"{above} / {below}", [a / b for a, b in zip(rates[above], rates[below], strict=True)], "")


if __name__ == "__main__":
    main()

"""A distillation step of kdedge against a plain loop, interleaved in one process.

The plain loop is what tutorials show: contiguous tensors, the same nets, loss and optimizer. kdedge's step is the one
that ``kdedge.training.loop`` runs: channels_last throughout, small maps as matrix products. Printed: ratio plain /
kdedge (higher is better) per pair, with n, median, and spread; once for the whole step (student on CPU plus teacher's
forward), once for the student alone (labels, or teacher logits from the cache). The claim: at least 1.4 for the
MobileNetV2 student on a CPU.

Run: OMP_NUM_THREADS=1 python benchmarks/distill_step.py [--pairs 7] [--batch 128] [--stem imagenet]
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable

import torch
from kdedge import models
from kdedge.recipe import DistillationRecipe, ModelRecipe, TrainingRecipe
from kdedge.small_maps import products_on_small_maps
from kdedge.training.feeds import Batch
from kdedge.training.loop import guide_logits, place, train_step
from kdedge.training.objective import Objective, Outputs
from kdedge.training.optimization import make_optimizer
from kdedge.training.stage import Stage
from torch import Tensor, nn

CLASSES = 10
SHAPE = (3, 32, 32)


def plain_loss(logits: Tensor, y: Tensor, teacher: Tensor) -> Tensor:
    """The loss spelled out."""
    temperature, alpha = 3.0, 0.5
    soft = nn.functional.kl_div(
        nn.functional.log_softmax(logits / temperature, dim=1),
        nn.functional.softmax(teacher / temperature, dim=1),
        reduction="batchmean",
    )
    return alpha * temperature**2 * soft + (1 - alpha) * nn.functional.cross_entropy(logits, y)


def plain_step(student: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, teacher: Tensor) -> None:
    """The loop of a tutorial: tensors as they come."""
    loss = plain_loss(student(x), y, teacher)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    loss.item()


def same_loss(student: nn.Module, x: Tensor, y: Tensor, teacher: Tensor) -> None:
    """Stop where the two loops do not minimise the same thing: a faster step must not be another step."""
    with torch.no_grad():
        logits = student(x)
    ours = Objective(DistillationRecipe(3.0, 0.5))(Outputs(logits), y, Outputs(teacher))
    torch.testing.assert_close(plain_loss(logits, y, teacher), ours, rtol=1e-5, atol=1e-6)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratios(plain: Callable[[], object], ours: Callable[[], object], pairs: int) -> list[float]:
    """Plain / ours of interleaved pairs, after one warm-up of each; the order alternates."""
    plain()
    ours()
    found = []
    for number in range(pairs):
        if number % 2:
            b, a = seconds(ours), seconds(plain)
        else:
            a, b = seconds(plain), seconds(ours)
        found.append(a / b)
    return found


def show(name: str, values: list[float]) -> None:
    """One line."""
    print(
        f"{name:<44} plain/kdedge median {statistics.median(values):.2f}  "
        f"[{min(values):.2f}, {max(values):.2f}]  n={len(values)}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--stem", default="imagenet", choices=["imagenet", "cifar-stride2", "cifar"])
    options = parser.parse_args()
    training = TrainingRecipe(epochs=1, batch_size=options.batch, optimizer="sgd", learning_rate=0.01, weight_decay=0.0)
    torch.manual_seed(0)
    teacher = models.build(ModelRecipe("resnet50", training, options.stem), models.TEACHERS, CLASSES, SHAPE).eval()
    student = models.build(ModelRecipe("mobilenet_v2", training, options.stem), models.STUDENTS, CLASSES, SHAPE)
    x = torch.randn(options.batch, *SHAPE)
    y = torch.randint(0, CLASSES, (options.batch,))
    print(
        f"MobileNetV2 from ResNet-50, stem {options.stem}, batch {options.batch}, 32 px; torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread(s), {platform.machine()}"
    )

    plain_student, plain_teacher = copy.deepcopy(student).train(), copy.deepcopy(teacher)
    plain_optimizer = torch.optim.SGD(plain_student.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    last = torch.channels_last
    our_student, our_teacher = place(student.train(), "cpu"), place(teacher, "cpu")
    our_optimizer = make_optimizer(our_student, training)
    stage = Stage("student", training, (our_teacher,), Objective(DistillationRecipe(3.0, 0.5)))

    def plain_whole() -> None:
        with torch.no_grad():
            logits = plain_teacher(x)
        plain_step(plain_student, plain_optimizer, x, y, logits)

    def our_batch() -> Batch:
        inputs = (x.contiguous(memory_format=last),)
        return Batch(inputs, inputs, y)

    def our_whole() -> None:
        batch = our_batch()
        train_step(our_student, our_optimizer, stage, batch, Outputs(guide_logits(stage.guides, batch.guide_inputs)))

    with torch.no_grad():
        logits = plain_teacher(x)
    same_loss(plain_student, x, y, logits)

    def plain_student_step() -> None:
        plain_step(plain_student, plain_optimizer, x, y, logits)

    def our_student_step() -> None:
        train_step(our_student, our_optimizer, stage, our_batch(), Outputs(logits))

    with products_on_small_maps(our_student, "cpu"):
        show("whole step (teacher forward + student)", ratios(plain_whole, our_whole, options.pairs))
        show("student's step (teacher logits at hand)", ratios(plain_student_step, our_student_step, options.pairs))


if __name__ == "__main__":
    main()

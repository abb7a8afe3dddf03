from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from kdedge.data.images import ImageSet
from kdedge.data.splits import DataSplits, load_data
from kdedge.errors import CheckError, UserError
from kdedge.images.preprocessing import measure_preprocessing
from kdedge.progress import JsonLog, Silent
from kdedge.quantize.fake_quantize import ActivationFakeQuantize
from kdedge.ranks import Ranks
from kdedge.recipe import AugmentRecipe, DataRecipe, DistillationRecipe, TrainingRecipe
from kdedge.teacher_cache.memory import TeacherCache
from kdedge.training.checkpoint import load_checkpoint, save_checkpoint
from kdedge.training.feeds import Batch, ImageFeed
from kdedge.training.finite import FiniteSteps
from kdedge.training.loop import Computation, train, train_step
from kdedge.training.objective import Objective
from kdedge.training.optimization import image_size, learning_rate, make_optimizer, multiplies_bfloat16_faster
from kdedge.training.stage import Setting, Stage
from kdedge.training.stage_run import StageRun, freezes_at
from torch import nn

Splits = DataSplits[ImageSet]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_data(DataRecipe(name="digits", image_size=8, channels=1))


def setting(splits: Splits, folder: Path, **mixes: Any) -> Setting:
    augment = AugmentRecipe(crop_padding=1, horizontal_flip=False, **mixes)  # a mirrored 2 is no 2
    preprocessing = measure_preprocessing(splits.train.images)
    feed = ImageFeed(splits.train, preprocessing, augment, seed=0, classes=10)
    return Setting(feed, splits.validation, preprocessing, 0, "cpu", folder, JsonLog(folder / "log.jsonl"), Silent())


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


class Counting(nn.Module):
    """A teacher that counts the images it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()
        self.seen = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        logits: torch.Tensor = self.inner(images)
        return logits


def test_a_small_net_learns_the_digits(splits: Splits, tmp_path: Path) -> None:
    student = net()
    recipe = TrainingRecipe(epochs=12, batch_size=32, learning_rate=0.01)
    seconds = train(student, Stage("student", recipe), setting(splits, tmp_path))
    assert seconds > 0
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(lines) == 12
    assert '"validation_accuracy"' in lines[-1]
    from kdedge.evaluation import evaluate

    assert evaluate(student, splits.test, measure_preprocessing(splits.train.images)).leading[1] > 0.9


class StopAt(Silent):
    """A user who presses Ctrl-C in a certain step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, done_steps: int, **figures: float) -> None:
        if done_steps == self.at:
            os.kill(os.getpid(), signal.SIGINT)


class StopWhenScored(Silent):
    """A user who presses Ctrl-C while an epoch is scored."""

    def __init__(self, epoch: int) -> None:
        self.line = f"epoch {epoch}/"

    def say(self, line: str) -> None:
        if self.line in line:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("patience", [0, 1])
def test_a_stop_while_the_last_epoch_is_scored_is_one(patience: int, splits: Splits, tmp_path: Path) -> None:
    """Else the next stage would begin; what follows on a stop of the scheduler's is its kill."""
    stage = Stage("student", TrainingRecipe(epochs=3, batch_size=100, learning_rate=1e-9, patience=patience))
    last = 2 if patience else 3
    with pytest.raises(KeyboardInterrupt):
        train(net(), stage, dataclasses.replace(setting(splits, tmp_path), progress=StopWhenScored(last)))
    train(net(), stage, setting(splits, tmp_path))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, last + 1))


def test_every_epoch_is_logged_once_wherever_the_run_is_stopped(splits: Splits, tmp_path: Path) -> None:
    stage = Stage("student", TrainingRecipe(epochs=3, batch_size=100))
    per_epoch = len(splits.train) // 100
    for step in (1, per_epoch, per_epoch + 1, 2 * per_epoch, 3 * per_epoch - 1):
        with pytest.raises(KeyboardInterrupt):
            train(net(), stage, dataclasses.replace(setting(splits, tmp_path), progress=StopAt(step)))
    train(net(), stage, setting(splits, tmp_path))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "mixes"),
    [
        ({"ema_decay": 0.9}, {}),
        ({"patience": 1}, {}),
        ({"patience": 1, "ema_decay": 0.9}, {"mixup_alpha": 0.4}),
        ({}, {"cutmix_alpha": 1.0, "mixup_alpha": 0.4}),
    ],
)
def test_an_interrupted_stage_ends_with_the_weights_of_one_that_was_not(
    splits: Splits, tmp_path: Path, options: dict[str, Any], mixes: dict[str, float]
) -> None:
    recipe = TrainingRecipe(epochs=4, batch_size=100, learning_rate=0.01, **options)
    per_epoch = len(splits.train) // 100
    ends = []
    for stops in ((), (1, per_epoch, 2 * per_epoch + 2)):
        folder = tmp_path / str(len(stops))
        folder.mkdir()
        student = net()
        for step in stops:
            with pytest.raises(KeyboardInterrupt):
                given = dataclasses.replace(setting(splits, folder, **mixes), progress=StopAt(step))
                train(student, Stage("student", recipe), given)
            student = net()
        train(student, Stage("student", recipe), setting(splits, folder, **mixes))
        ends.append(student.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_patience_stops_and_keeps_the_best_weights(splits: Splits, tmp_path: Path) -> None:
    """A rate far too high gets worse after some epoch: the stage ends early, with the figure of its best epoch."""
    from kdedge.evaluation import evaluate

    recipe = TrainingRecipe(epochs=40, batch_size=100, learning_rate=0.3, schedule="constant", patience=2)
    student, given = net(), setting(splits, tmp_path)
    train(student, Stage("student", recipe), given)
    figures = [json.loads(line)["validation_accuracy"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(figures) < 40
    assert len(figures) - 1 - figures.index(max(figures)) == 2
    assert evaluate(student, splits.validation, given.preprocessing).leading[1] == max(figures)


def test_averaged_weights_are_what_the_stage_ends_with(splits: Splits, tmp_path: Path) -> None:
    weights = []
    for decay in (0.0, 0.99):
        folder = tmp_path / str(decay)
        folder.mkdir()
        student = net()
        recipe = TrainingRecipe(epochs=2, batch_size=100, learning_rate=0.01, ema_decay=decay)
        train(student, Stage("student", recipe), setting(splits, folder))
        weights.append(student.state_dict()["1.weight"])
    assert not torch.equal(*weights)


def test_a_student_follows_its_teacher_without_labels(splits: Splits, tmp_path: Path) -> None:
    """With alpha 1 the labels count for nothing: a student of an untrained teacher agrees with that teacher."""
    torch.manual_seed(5)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
    student = net()
    stage = Stage(
        "student",
        TrainingRecipe(epochs=15, batch_size=32, learning_rate=0.01),
        (teacher,),
        Objective(DistillationRecipe(1.0, 1.0)),
    )
    train(student, stage, setting(splits, tmp_path))
    x = measure_preprocessing(splits.train.images).normalise(splits.test.images)
    with torch.no_grad():
        agreement = (student(x).argmax(1) == teacher(x).argmax(1)).float().mean()
    assert agreement > 0.85


def test_cached_views_ask_the_teacher_once_a_view(splits: Splits, tmp_path: Path) -> None:
    recipe = TrainingRecipe(epochs=6, batch_size=100)  # 100 does not divide the data: every epoch leaves some out
    count = len(splits.train) // 100 * 100
    teacher = Counting()
    train(
        net(),
        Stage("student", recipe, (teacher,), Objective(DistillationRecipe(3.0, 0.5)), cached_views=2),
        setting(splits, tmp_path),
    )
    assert 2 * count <= teacher.seen <= 2 * len(splits.train)
    fresh = Counting()
    train(net(), Stage("other", recipe, (fresh,), Objective(DistillationRecipe(3.0, 0.5))), setting(splits, tmp_path))
    assert fresh.seen == 6 * count


def test_no_more_views_are_kept_than_there_are_epochs(splits: Splits, tmp_path: Path) -> None:
    stage = Stage("student", TrainingRecipe(epochs=2, batch_size=100), (Counting(),), cached_views=5000)
    run = StageRun(net(), stage, setting(splits, tmp_path))
    run.save()
    state = load_checkpoint(run.path)
    assert state is not None
    assert state["cache"]["known"].shape == (2, len(splits.train))


def test_without_a_teacher_every_epoch_has_new_views(splits: Splits, tmp_path: Path) -> None:
    """Else the student alone, which distilling is compared with, would see fewer images than it could."""
    recipe = TrainingRecipe(epochs=3, batch_size=100)
    weights = []
    for views in (0, 1):
        student = net()
        folder = tmp_path / str(views)
        folder.mkdir()
        train(student, Stage("student", recipe, cached_views=views), setting(splits, folder))
        weights.append(student.state_dict()["1.weight"])
    assert torch.equal(*weights)


def test_a_replayed_batch_has_the_teachers_logits() -> None:
    cache, truth, asked = TeacherCache(2, 10), torch.randn(2, 10, 5), []

    def ask(view: int, index: torch.Tensor, cache: TeacherCache = cache) -> None:
        def compute(part: torch.Tensor) -> torch.Tensor:
            asked.append(len(part))
            return truth[view, index[part]]

        torch.testing.assert_close(cache.logits(view, index, compute), truth[view, index], rtol=1e-3, atol=1e-3)

    ask(0, torch.tensor([3, 1, 7]))
    ask(0, torch.tensor([7, 2, 3, 1]))
    ask(0, torch.tensor([2, 7]))
    ask(1, torch.tensor([2, 7]))
    assert asked == [3, 1, 2]
    again = TeacherCache(2, 10)
    again.restore(cache.state())
    ask(0, torch.tensor([1, 2, 3, 7]), again)
    assert asked == [3, 1, 2]


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_samples(splits: Splits, tmp_path: Path) -> None:
    stage = Stage("student", TrainingRecipe(epochs=3, optimizer="sgd", learning_rate=1e12), ())
    with pytest.raises(
        CheckError, match=r"the loss is (nan|inf) at step \d+ of stage 'student' \(training samples \d+, \d+"
    ):
        train(net(), stage, setting(splits, tmp_path))
    (event,) = [e for e in events(tmp_path) if e["event"] == "not finite"]
    assert len(event["samples"]) == 128 and event["loss"] in ("nan", "inf")


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Bad(nn.Module):
    """A net with batch norm whose outputs, or their gradients, are not finite in some of its passes in training."""

    def __init__(self, bad: set[int], *, backward_alone: bool = False) -> None:
        super().__init__()
        self.inner, self.norm = net(), nn.BatchNorm1d(10)
        self.bad, self.backward_alone, self.passes = bad, backward_alone, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(images)
        if self.training and self.passes in self.bad:
            # The root of zero is zero, and its slope is infinite.
            logits = logits + ((logits * 0).abs().sqrt() if self.backward_alone else math.inf)
        self.passes += self.training
        normed: torch.Tensor = self.norm(logits)
        return normed


def test_a_gradient_that_is_not_finite_changes_no_weight_although_the_loss_is(splits: Splits, tmp_path: Path) -> None:
    """The stage's very last step, after which no loss would tell."""
    recipe = TrainingRecipe(epochs=1, batch_size=128)
    last = len(splits.train) // 128 - 1
    module = Bad({last}, backward_alone=True)
    with pytest.raises(CheckError, match=f"the loss or its gradient is not finite at step {last} of stage 'student'"):
        train(module, Stage("student", recipe), setting(splits, tmp_path))
    assert all(torch.isfinite(weight).all() for weight in module.parameters())


def test_the_gradient_of_a_projection_is_clipped_with_the_nets() -> None:
    torch.manual_seed(0)
    module, projection = net(), nn.Linear(4, 4)
    stage = Stage(
        "student",
        TrainingRecipe(epochs=1, gradient_clip=0.1, optimizer="sgd", learning_rate=1.0),
        projection=projection,
    )
    compute = Computation(module, stage)
    compute.register_forward_hook(lambda _, __, out: (out[0] + 100 * projection.weight.sum(), out[1]))
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)
    optimizer = torch.optim.SGD(compute.parameters(), lr=1.0)
    before = projection.weight.detach().clone()
    train_step(module, optimizer, stage, Batch((images,), (images,), labels), None, compute)
    assert (projection.weight - before).norm() <= 0.1 + 1e-6


@pytest.mark.parametrize(("fraction", "total"), [(0.55, 100), (0.29, 100), (0.5, 30), (1.0, 7), (0.0, 7)])
def test_ranges_freeze_at_one_step_wherever_a_run_goes_on(fraction: float, total: int) -> None:
    at = freezes_at(fraction, total)
    assert at == round(fraction * total)


@pytest.mark.parametrize("backward_alone", [False, True])
def test_a_step_that_is_not_finite_can_be_left_out(splits: Splits, tmp_path: Path, *, backward_alone: bool) -> None:
    """As if it had never been tried: the weights move in every other step alone, and batch norm saw finite samples."""
    recipe = TrainingRecipe(epochs=2, batch_size=128, on_nonfinite="skip")
    module = Bad({0, 3, 4}, backward_alone=backward_alone)
    train(module, Stage("student", recipe), setting(splits, tmp_path))
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    left_out = [e["step"] for e in events(tmp_path) if e["event"] == "not finite"]
    assert left_out == [0, 3, 4]
    assert all(math.isfinite(e["loss"]) for e in events(tmp_path) if e["event"] == "epoch")


def test_a_quantiser_forgets_the_numbers_of_a_step_left_out() -> None:
    quantiser, x = ActivationFakeQuantize(), torch.linspace(-1, 1, 50)
    quantiser.train()
    steps = FiniteSteps(quantiser, "qat", skip=True, most_in_a_row=3, log=JsonLog(None), ranks=Ranks())
    before = quantiser(x)
    steps.begin()
    quantiser(x + math.inf)
    assert not steps.may_step(math.nan, torch.tensor(math.nan))
    quantiser.eval()
    assert torch.equal(quantiser(x), before)


def test_steps_left_out_in_a_row_end_the_stage(splits: Splits, tmp_path: Path) -> None:
    recipe = TrainingRecipe(epochs=20, batch_size=64, on_nonfinite="skip")
    with pytest.raises(CheckError, match=r"the loss is nan at step 14 of stage 'student', as in 10 steps in a row"):
        train(Bad(set(range(5, 30))), Stage("student", recipe), setting(splits, tmp_path))
    whole = TrainingRecipe(epochs=2, batch_size=400, on_nonfinite="skip")
    with pytest.raises(CheckError, match="as in 3 steps in a row"):
        train(Bad(set(range(9))), Stage("teacher", whole), setting(splits, tmp_path))


@pytest.mark.parametrize(
    ("cpuinfo", "faster"),
    [
        ("vendor_id : GenuineIntel\nflags : fpu avx512f avx512_bf16 amx_bf16 amx_tile\n", True),
        ("vendor_id : GenuineIntel\nflags : fpu avx512f avx512_bf16 avx512_fp16\n", False),
        ("vendor_id : AuthenticAMD\nflags : fpu avx512f avx512_bf16\n", True),
        ("vendor_id : AuthenticAMD\nflags : fpu avx2\n", False),
        ("CPU implementer : 0x41\nFeatures : fp asimd i8mm bf16\n", True),
        ("", False),
    ],
)
def test_bfloat16_is_used_where_the_cpu_is_faster_in_it(cpuinfo: str, faster: bool) -> None:
    assert multiplies_bfloat16_faster(cpuinfo) is faster


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    recipe = TrainingRecipe(epochs=1, learning_rate=0.2, warmup_fraction=0.1)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == rates[10] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001
    assert math.isclose(rates[55], 0.1, rel_tol=1e-6)
    constant = TrainingRecipe(epochs=1, learning_rate=0.2, schedule="constant")
    assert {learning_rate(constant, step, 10) for step in range(10)} == {0.2}


def test_biases_and_norms_do_not_decay() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    groups = make_optimizer(model, TrainingRecipe(epochs=1, weight_decay=0.1)).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.1), (3, 0.0)]


def test_progressive_resizing_ends_at_the_fullimage_size() -> None:
    recipe = TrainingRecipe(epochs=10, start_size=20)
    sizes = [image_size(recipe, epoch, 32) for epoch in range(10)]
    assert sizes[0] == 20
    assert sizes == sorted(sizes)
    assert sizes[6:] == [32] * 4
    assert {image_size(TrainingRecipe(epochs=10), epoch, 32) for epoch in range(10)} == {32}


@pytest.mark.parametrize(
    ("epochs", "start", "full", "sizes"),
    [
        (1, 16, 32, [32]),
        (2, 16, 32, [16, 32]),
        (3, 16, 32, [16, 24, 32]),
        (5, 20, 30, [20, 24, 28, 30, 30]),  # 10 px are no whole number of steps
        (3, 35, 32, [32, 32, 32]),
    ],
)
def test_progressive_resizing_reaches_the_full_size_in_any_number_of_epochs(
    epochs: int, start: int, full: int, sizes: list[int]
) -> None:
    recipe = TrainingRecipe(epochs=epochs, start_size=start)
    assert [image_size(recipe, epoch, full) for epoch in range(epochs)] == sizes


def test_checkpoints_run_no_code_and_name_damage(tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"step": 3, "net": {"w": torch.ones(1000)}})
    state = load_checkpoint(path)
    assert state is not None
    assert state["step"] == 3
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"damaged checkpoint.*student\.pt"):
        load_checkpoint(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here: a full disk is not tried")
def test_a_full_disk_while_saving_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file is /dev/full, which takes nothing: the kernel's own ENOSPC, torch's own reaction to it."""
    import tempfile

    path = tmp_path / "student.pt"
    save_checkpoint(path, {"step": 1})
    before = path.read_bytes()
    real = tempfile.mkstemp

    def full(prefix: str, suffix: str, dir: Path) -> tuple[int, str]:  # noqa: A002
        handle, name = real(prefix=prefix, suffix=suffix, dir=dir)
        Path(name).unlink()
        Path(name).symlink_to("/dev/full")
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", full)
    with pytest.raises(UserError, match="cannot write"):
        save_checkpoint(path, {"step": 2, "net": {"w": torch.ones(100_000)}})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["student.pt"]

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kdedge.training.averaging import WeightAverage
from kdedge.training.checkpoint import load_checkpoint, save_checkpoint
from torch import nn


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10))


def wander(student: nn.Module, average: WeightAverage, first: int, last: int) -> None:
    """Steps of a training that goes nowhere; what a step does depends on its number alone."""
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        student.train()
        with torch.no_grad():
            student(torch.randn(4, 1, 8, 8, generator=generator))
            for parameter in student.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        average.update_parameters(student)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_weights_and_statistics_follow_the_formula(decay: float) -> None:
    student = net()
    average = WeightAverage(student, decay)
    expected: dict[str, torch.Tensor] = {}
    for step in range(30):
        wander(student, average, step, step + 1)
        share = 1.0 if step == 0 else 1 - min(decay, (1 + step) / (10 + step))
        for name, value in student.state_dict().items():
            if value.is_floating_point():
                before = expected.get(name, torch.zeros_like(value))
                expected[name] = before + share * (value - before)
    found = average.module.state_dict()
    assert "1.running_mean" in expected
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_the_random_start_does_not_linger() -> None:
    student = net()
    average = WeightAverage(student, 0.999)
    wander(student, average, 0, 1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(1.0)
    for _ in range(100):
        average.update_parameters(student)
    for parameter in average.module.parameters():
        torch.testing.assert_close(parameter, torch.ones_like(parameter), rtol=0, atol=1e-6)


def test_the_averaged_net_is_ready_to_be_scored_and_handed_over() -> None:
    student, x = net(), torch.randn(5, 1, 8, 8)
    average = WeightAverage(student, 0.9)
    wander(student, average, 0, 5)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    expected = average.module(x)
    assert student.training
    assert not average.module.training
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])
    average.apply_to(student)
    torch.testing.assert_close(student.eval()(x), expected, rtol=0, atol=0)
    wander(student, average, 5, 6)
    assert not torch.equal(average.module(x), expected)


def test_an_average_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    straight = net()
    whole = WeightAverage(straight, 0.99)
    wander(straight, whole, 0, 20)

    student = net()
    first = WeightAverage(student, 0.99)
    wander(student, first, 0, 7)
    save_checkpoint(tmp_path / "s.pt", {"net": student.state_dict(), "average": first.state_dict()})
    again = net(seed=1)
    second = WeightAverage(again, 0.99)
    state = load_checkpoint(tmp_path / "s.pt")
    assert state is not None
    again.load_state_dict(state["net"])
    second.load_state_dict(state["average"])
    wander(again, second, 7, 20)
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name

"""Random nets: training, conversion, the file and the runtime compute one and the same integer program.

``make test`` draws a hundred nets, always the same ones, ten at a time (``tests/both_runtimes.py`` says why) and all of
them through both runtimes; ``make nightly`` draws three thousand new ones.

How far a runtime may depart from torch's int8 program. Every kernel computes on the same integers, and its exact result
is rounded once; where that is a tie (averages of an even count above all, products and sums whose scales divide each
other) or within float32's error of one, torch, ONNX Runtime and LiteRT round to either side. So a tensor is at most a
step off where it is made, and only in few of its values. What that does to the outputs depends on the net behind it: a
difference of two like tensors enlarges it a hundredfold. It is therefore measured on the net itself (``reach``):
torch's program with one tensor after the other a step up, down, or either at random, and the changes of the outputs
added up.

- The largest difference is at most that sum, in steps of the output.
- The mean difference is at most ``SHARE`` of it, or the share of values of some tensor that lie in the middle of two
  integers; all of it where a tensor takes so few values (``FEW``) that all of them may tie, as constants do.

Known to be within that, and named: HardSwish of LiteRT takes two roundings more (one value in a thousand a step off).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kdedge import quantize
from tests import both_runtimes, random_nets
from tests.both_runtimes import Array, Ran
from tests.random_nets import Net, Node
from torch.fx import GraphModule

BATCH = 10
SHARE = 0.1
# Ops that ONNX Runtime computes in float on a CPU whatever stands around them (docs/toolchain.md).
WITHOUT_INTEGER_KERNEL = {"Gelu", "Tanh", "HardSwish"}

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
# What fails names its net, one of ten: shrinking the ten would take minutes and say no more.
EVERY_TIME = settings(
    max_examples=10, derandomize=True, database=None, deadline=None, suppress_health_check=SLOW, phases=[Phase.generate]
)
EVERY_NIGHT = settings(EVERY_TIME, max_examples=300, derandomize=False)
KNOWN = st.lists(random_nets.nets(), min_size=BATCH, max_size=BATCH)


def check(nets: list[Net]) -> None:
    """All that is promised of nets of known ops."""
    prepared = both_runtimes.calibrated(nets)
    program = quantize.convert(prepared)
    samples = both_runtimes.inputs(nets)
    with torch.no_grad():
        trained, expected = prepared(*samples), program(*samples)
    for net, *pair in zip(nets, trained, expected, strict=True):
        assert torch.equal(*pair), f"conversion changes {net}"
    assert quantize.float_ops(program) == []

    arrays = [x.numpy() for x in samples]
    in_onnx = both_runtimes.in_onnx_runtime(program, nets, arrays)
    assert [op for op in in_onnx.float_ops if op.split()[0] not in WITHOUT_INTEGER_KERNEL] == []
    in_litert = both_runtimes.in_litert(program, nets, arrays)
    assert in_litert.float_ops == []
    for name, ran in (("ONNX Runtime", in_onnx), ("LiteRT", in_litert)):
        agrees(name, ran, nets, program, [y.numpy() for y in expected])


def agrees(name: str, ran: Ran, nets: list[Net], program: GraphModule, expected: list[Array]) -> None:
    """The runtime's outputs lie within what the module's docstring allows."""
    steps = both_runtimes.output_steps(program, expected)
    for net, step, ours, theirs in zip(nets, steps, expected, ran.outputs, strict=True):
        assert theirs.shape == ours.shape, f"{name}: {theirs.shape}, not {ours.shape}, from {net}"
        difference = np.abs(theirs.astype(np.float64) - ours) / step
        if not difference.max() > 0.01:
            continue
        largest, mean, may_tie = both_runtimes.reach(net)
        share = max(SHARE, may_tie)
        assert difference.max() <= largest, f"{name} is {difference.max():.1f} steps off, {largest:.1f} allowed: {net}"
        assert difference.mean() <= share * mean, (
            f"{name} is {difference.mean():.3f} steps off on average, {share * mean:.3f} allowed: {net}"
        )


def test_the_mean_of_a_pixel_is_integer_to_the_end() -> None:
    """A net that was drawn once: torch.onnx writes the mean over both axes of a 1×1 map as two Squeeze."""
    layer = Node("conv", (1,), {"channels": 5, "kernel": 3, "padding": 1, "groups": 5})
    last = Node("mean", (2,), {"keepdim": False})
    check([Net((Node("global_avg"), layer, last), shape=(5, 9, 8))])


def test_a_pool_of_single_pixels_is_no_pool() -> None:
    """A net that was drawn once: litert-torch drops such a pool, and with it one of two scales."""
    mean = Node("mean", (1,), {"keepdim": True})
    options = {"kernel_size": 1, "stride": 1, "padding": 0, "ceil_mode": False, "count_include_pad": False}
    pool, plus = Node("avg_pool", (2,), options), Node("plus", (4,), {"number": 50.0})
    nodes = (Node("gelu_tanh", (0,)), mean, pool, Node("second_half", (3,)), plus)
    check([Net(nodes, shape=(4, 8, 9), inputs="uniform", scale=0.0001, offset=-2.0, seed=37)])


@EVERY_TIME
@given(KNOWN)
def test_a_hundred_random_nets_compute_the_same_everywhere(nets: list[Net]) -> None:
    check(nets)


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
@EVERY_NIGHT
@given(KNOWN)
def test_three_thousand_random_nets_compute_the_same_everywhere(nets: list[Net]) -> None:
    check(nets)

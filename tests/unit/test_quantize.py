from __future__ import annotations

import copy

import pytest
import torch
from kdedge import quantize
from kdedge.errors import BundleError, ModelError
from kdedge.quantize.bias import BiasFakeQuantize
from kdedge.quantize.capture import capture
from tests import small_nets
from torch import Tensor, nn
from torch.fx import GraphModule

BATCHES = [(torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(i)),) for i in range(3)]
EXAMPLE = (torch.zeros(2, 3, 16, 16),)


def prepared_of(net: nn.Module) -> GraphModule:
    prepared = quantize.prepare_qat(net, EXAMPLE)
    quantize.calibrate(prepared, BATCHES)
    quantize.set_observers(prepared, False)
    return prepared


def logits(net: nn.Module, x: Tensor) -> Tensor:
    net.eval()
    with torch.no_grad():
        result: Tensor = net(x)
    return result


@pytest.mark.parametrize("name", small_nets.NAMES)
def test_folding_keeps_the_function_and_leaves_the_student_alone(name: str) -> None:
    net = small_nets.build(name)
    before = copy.deepcopy(net.state_dict())
    x = BATCHES[0][0]
    prepared = quantize.prepare_qat(net, EXAMPLE)
    quantize.set_fake_quantize(prepared, False)
    quantize.set_observers(prepared, False)
    assert torch.allclose(logits(prepared, x), logits(net, x), atol=1e-5)
    assert not any("batch_norm" in str(node.target) for node in prepared.graph.nodes)
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.add_(1.0)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", small_nets.NAMES)
def test_converted_program_computes_what_training_computed_bit_for_bit(name: str) -> None:
    prepared = prepared_of(small_nets.build(name))
    converted = quantize.convert(prepared)
    x = torch.randn(33, 3, 16, 16)
    assert torch.equal(logits(converted, x), logits(prepared, x))
    assert quantize.float_ops(converted) == []
    assert quantize.integer_macs_share(converted) == 1.0


def test_qparams_are_the_same_before_and_after_conversion_and_integer_in_form() -> None:
    prepared = prepared_of(small_nets.build("residual"))
    before = {q.name: q for q in quantize.qparams(prepared)}
    after = {q.name: q for q in quantize.qparams(quantize.convert(prepared))}
    assert before.items() <= after.items()
    weights = [q for q in before.values() if q.axis is not None]
    assert len(weights) == 9 and all(set(q.zero_point) == {0} for q in weights)
    assert all(len(q.scale) == 1 for q in before.values() if q.axis is None)


def test_weights_stored_as_int8_within_127() -> None:
    converted = quantize.convert(prepared_of(small_nets.build("residual")))
    stored = [buffer for buffer in converted.buffers() if buffer.dtype == torch.int8]
    assert len(stored) == 9
    assert all(int(w.min()) >= -127 and int(w.abs().max()) == 127 for w in stored)


def test_relu6_range_starts_at_qmin_and_ends_inside_six() -> None:
    prepared = prepared_of(small_nets.build("residual"))
    clipped = [q for q in quantize.qparams(prepared) if "hardtanh" in q.name]
    assert len(clipped) == 4
    for q in clipped:
        assert q.zero_point == (-128,) and torch.tensor(q.scale[0]) * 255 <= 6.0


@pytest.mark.parametrize("name", ["gate", "channels_last"])
@pytest.mark.parametrize("examples", [2, 1])
def test_state_loads_into_another_build_and_resumes_exactly(examples: int, name: str) -> None:
    net = small_nets.build(name)
    prepared = prepared_of(net)
    state = quantize.quantised_state(prepared)
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    other = quantize.prepare_qat(small_nets.build(name, seed=7), (EXAMPLE[0][:examples],))
    quantize.load_quantised_state(other, state)
    x = BATCHES[1][0][:1]
    assert torch.equal(logits(quantize.convert(other), x), logits(prepared, x))


def test_training_resumed_from_state_equals_training_that_never_stopped() -> None:
    def steps(prepared: GraphModule, batches: list[tuple[Tensor]]) -> None:
        prepared.train()
        optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
        for index, (x,) in enumerate(batches):
            torch.manual_seed(index + len(batches))  # dropout
            optimizer.zero_grad()
            prepared(x).square().mean().backward()
            optimizer.step()

    net = small_nets.build("branches")
    whole, first = quantize.prepare_qat(net, EXAMPLE), quantize.prepare_qat(net, EXAMPLE)
    steps(whole, BATCHES[:2])
    steps(whole, BATCHES[2:])
    steps(first, BATCHES[:2])
    second = quantize.prepare_qat(net, EXAMPLE)
    quantize.load_quantised_state(second, quantize.quantised_state(first))
    quantize.set_observers(second, True)
    steps(second, BATCHES[2:])
    for key, value in quantize.quantised_state(whole).items():
        assert torch.equal(value, quantize.quantised_state(second)[key]), key


def test_a_loaded_state_keeps_scales_that_its_weights_have_outgrown() -> None:
    prepared = prepared_of(small_nets.build("branches"))
    quantize.set_observers(prepared, False)
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.mul_(0.9)
    loaded = quantize.prepare_qat(small_nets.build("branches"), EXAMPLE)
    quantize.load_quantised_state(loaded, quantize.quantised_state(prepared))
    x = BATCHES[0][0]
    assert torch.equal(quantize.convert(loaded)(x), quantize.convert(prepared)(x))
    assert torch.equal(loaded.eval()(x), prepared.eval()(x))


def test_state_of_another_model_is_refused_by_name() -> None:
    prepared = prepared_of(small_nets.build("gate"))
    with pytest.raises(BundleError, match=r"does not fit the model: it (lacks|holds)"):
        quantize.load_quantised_state(prepared, quantize.quantised_state(prepared_of(small_nets.build("residual"))))
    state = quantize.quantised_state(prepared)
    state["0.weight"] = state["0.weight"][:4]
    with pytest.raises(BundleError, match=r"'0.weight' has shape \[4, 3, 3, 3\], not \[8, 3, 3, 3\]"):
        quantize.load_quantised_state(prepared, state)


def test_converting_before_any_data_is_refused() -> None:
    prepared = quantize.prepare_qat(small_nets.build("gate"), EXAMPLE)
    with pytest.raises(ModelError, match="never saw data"):
        quantize.convert(prepared)


def test_evaluation_moves_no_range_and_conversion_changes_nothing() -> None:
    prepared = quantize.prepare_qat(small_nets.build("branches"), EXAMPLE)
    prepared(*BATCHES[0])
    before = quantize.quantised_state(prepared)
    logits(prepared, 100 * BATCHES[1][0])
    quantize.convert(prepared)
    for key, value in quantize.quantised_state(prepared).items():
        assert torch.equal(value, before[key]), key


def test_dropout_obeys_train_and_eval_and_is_gone_after_conversion() -> None:
    prepared = prepared_of(small_nets.build("gate"))
    x = BATCHES[0][0]
    assert torch.equal(logits(prepared, x), logits(prepared, x))
    prepared.train()
    assert not torch.equal(prepared(x), prepared(x))
    assert not any("dropout" in str(node.target) for node in quantize.convert(prepared).graph.nodes)


def test_range_of_a_concatenation_covers_every_branch() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x * 10.0], dim=1)

    prepared = quantize.prepare_qat(Wide(), EXAMPLE)
    quantize.calibrate(prepared, BATCHES)
    (scale,) = quantize.qparams(prepared)[0].scale
    extremes = 10.0 * BATCHES[0][0].aminmax().max, 10.0 * BATCHES[0][0].aminmax().min
    assert 255 * scale > 0.9 * float(extremes[0] - extremes[1]), "a range averaged over branches would clip"


def test_biases_lie_on_the_int32_grid_that_the_runtimes_store() -> None:
    prepared = prepared_of(small_nets.build("residual"))
    converted = quantize.convert(prepared)
    scales = {q.name: q for q in quantize.qparams(converted)}
    for node in converted.graph.nodes:
        if node.target not in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
            continue
        source, weight, bias = node.args[:3]
        per_channel = torch.tensor(scales[weight.meta["kdedge_weight"]].scale)
        steps = converted.get_parameter(str(bias.target)).detach().double() / (source.args[1] * per_channel).double()
        assert steps.abs().max() > 1
        torch.testing.assert_close(steps, steps.round(), rtol=2e-7, atol=0)  # float32's own rounding


def test_a_bias_trains_through_its_rounding_and_passes_unrounded_where_nothing_is_quantised() -> None:
    prepared = prepared_of(small_nets.build("residual"))
    for name, module in prepared.named_modules():
        if isinstance(module, BiasFakeQuantize):
            bias = torch.linspace(-1, 1, len(module(torch.zeros(1)))).requires_grad_()
            rounded = module(bias)
            rounded.sum().backward()
            assert bias.grad is not None and torch.equal(bias.grad, torch.ones_like(bias)), name
            assert not torch.equal(rounded, bias)
            quantize.set_fake_quantize(prepared, False)
            assert torch.equal(module(bias), bias)
            quantize.set_fake_quantize(prepared, True)


def test_a_bias_that_two_layers_share_is_rounded_for_each() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
            self.last.bias = self.first.bias

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(self.first(x))
            return result

    torch.manual_seed(0)
    prepared = prepared_of(Shared())
    converted = quantize.convert(prepared)
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(logits(converted, x), logits(prepared, x))
    layers = [node for node in converted.graph.nodes if node.target is torch.ops.aten.conv2d.default]
    assert len({layer.args[2].target for layer in layers}) == 2


def test_dead_channel_keeps_an_int32_bias() -> None:
    net = small_nets.build("residual")
    norm = net.get_submodule("1.body.1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = 1e-18, 1.5
    prepared = prepared_of(net)
    scales = {q.name: q for q in quantize.qparams(prepared)}
    weight, source = scales["1.body.0.weight"], scales["conv2d"]
    assert 1.5 / (weight.scale[0] * source.scale[0]) < 2**31


def test_gradient_passes_where_nothing_clamps_and_stops_where_it_does() -> None:
    quantiser = quantize.ActivationFakeQuantize()
    quantiser(torch.tensor([-1.0, 1.55]))
    quantiser.enable_observer(False)
    x = torch.tensor([-9.0, -0.5, 0.0, 1.0, 9.0], requires_grad=True)
    quantiser(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("low, high", [(None, None), (0.0, None), (0.0, 6.0)])
def test_activation_quantiser_equals_torchs_kernel(low: float | None, high: float | None) -> None:
    quantiser = quantize.ActivationFakeQuantize(low=low, high=high)
    x = 4 * torch.randn(4096)
    x = x if low is None else x.clamp(low, high)
    ours = quantiser(x)
    theirs = torch.fake_quantize_per_tensor_affine(x, quantiser.scale, quantiser.zero_point, -128, 127)
    assert (ours - theirs).abs().max() <= 1e-5


def test_unknown_op_stays_float_and_is_named_with_its_reason() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(torch.sin(self.first(x)))
            return result

    converted = quantize.convert(prepared_of(Odd().eval()))
    assert [(op.op, op.reason) for op in quantize.float_ops(converted)] == [
        ("aten.sin.default", "the quantiser has no integer form of this op")
    ]
    assert quantize.integer_macs_share(converted) == 1.0


def test_model_that_cannot_be_exported_is_refused_in_one_line() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError) as caught:
        quantize.prepare_qat(Branching(), EXAMPLE)
    assert "\n" not in str(caught.value) and "Branching" in str(caught.value)


def test_global_pool_over_one_pixel_is_left_out() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    assert not any("pool" in str(node.target) for node in capture(net, EXAMPLE).graph.nodes)

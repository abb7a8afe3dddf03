"""A text net as an integer program: what is integer, what the mask costs, what training sees, what a state restores."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from kdedge import quantize, text
from kdedge.inputs import examples
from kdedge.quantize.fake_quantize import SOFTMAX_DEPTH
from tests import text_nets
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

aten = torch.ops.aten


@pytest.fixture(scope="module", params=text_nets.KINDS, ids=lambda kind: kind[0])
def net(request: pytest.FixtureRequest) -> text.TextNet:
    return text_nets.trained(*request.param)


@pytest.fixture(scope="module")
def prepared(net: text.TextNet) -> GraphModule:
    return text_nets.quantised(net)


def logits(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        result: Tensor = module(*inputs)
    return result


def nodes_of(graph_module: GraphModule, target: object) -> list[Node]:
    return [node for node in graph_module.graph.nodes if node.target is target]


def test_all_but_layer_norms_and_their_sums_is_integer(prepared: GraphModule) -> None:
    converted = quantize.convert(prepared)
    found = {op.op: op.reason for op in quantize.float_ops(converted)}
    counts = Counter(op.op for op in quantize.float_ops(converted))
    assert counts == {"aten.layer_norm.default": 5, "aten.add.Tensor": 4}
    assert found["aten.layer_norm.default"] == "the quantiser has no integer form of this op"
    assert found["aten.add.Tensor"] == "only layer norms read it, which are float"
    assert quantize.integer_macs_share(converted) == 1.0
    assert not nodes_of(converted, aten.mul.Tensor), "1/√d belongs to the weights"
    weights = [buffer for buffer in converted.buffers() if buffer.dtype == torch.int8]
    stored = sum(buffer.numel() for buffer in weights)
    assert stored >= sum(p.numel() for p in prepared.parameters() if p.ndim == 2), "a table or a weight is not int8"


def test_no_name_in_the_state_depends_on_torchaos_numbers(prepared: GraphModule) -> None:
    assert not [name for name in quantize.quantised_state(prepared) if "activation_post_process" in name]


def test_converted_program_computes_what_training_computed_bit_for_bit(
    net: text.TextNet, prepared: GraphModule
) -> None:
    inputs, _ = text_nets.texts(net, 40, seed=5)
    assert torch.equal(logits(quantize.convert(prepared), inputs), logits(prepared, inputs))


def test_training_with_quantisation_keeps_what_the_net_has_learnt(net: text.TextNet, prepared: GraphModule) -> None:
    inputs, labels = text_nets.texts(net, 300, seed=6)
    for module in (net, prepared):
        assert (logits(module, inputs).argmax(-1) == labels).float().mean() > 0.95


def test_what_stands_under_the_mask_changes_no_integer(net: text.TextNet, prepared: GraphModule) -> None:
    (ids, mask, *types), _ = text_nets.texts(net, 40, seed=7)
    rubbish = torch.where(mask == 1, ids, torch.randint(0, text_nets.VOCABULARY, ids.shape))
    tokens = mask.bool() if net.config.task == "question-answering" else torch.ones(len(ids), net.config.classes) > 0
    found, expected = logits(prepared, (rubbish, mask, *types)), logits(prepared, (ids, mask, *types))
    assert not torch.equal(rubbish, ids)
    if net.config.task == "question-answering":
        found, expected = found.transpose(1, 2), expected.transpose(1, 2)
    assert torch.equal(found[tokens], expected[tokens])


class _Attention(Interpreter):
    """Collects the quantised probabilities of every layer."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.found: list[Tensor] = []

    def run_node(self, n: Node) -> object:
        result: Tensor = super().run_node(n)
        source = n.args[0] if n.op == "call_module" else None
        if isinstance(source, Node) and source.target is aten.softmax.int:
            self.found.append(result)
        return result


@pytest.mark.parametrize("shortest", [8, text_nets.LENGTH], ids=["padded", "unpadded"])
def test_padding_costs_the_scores_no_precision(net: text.TextNet, prepared: GraphModule, shortest: int) -> None:
    """The first layer, whose inputs are nearly the float ones: within a step of 1/256 a weight, padding or not."""
    inputs, _ = text_nets.texts(net, 40, seed=8, shortest=shortest)
    attention = _Attention(prepared)
    with torch.no_grad():
        attention.run(*inputs)
        weights = dict(prepared.state_dict())
        twin = text.TextNet.from_description(net.describe()).eval()  # the float net after training with quantisation
        own = twin.state_dict()
        twin.load_state_dict(
            {k: weights[k] if v.shape == weights[k].shape else _padded(weights[k], v) for k, v in own.items()}
        )
        expected = twin.forward_with_states(*inputs).attention[0]
    rows = inputs[1].bool()[:, None, :].expand(expected.shape[:3])
    error = (attention.found[0] - expected).abs()[rows]
    assert float(error.mean()) < 1 / 256 and float(error.max()) < 0.1
    under_mask = (attention.found[0] * (inputs[1] == 0)[:, None, None]).sum(-1)
    assert float(under_mask.max()) == 0.0


def _padded(rows: Tensor, table: Tensor) -> Tensor:
    """Rows of a table that is longer."""
    return torch.cat([rows, table[len(rows) :]])


def test_range_of_scores_is_that_of_the_scores_that_matter() -> None:
    quantiser = quantize.ActivationFakeQuantize(members=2, softmax_axis=-1)
    scores = torch.tensor([[5.0, -200.0, 3.0], [2.0, 1.0, 40.0]])
    mask = torch.tensor([[0.0, 0.0, -127.0], [0.0, 0.0, -127.0]])
    summed = quantiser(quantiser(scores) + mask)
    assert float(quantiser.min_val) == pytest.approx(2.0 - SOFTMAX_DEPTH, abs=0.2)  # of scores rounded already
    assert float(quantiser.max_val) == pytest.approx(5.0, abs=0.2)
    probabilities = summed.softmax(-1)
    assert probabilities[:, 2].max() < 1e-5
    torch.testing.assert_close(probabilities, (scores + mask).softmax(-1), atol=0.03, rtol=0)


def test_scores_and_their_masked_sum_share_one_scale(prepared: GraphModule) -> None:
    for softmax in nodes_of(quantize.convert(prepared), aten.softmax.int):
        (total,) = softmax.all_input_nodes
        add = total.args[0].args[0]  # type: ignore[union-attr]
        assert add.target is aten.add.Tensor  # type: ignore[union-attr]
        assert add.args[0].args[1:3] == total.args[1:3]  # type: ignore[union-attr]
        assert add.args[1].args[1:3] == (1.0, 0)  # type: ignore[union-attr]


def test_right_operands_of_products_have_zero_point_zero(prepared: GraphModule) -> None:
    products = nodes_of(quantize.convert(prepared), aten.matmul.default)
    assert len(products) == 4
    assert all(product.args[1].args[2] == 0 for product in products)  # type: ignore[union-attr]


def test_tables_have_one_scale_that_their_rows_keep(net: text.TextNet, prepared: GraphModule) -> None:
    converted = quantize.convert(prepared)
    lookups = nodes_of(converted, aten.embedding.default)
    assert len(lookups) == len(net.inputs(8))
    for lookup in lookups:
        table = lookup.args[0]
        assert isinstance(table, Node) and table.args[2] == 0
        assert all(user.args[1:3] == table.args[1:3] for user in lookup.users)
    scales = {q.name: q for q in quantize.qparams(converted)}
    name = f"model.{net.config.architecture}.embeddings.word_embeddings.weight"
    largest = float(prepared.get_parameter(name).abs().max())
    assert scales[name].axis is None and scales[name].scale[0] == pytest.approx(largest / 127, rel=0.01)
    assert {q.name: q for q in quantize.qparams(prepared)}.items() <= scales.items()


def test_parameters_train_as_they_are_and_positions_are_as_many_as_tokens(net: text.TextNet) -> None:
    prepared = quantize.prepare_qat(net, examples(net.inputs(text_nets.LENGTH), 2))
    own = dict(net.named_parameters())
    for name, parameter in prepared.named_parameters():
        if "position_embeddings" in name:
            assert torch.equal(parameter, own[name][: text_nets.LENGTH])
        else:
            assert torch.equal(parameter, own[name]), name
    inputs, labels = text_nets.texts(net, 16)
    loss = nn.functional.cross_entropy(prepared(*inputs).flatten(0, -2), labels.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in prepared.parameters())


def test_state_restores_the_program_in_another_build(net: text.TextNet, prepared: GraphModule) -> None:
    other = text.TextNet.from_description(net.describe())
    again = quantize.prepare_qat(other, examples(other.inputs(text_nets.LENGTH), 2))
    quantize.load_quantised_state(again, quantize.quantised_state(prepared))
    inputs, _ = text_nets.texts(net, 1, seed=9)
    assert torch.equal(logits(quantize.convert(again), inputs), logits(prepared, inputs))

"""Text nets: transformers' numbers, shapes, masks, states and descriptions."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from kdedge import text
from kdedge.errors import ModelError
from kdedge.quantize.capture import capture
from tests import text_nets
from torch import Tensor

ALL_KINDS = [(a, t) for a in ("bert", "distilbert") for t in ("text-classification", "question-answering")]


def random_texts(net: text.TextNet, count: int = 5, length: int = 20) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    ids, types = (torch.randint(0, high, (count, length), generator=generator) for high in (500, 2))
    mask = torch.ones(count, length, dtype=torch.int64)
    mask[1, 9:] = 0
    mask[2, 1:] = 0
    return (ids, mask, types)[: len(net.inputs(length))]


@pytest.mark.parametrize("architecture, task", ALL_KINDS)
def test_logits_are_those_of_transformers(architecture: Any, task: Any) -> None:
    net = text_nets.build(architecture, task)
    inputs = random_texts(net)
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        ours, theirs = net(*inputs), net.model(**dict(zip(names, inputs, strict=False)))
    if task == "text-classification":
        assert ours.shape == (5, text_nets.CLASSES)
        torch.testing.assert_close(ours, theirs.logits)
    else:
        assert ours.shape == (5, 2, 20)
        torch.testing.assert_close(ours, torch.stack([theirs.start_logits, theirs.end_logits], 1))


@pytest.mark.parametrize("architecture, task", ALL_KINDS)
def test_padding_changes_no_logit(architecture: Any, task: Any) -> None:
    net = text_nets.build(architecture, task)
    short = tuple(tensor[:1, :9] for tensor in random_texts(net))
    generator = torch.Generator().manual_seed(2)
    rubbish = torch.randint(0, 2, (1, 23), generator=generator)
    padding = (17 * rubbish, torch.zeros_like(rubbish), rubbish)
    padded = tuple(torch.cat([tensor, more], 1) for tensor, more in zip(short, padding, strict=False))
    with torch.no_grad():
        expected, found = net(*short), net(*padded)
    torch.testing.assert_close(found[..., : expected.shape[-1]], expected)


def test_states_are_whole_differentiable_and_leave_the_net_as_it_was() -> None:
    net = text_nets.build("bert", "text-classification").train()
    before = [dict(vars(module)) for module in net.modules()]
    inputs = random_texts(net)
    states = net.forward_with_states(*inputs)
    assert [tuple(state.shape) for state in states.hidden] == [(5, 20, 64)] * 3
    assert [tuple(weights.shape) for weights in states.attention] == [(5, 4, 20, 20)] * 2
    for weights in states.attention:  # before dropout, though the net is training
        torch.testing.assert_close(weights.sum(-1), torch.ones(5, 4, 20))
        assert weights[1, :, :, 9:].abs().max() == 0
    (states.hidden[1].square().mean() + states.attention[1].square().mean()).backward()  # type: ignore[no-untyped-call]
    assert net.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    assert [set(vars(module)) for module in net.modules()] == [set(values) for values in before]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_states_agree_with_transformers_and_with_forward() -> None:
    net = text_nets.build("bert", "question-answering")
    inputs = random_texts(net)
    with torch.no_grad():
        states, logits = net.forward_with_states(*inputs), net(*inputs)
        twin = copy.deepcopy(net.model)
        twin.set_attn_implementation("eager")
        theirs = twin(*inputs, output_hidden_states=True, output_attentions=True)
    assert torch.equal(states.logits, logits)
    for ours, other in zip((*states.hidden, *states.attention), (*theirs.hidden_states, *theirs.attentions)):  # noqa: B905
        torch.testing.assert_close(ours, other)


def test_absent_token_types_stand_for_zeros_and_a_distilbert_has_none() -> None:
    net = text_nets.build("bert", "text-classification")
    ids, mask, types = random_texts(net)
    with torch.no_grad():
        torch.testing.assert_close(net(ids, mask), net(ids, mask, torch.zeros_like(types)))
        assert not torch.equal(net(ids, mask), net(ids, mask, types))
        small = text_nets.build("distilbert", "text-classification")
        assert torch.equal(small(ids, mask), small(ids, mask, types))
    assert [spec.name for spec in net.inputs(7)] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [(spec.name, spec.dtype, spec.shape) for spec in small.inputs(7)] == [
        ("input_ids", "int32", (7,)),
        ("attention_mask", "int32", (7,)),
    ]


@pytest.mark.parametrize("architecture, task", ALL_KINDS)
def test_captured_graph_computes_the_same_for_any_batch(architecture: Any, task: Any) -> None:
    net = text_nets.build(architecture, task)
    inputs = random_texts(net)
    graph = capture(net, tuple(tensor[:2] for tensor in inputs)).eval()
    with torch.no_grad():
        torch.testing.assert_close(graph(*inputs), net(*inputs))


@pytest.mark.parametrize("architecture, task", ALL_KINDS)
def test_description_survives_json_and_fits_the_weights(architecture: Any, task: Any) -> None:
    net = text_nets.build(architecture, task, head_dropout=0.3)
    again = text.TextNet.from_description(json.loads(json.dumps(net.describe()))).eval()
    again.load_state_dict(net.state_dict())
    inputs = random_texts(net)
    with torch.no_grad():
        assert torch.equal(again(*inputs), net(*inputs))
    assert again.describe() == net.describe()
    assert again.model.config.to_dict() == net.model.config.to_dict()


def test_base_shapes_are_the_defaults() -> None:
    bert = text.TextConfig("bert", "text-classification", 2, layers=12, token_types=2)
    with torch.device("meta"):
        for architecture, parameters in (("bert", 109_483_778), ("distilbert", 66_955_010)):
            net = text.from_config(architecture, "text-classification")  # type: ignore[arg-type]
            assert sum(p.numel() for p in net.parameters()) == parameters
    assert text.from_config.__module__ == "kdedge.text.net" and bert.hidden == 768


@pytest.mark.parametrize(
    "sizes, says",
    [
        ({"architecture": "gpt2"}, "the architecture 'gpt2'"),
        ({"task": "translation"}, "the task 'translation'"),
        ({"activation": "swish"}, "the activation 'swish'"),
        ({"heads": 5}, "5 heads over a width of 64"),
        ({"layers": 0}, "layers 0"),
        ({"token_types": 0}, "0 token types"),
        ({"architecture": "distilbert", "token_types": 2}, "2 token types"),
        ({"task": "question-answering", "classes": 3}, "3 classes for question answering"),
        ({"width": 3}, "not the description of a text net"),
    ],
)
def test_what_no_net_can_be_is_refused_in_one_line(sizes: dict[str, Any], says: str) -> None:
    description = {**text_nets.build("bert", "text-classification").describe(), **sizes}
    with pytest.raises(ModelError, match=says) as caught:
        text.TextNet.from_description(description)
    assert "\n" not in str(caught.value)


def test_more_tokens_than_positions_are_refused() -> None:
    net = text_nets.build("distilbert", "text-classification")
    ids = torch.ones(1, 65, dtype=torch.int64)
    with pytest.raises(ModelError, match="65 tokens for a net of 64 positions"):
        net(ids, ids)
    with pytest.raises(ModelError, match="65 tokens"):
        net.inputs(65)

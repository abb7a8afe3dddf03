"""Text from files to artifacts, by the commands that users type, on a small BERT with random weights."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tests.json_commands import kdedge
from tests.text_data import saved, word_piece

GOOD, BAD = ("fine", "lovely", "great", "warm"), ("dull", "awful", "grim", "flat")
REST = ["the", "film", "was", "a", "story", "of", "people", "in", "some", "town", "by", "the", "sea", "and", "it"]


def sentence(generator: random.Random, word: str) -> str:
    words = generator.sample(REST, generator.randint(4, 9))
    words.insert(generator.randint(0, len(words)), word)
    return " ".join(words)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of sentences whose class hangs on one word."""
    generator = random.Random(0)
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    rows = ["sentence,label"]
    for _ in range(1200):
        label = generator.choice(("good", "bad"))
        rows.append(f"{sentence(generator, generator.choice(GOOD if label == 'good' else BAD))},{label}")
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def run(reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A whole distillation: bert-tiny with random weights → one of its layers, QAT included."""
    folder = tmp_path_factory.mktemp("text")
    tokenizer = saved(word_piece([" ".join((*REST, *GOOD, *BAD))]), folder / "tokenizer")
    options = [
        "sst2-minilm-cpu", "--data", reviews, "--out", folder / "run",
        f"--set=text.tokenizer={tokenizer}", "--set=text.max_length=24", "--set=teacher.model=bert-tiny",
        "--set=teacher.training.learning_rate=5e-4", "--set=teacher.training.epochs=4", "--set=student.layers=[0]",
        "--set=student.training.learning_rate=5e-4", "--set=student.training.epochs=4",
        "--set=distillation.attention_weight=0.1",
    ]  # fmt: skip
    return kdedge("distill", *options), folder


def test_it_learns_and_keeps_what_it_learnt_in_integers(run: tuple[dict[str, Any], Path]) -> None:
    metrics = run[0]["metrics"]
    assert metrics["teacher"]["accuracy"] > 0.97
    assert metrics["student_float"]["accuracy"] > 0.97
    assert metrics["student_int8"]["accuracy"] > metrics["student_float"]["accuracy"] - 0.01
    assert set(metrics["student_int8"]) == {"n", "accuracy", "f1_macro"}


def test_the_bundle_needs_neither_data_nor_teacher(run: tuple[dict[str, Any], Path]) -> None:
    from kdedge.bundle import Bundle

    bundle = Bundle.load(run[0]["bundle"])
    assert [spec.name for spec in bundle.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert bundle.manifest["integer_macs_share"] == 1.0
    assert bundle.labels == ("bad", "good")
    assert "tokenizer.json" in bundle.manifest["files"]


def test_a_bundle_teaches_the_next_student(run: tuple[dict[str, Any], Path], reviews: Path, tmp_path: Path) -> None:
    """Its own tokenizer comes with it; here the next student has the same layer, and starts from it."""
    options = [
        "sst2-minilm-cpu", "--data", reviews, "--out", tmp_path / "run", "--teacher", run[0]["bundle"],
        "--set=text.max_length=24", "--set=student.layers=[0]", "--set=student.training.epochs=1",
        "--set=qat.training.epochs=0",
    ]  # fmt: skip
    done = kdedge("distill", *options)
    assert "teacher" not in done["time_s"], "it comes trained"
    assert done["metrics"]["teacher"] == run[0]["metrics"]["student_float"]
    assert done["metrics"]["student_float"]["accuracy"] > 0.97


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_artifacts_score_as_the_student_does(run: tuple[dict[str, Any], Path], reviews: Path, format_: str) -> None:
    """An artifact holds its tokenizer: it is scored from the sentences alone, by its own runtime."""
    document, folder = run
    made = kdedge("export", document["bundle"], "--format", format_, "--out", folder / f"student.{format_}")
    assert made["parity"]["agreement"] >= 0.99
    assert made["parity"]["n"] == document["metrics"]["student_int8"]["n"]
    scored = kdedge("eval", made["artifact"], "--data", reviews)
    assert scored["n"] == document["metrics"]["student_int8"]["n"]
    assert abs(scored["metrics"]["accuracy"] - document["metrics"]["student_int8"]["accuracy"]) <= 0.01
    options = ["--repetitions", 20, "--accuracy-data", reviews, "--out", folder / "records"]
    record = kdedge("bench", made["artifact"], *options)
    assert record["latency_s"]["n"] >= 20
    assert record["accuracy"]["n"] == scored["n"]
    assert record["accuracy"]["accuracy"] == pytest.approx(scored["metrics"]["accuracy"])
    assert record["accuracy"]["f1_macro"] == pytest.approx(scored["metrics"]["f1_macro"], abs=1e-6)


def test_its_own_folder_is_a_teacher_again(run: tuple[dict[str, Any], Path], reviews: Path, tmp_path: Path) -> None:
    options = [
        "sst2-minilm-cpu", "--data", reviews, "--out", tmp_path / "run", "--teacher", run[1] / "run" / "teacher",
        "--set=text.max_length=24", "--set=student.model=distilbert", "--set=student.layers=[1]",
        "--set=student.training.epochs=1", "--set=qat.training.epochs=0",
    ]  # fmt: skip
    document = kdedge("distill", *options)
    assert document["metrics"]["teacher"] == run[0]["metrics"]["teacher"]
    assert "teacher" not in document["time_s"]

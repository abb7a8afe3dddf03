"""Questions from a file to scores on a device, by the commands that users type, on a small BERT with random weights."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.json_commands import kdedge
from tests.text_data import saved, word_piece

COLOURS = ("red", "green", "blue", "white", "black", "brown")
REST = ["the", "house", "was", "a", "place", "of", "people", "in", "some", "town", "by", "the", "sea", "and", "it"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in SQuAD's own form: in each text one word is a colour; most texts take two windows."""
    generator = random.Random(0)
    articles = []
    for number in range(600):
        words = generator.choices(REST, k=generator.randint(10, 30))
        at, colour = generator.randint(0, len(words)), generator.choice(COLOURS)
        context = " ".join([*words[:at], colour, *words[at:]])
        answer = {"text": colour, "answer_start": len(" ".join(words[:at])) + (at > 0)}
        asked = {"id": str(number), "question": "which colour", "answers": [answer]}
        articles.append({"title": f"town {number}", "paragraphs": [{"context": context, "qas": [asked]}]})
    path = tmp_path_factory.mktemp("questions") / "questions.json"
    path.write_text(json.dumps({"version": "1.1", "data": articles}))
    return path


@pytest.fixture(scope="module")
def run(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A whole distillation: bert-tiny with random weights → one of its layers, QAT included."""
    folder = tmp_path_factory.mktemp("reader")
    tokenizer = saved(word_piece([" ".join((*REST, *COLOURS, "which colour"))]), folder / "tokenizer")
    options = [
        "squad-minilm-cpu", "--data", questions, "--out", folder / "run",
        f"--set=text.tokenizer={tokenizer}", "--set=text.max_length=24", "--set=text.doc_stride=8",
        "--set=teacher.model=bert-tiny", "--set=teacher.training.learning_rate=1e-3", "--set=teacher.training.epochs=4",
        "--set=student.layers=[0]", "--set=student.training.learning_rate=1e-3", "--set=student.training.epochs=4",
    ]  # fmt: skip
    return kdedge("distill", *options), folder


def test_it_learns_to_read_and_keeps_it_in_integers(run: tuple[dict[str, Any], Path]) -> None:
    metrics = run[0]["metrics"]
    assert set(metrics["student_int8"]) == {"n", "exact_match", "f1"}
    assert metrics["student_float"]["exact_match"] > 0.9
    assert metrics["student_int8"]["f1"] > metrics["student_float"]["f1"] - 0.02


@pytest.mark.parametrize("format_", ["onnx", pytest.param("tflite", marks=pytest.mark.nightly)])
def test_the_device_reads_as_the_host_does(run: tuple[dict[str, Any], Path], questions: Path, format_: str) -> None:
    """The device sends the logits of the windows back, and the answers are put together here."""
    document, folder = run
    made = kdedge("export", document["bundle"], "--format", format_, "--out", folder / f"student.{format_}")
    scored = kdedge("eval", made["artifact"], "--data", questions)
    assert scored["n"] == document["metrics"]["student_int8"]["n"]
    assert abs(scored["metrics"]["f1"] - document["metrics"]["student_int8"]["f1"]) <= 0.02
    options = ["--repetitions", 20, "--accuracy-data", questions, "--out", folder / "records"]
    record = kdedge("bench", made["artifact"], *options)
    said = {name: record["accuracy"][name] for name in ("n", "exact_match", "f1")}
    assert said == {"n": scored["n"], **scored["metrics"]}

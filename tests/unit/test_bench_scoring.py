from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdedge.cli.samples import Samples, for_device
from kdedge.data.questions import Question
from kdedge.errors import ArtifactError, DataError
from kdedge.questions.examples import QuestionPart
from kdedge.text.examples import SentenceExamples
from kdedge.text.tokenization import TextPreprocessing
from tests.text_data import word_piece

from kdedge_bench import scoring

PREPROCESSING = TextPreprocessing(word_piece(["one two"]).to_str(), 8, 0, token_types=True)


def test_a_mapping_is_cut_alike_and_stays_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PIECE_BYTES", 3 * 2 * 5 * 4)  # three samples of two inputs of five numbers
    ids = np.arange(40, dtype=np.int32).reshape(8, 5)
    found = list(scoring.pieces(({"ids": ids, "mask": ids % 2}, np.arange(8))))
    assert [piece.shape for piece, _ in found] == [[3, 5], [3, 5], [2, 5]]
    assert all(piece.columns == ("ids", "mask") for piece, _ in found)
    assert np.array_equal(np.concatenate([piece.values[0] for piece, _ in found]), ids)
    assert np.array_equal(np.concatenate([piece.values[1] for piece, _ in found]), ids % 2)
    assert [label for _, labels in found for label in labels] == list(range(8))


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((3, 2), np.float64), "samples are float64"),
        (np.zeros((4, 2), np.float32), "do not go together"),
        (np.zeros(3, np.float32), "do not go together"),
        ({"ids": np.zeros((3, 2), np.int64)}, "samples are int64"),
        ({"ids": np.zeros((3, 2), np.int32), "mask": np.zeros((3, 1), np.int32)}, "2 shapes"),
    ],
)
def test_samples_that_cannot_be_sent(samples: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(scoring.pieces((samples, np.zeros(3, np.int64))))


def test_sentences_are_sent_as_what_the_net_takes(tmp_path: Path) -> None:
    tokens = PREPROCESSING.encode_sentences(["one", "two"])
    sentences = Samples(SentenceExamples(tokens, torch.tensor([1, 0])), PREPROCESSING, "-", "test")
    sent, labels = for_device(sentences, tmp_path / "net.onnx")
    assert list(sent) == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(values.dtype == np.int32 and values.shape == (2, 8) for values in sent.values())
    assert labels.tolist() == [1, 0]


def test_answers_out_of_texts_are_put_together_of_the_outputs(tmp_path: Path) -> None:
    questions = (
        Question("1", "", "one two", "one", ("two",), (4,)),
        Question("2", "", "two one", "one", ("two",), (0,)),
    )
    reading = TextPreprocessing(word_piece(["one two"]).to_str(), 8, 0, token_types=True, doc_stride=1)
    examples = reading.encode(QuestionPart(questions))
    sent = for_device(Samples(examples, reading, "-", "test"), tmp_path / "net.onnx")
    assert isinstance(sent, scoring.Scored)
    assert all(values.dtype == np.int32 and values.shape == (2, 8) for values in sent.inputs.values())
    starts, ends = examples.labels.T
    logits = np.zeros((2, 2, 8), np.float32)
    logits[[0, 1], 0, starts] = logits[[0, 1], 1, ends] = 9
    assert sent.score(logits.reshape(2, -1)) == {"n": 2, "exact_match": 1.0, "f1": 1.0}
    logits[0] = logits[1]  # the first answer is sought where the second one is
    assert sent.score(logits.reshape(2, -1)) == {"n": 2, "exact_match": 0.5, "f1": 0.5}
    with pytest.raises(ArtifactError, match="4 outputs for 8 tokens"):
        sent.score(np.zeros((2, 4), np.float32))

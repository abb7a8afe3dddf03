from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kdedge.data.questions import Question, read_questions
from kdedge.errors import DataError
from kdedge.questions.metrics import score_answers
from kdedge.questions.windows import Answer, QuestionWindows, decode, question_windows
from kdedge.text.tokenization import TextPreprocessing
from tests.text_data import MINILM, SQUAD, byte_level, needs_bert, needs_squad, saved, word_piece
from tokenizers import processors
from torch import Tensor

CONTEXT = (
    "Naïve cats \U0001f408 sat on the İstanbul wall. The grey cat, 陳京, fell off it in 1990, and the dog did not care."
)
WORDS = [CONTEXT, "Who fell off the wall, and when did it happen?", "What is it that the dog did not do?"]


def ask(answer: str | None, question: str = "Who fell?", context: str = CONTEXT) -> Question:
    answers = () if answer is None else (answer,)
    return Question("1", "", context, question, answers, tuple(context.index(a) for a in answers))


@pytest.fixture(scope="module", params=["word pieces", "bytes"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = word_piece(WORDS) if request.param == "word pieces" else byte_level(WORDS)
    return saved(tokenizer, tmp_path_factory.mktemp("tokenizer"))


def preprocessing(folder: Path, max_length: int = 32, doc_stride: int = 6, **more: Any) -> TextPreprocessing:
    return TextPreprocessing.from_folder_or_hub(
        folder, max_length=max_length, token_types=True, doc_stride=doc_stride, **more
    )


def sure(windows: QuestionWindows) -> Tensor:
    """Logits of a net that knows the labels."""
    logits = torch.zeros(len(windows), 2, windows.offsets.shape[1])
    rows = torch.arange(len(windows))
    logits[rows, 0, windows.starts] = logits[rows, 1, windows.ends] = 9.0
    return logits


def brute_force(
    logits: Tensor, windows: QuestionWindows, questions: list[Question], n_best: int, max_answer_length: int
) -> list[tuple[str, float]]:
    """The rules of decode, span by span."""
    best: list[tuple[str, float]] = [("", -math.inf)] * len(questions)
    for window, number in enumerate(windows.questions.tolist()):
        offsets = windows.offsets[window].tolist()
        inside = [position for position, (begin, _) in enumerate(offsets) if begin >= 0]
        start, end = (side.numpy() for side in logits[window])
        firsts = sorted(inside, key=lambda position: (-start[position], position))[:n_best]
        lasts = sorted(inside, key=lambda position: (-end[position], position))[:n_best]
        for first in firsts:
            for last in lasts:
                score = float(np.float32(start[first] + end[last]))
                if first <= last < first + max_answer_length and score > best[number][1]:
                    best[number] = (questions[number].context[offsets[first][0] : offsets[last][1]].strip(), score)
    return best


@needs_bert
@needs_squad
@pytest.mark.parametrize(("max_length", "doc_stride", "counts"), [(384, 128, (954, 138)), (192, 64, (1316, 179))])
def test_real_questions(max_length: int, doc_stride: int, counts: tuple[int, int]) -> None:
    import transformers

    reference = transformers.AutoTokenizer.from_pretrained(str(MINILM))
    for questions, count in zip(read_questions(str(SQUAD)).values(), counts, strict=True):
        windows = question_windows(questions, preprocessing(MINILM, max_length, doc_stride))
        assert len(windows) == count
        assert not windows.tokens.cut.any()
        expected = reference(
            [q.question for q in questions], [q.context for q in questions], max_length=max_length,
            truncation="only_second", stride=doc_stride, padding="max_length", return_overflowing_tokens=True,
            return_offsets_mapping=True, return_tensors="pt",
        )  # fmt: skip
        assert torch.equal(windows.tokens.input_ids.long(), expected["input_ids"])
        assert torch.equal(windows.questions, expected["overflow_to_sample_mapping"])
        inside = windows.offsets[..., 0] >= 0
        assert torch.equal(windows.offsets[inside].long(), expected["offset_mapping"][inside])
        assert windows.tokens.token_type_ids is not None
        # Type 1 is the context and the [SEP] behind it.
        assert torch.equal(inside.sum(1) + 1, windows.tokens.token_type_ids.long().sum(1))
        answers = decode(sure(windows), windows, questions, n_best=20, max_answer_length=max_length)
        wrong = [q.answers[0] for a, q in zip(answers, questions, strict=True) if score_answers([a.text], [q]).f1 < 1]
        # Its annotation ends within the number 2,700,000.
        assert wrong == (["7,000,000 square kilometres (2,70"] if len(questions) == 925 else [])


@needs_bert
@needs_squad
def test_real_questions_under_random_logits() -> None:
    questions = list(read_questions(str(SQUAD))["validation"][:20])
    windows = question_windows(questions, preprocessing(MINILM, 128, 32))
    assert len(windows) > 30
    logits = torch.randn(len(windows), 2, 128, generator=torch.Generator().manual_seed(0))
    answers = decode(logits, windows, questions, n_best=20, max_answer_length=30)
    assert [(a.text, a.score) for a in answers] == brute_force(logits, windows, questions, 20, 30)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_best=st.integers(1, 40),
    max_answer_length=st.integers(1, 12),
    levels=st.integers(2, 9),
)
def test_decode_is_its_rules_also_where_logits_are_equal(
    folder: Path, seed: int, n_best: int, max_answer_length: int, levels: int
) -> None:
    """Logits of few levels, as an int8 net gives them."""
    questions = [ask("cat"), ask("1990", "When?"), ask(None, "Why?", "The dog."), ask("dog")]
    windows = question_windows(questions, preprocessing(folder))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(levels, (len(windows), 2, 32), generator=generator).float() / 4
    answers = decode(logits, windows, questions, n_best=n_best, max_answer_length=max_answer_length)
    assert [(a.text, a.score) for a in answers] == brute_force(logits, windows, questions, n_best, max_answer_length)
    nulls = [logits[w, :, 0].sum() for w in range(len(windows))]
    for number, answer in enumerate(answers):
        assert answer.null_score == min(nulls[w] for w in range(len(windows)) if windows.questions[w] == number)


@pytest.mark.parametrize(
    "answer", ["Naïve", "\U0001f408 sat", "İstanbul wall", "陳京", "The grey cat", "1990", "care."]
)
def test_answers_come_back_letter_for_letter(answer: str, folder: Path) -> None:
    questions = [ask(answer)]
    windows = question_windows(questions, preprocessing(folder))
    assert len(windows) > 1
    (found,) = decode(sure(windows), windows, questions, n_best=3, max_answer_length=32)
    assert found == Answer(answer, 18.0, found.null_score)


def test_windows_share_the_stride_and_cover_the_context(folder: Path) -> None:
    windows = question_windows([ask("cat")], preprocessing(folder))
    spans = [[tuple(span) for span in window.tolist() if span[0] >= 0] for window in windows.offsets]
    for before, after in itertools.pairwise(spans):
        assert before[-6:] == after[:6]
    covered = {letter for span in spans for begin, end in span for letter in range(begin, end)}
    assert {letter for letter, text in enumerate(CONTEXT) if not text.isspace()} <= covered
    assert torch.equal(windows.null_positions, torch.zeros(len(windows), dtype=torch.int64))


def test_labels_point_to_null_where_the_window_does_not_hold_the_whole_answer(folder: Path) -> None:
    answer = "The grey cat, 陳京, fell off it"
    windows = question_windows([ask(answer)], preprocessing(folder))
    begin, end = CONTEXT.index(answer), CONTEXT.index(answer) + len(answer)
    held = 0
    for window in range(len(windows)):
        first, last = int(windows.starts[window]), int(windows.ends[window])
        spans = windows.offsets[window].tolist()
        context = [span for span in spans if span[0] >= 0]
        if context[0][0] <= begin and end <= context[-1][1]:
            assert CONTEXT[spans[first][0] : spans[last][1]].strip() == answer
            held += 1
        else:
            assert (first, last) == (0, 0)
    assert held < len(windows)


def test_blanks_around_question_and_answer_do_not_count(folder: Path) -> None:
    tidy = question_windows([ask("grey cat")], preprocessing(folder))
    asked = question_windows([ask("grey cat", "  Who fell?")], preprocessing(folder))
    answered = question_windows([ask(" grey cat")], preprocessing(folder))
    assert torch.equal(asked.tokens.input_ids, tidy.tokens.input_ids)
    assert torch.equal(answered.starts, tidy.starts)
    # No token covers the blank that the context begins with.
    (start,) = question_windows([ask(" grey", context=" grey cat")], preprocessing(folder)).starts.tolist()
    assert start > 0


def test_blanks_that_tokens_cover_are_no_part_of_the_answer(tmp_path: Path) -> None:
    tokenizer = byte_level(WORDS)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=False)
    questions = [ask("grey cat")]
    windows = question_windows(questions, preprocessing(saved(tokenizer, tmp_path)))
    assert " " in {CONTEXT[begin] for window in windows.offsets.tolist() for begin, _ in window if begin >= 0}
    assert decode(sure(windows), windows, questions, n_best=3, max_answer_length=32)[0].text == "grey cat"


def test_a_question_without_an_answer(folder: Path) -> None:
    questions = [ask(None), ask("cat", "What?", "The cat.")]
    windows = question_windows(questions, preprocessing(folder))
    assert not windows.starts[windows.questions == 0].any()
    logits = sure(windows)
    none, some = decode(logits, windows, questions, n_best=5, max_answer_length=5, unanswerable=True)
    assert (none.text, some.text) == ("", "cat")
    assert (none.score, none.null_score, some.score, some.null_score) == (0.0, 18.0, 18.0, 0.0)
    always = decode(logits, windows, questions, n_best=5, max_answer_length=5)
    assert always[0].text
    # One window that is unsure of the null answer is enough: the least counts.
    logits[0, :, 0] = -1.0
    assert decode(logits, windows, questions, n_best=5, max_answer_length=5, unanswerable=True)[0].text


def test_no_pair_of_the_n_best_makes_a_span(folder: Path) -> None:
    questions = [ask("dog", "What?", "The dog did care")]
    windows = question_windows(questions, preprocessing(folder))
    inside = (windows.offsets[0, :, 0] >= 0).nonzero().flatten()
    logits = torch.zeros(1, 2, 32)
    logits[0, 0, inside[-1]] = logits[0, 1, inside[0]] = 1.0
    assert decode(logits, windows, questions, n_best=1, max_answer_length=9) == (Answer("", -math.inf, 0.0),)


def test_a_context_without_tokens_has_no_answer(tmp_path: Path) -> None:
    questions = [ask(None, context="\u200b\u200d")]
    windows = question_windows(questions, preprocessing(saved(word_piece(WORDS), tmp_path)))
    assert len(windows) == 1
    logits = torch.zeros(1, 2, 32)
    assert decode(logits, windows, questions, n_best=5, max_answer_length=5) == (Answer("", -math.inf, 0.0),)


def test_a_long_question_is_cut_to_half_of_the_room(folder: Path) -> None:
    ours = preprocessing(folder)
    long = "Who was it that " + "fell off the wall and " * 9 + "did care?"
    questions = [ask("grey cat", long), ask("grey cat")]
    windows = question_windows(questions, ours)
    assert windows.tokens.cut.tolist() == [bool(number == 0) for number in windows.questions]
    whole = ours.tokenizer().encode(long, add_special_tokens=False).ids
    kept = windows.tokens.input_ids[0, : 2 + ours.room // 2].tolist()
    first, second = (ours.tokenizer().encode("").ids[end] for end in (0, -1))
    assert kept == [first, *whole[: ours.room // 2], second]
    (answer, _) = decode(sure(windows), windows, questions, n_best=3, max_answer_length=9)
    assert answer.text == "grey cat"


@pytest.mark.parametrize("doc_stride", [-1, 14, 128])
def test_a_stride_that_does_not_fit_is_refused(doc_stride: int, tmp_path: Path) -> None:
    ours = preprocessing(saved(word_piece(WORDS), tmp_path), doc_stride=doc_stride)
    with pytest.raises(DataError, match=rf"doc_stride {doc_stride} does not fit .* Set it from 0 to 13"):
        question_windows([ask("cat")], ours)
    with pytest.raises(DataError, match="no questions"):
        question_windows([], ours)


def test_windows_can_be_taken(folder: Path) -> None:
    windows = question_windows([ask("cat"), ask("1990")], preprocessing(folder))
    index = torch.tensor([len(windows) - 1, 0])
    taken = windows.take(index)
    assert len(taken) == 2
    assert torch.equal(taken.tokens.input_ids, windows.tokens.input_ids[index])
    assert torch.equal(taken.ends, windows.ends[index])

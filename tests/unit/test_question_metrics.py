from __future__ import annotations

import pytest
from kdedge.data.questions import Question, read_questions
from kdedge.questions.metrics import AnswerMetrics, score_answers
from tests.text_data import SQUAD, needs_squad


def question(*answers: str) -> Question:
    return Question("1", "", "context", "question?", answers, tuple(0 for _ in answers))


# Worked out by hand from the rules in words: lower case, then no punctuation, then no articles, then single blanks.
@pytest.mark.parametrize(
    ("answer", "gold", "exact_match", "f1"),
    [
        ("the cat", ("cat",), 1, 1),
        ("The  CAT.", ("a cat",), 1, 1),
        ("anthem", ("them",), 0, 0),  # an article inside of a word stays
        ("a-b", ("ab",), 1, 1),  # punctuation goes before words are split: "ab" is no article and one word
        ("U.S.A.", ("USA",), 1, 1),
        ("\u201ccat\u201d", ("cat",), 0, 0),  # typographic quotes are no ASCII punctuation
        ("ﬁsh", ("fish",), 0, 0),  # the ligature is another letter
        ("É", ("é",), 1, 1),
        ("x y z", ("y z w",), 0, 2 / 3),  # 2 words in common: precision 2/3, recall 2/3
        ("x x y", ("x y",), 0, 4 / 5),  # x counts once: precision 2/3, recall 1
        ("in 1990", ("1990", "in the year 1990", "in 1990"), 1, 1),
        ("in 1990", ("1990", "in the year 1990"), 0, 4 / 5),  # 2/3 and 4/5
        ("", ("cat",), 0, 0),
        ("", (), 1, 1),
        ("cat", (), 0, 0),
        ("the", (), 1, 1),  # nothing is left of it
        ("the", ("an",), 1, 1),  # SQuAD v1.1's scorer gives an F1 of 0, v2.0's of 1
        ("!", ("cat",), 0, 0),
    ],
)
def test_the_official_rules(answer: str, gold: tuple[str, ...], exact_match: float, f1: float) -> None:
    assert score_answers([answer], [question(*gold)]) == AnswerMetrics(1, exact_match, round(f1, 6))


def test_means_over_questions_do_not_depend_on_their_number() -> None:
    metrics = score_answers(["x y z", "cat"] * 3001, [question("y z w"), question("cat")] * 3001)
    assert metrics.to_dict() == {"n": 6002, "exact_match": 0.5, "f1": round((2 / 3 + 1) / 2, 6)}


@needs_squad
def test_gold_answers_score_full_marks() -> None:
    questions = read_questions(str(SQUAD))["validation"]
    assert score_answers([q.answers[0] for q in questions], questions) == AnswerMetrics(138, 1.0, 1.0)
    assert score_answers([q.question for q in questions], questions).exact_match == 0

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from kdedge.data.questions import read_questions
from kdedge.data.splits import SPLITS, load_data
from kdedge.errors import DataError
from kdedge.recipe import DataRecipe
from tests.text_data import SQUAD, needs_squad

CONTEXT = "The cat saw the other cat, a grey one, on the wall."
GOOD = {
    "id": "1",
    "title": "Cats",
    "context": CONTEXT,
    "question": "Who sat on the wall?",
    "answers": {"text": ["the other cat", "cat"], "answer_start": [12, 22]},
}


def squad_json(*entries: dict[str, Any], **more: Any) -> str:
    paragraphs = [{"context": CONTEXT, "qas": list(entries)}]
    return json.dumps({"version": "v2.0", "data": [{"title": "Cats", "paragraphs": paragraphs, **more}]}, indent=1)


def entry(**changes: Any) -> dict[str, Any]:
    return {"id": "q1", "question": "Who?", "answers": [{"text": "cat", "answer_start": 4}], **changes}


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def articles(sizes: dict[str, list[int]]) -> str:
    """SQuAD's JSON of articles: questions on each of their texts."""
    data = [
        {
            "title": title,
            "paragraphs": [
                {"context": f"{title} {n}. {CONTEXT}", "qas": [entry_in(title, n, number) for number in range(count)]}
                for n, count in enumerate(counts)
            ],
        }
        for title, counts in sizes.items()
    ]
    return json.dumps({"version": "v2.0", "data": data})


def entry_in(title: str, text: int, number: int) -> dict[str, Any]:
    answer = {"text": title, "answer_start": 0}
    return entry(id=f"{title} {text} {number}", answers=[answer])


def test_articles_stay_whole_where_they_are_many(tmp_path: Path) -> None:
    path = write(tmp_path / "q.json", articles({f"T{n}": [3, 2] for n in range(40)}))
    splits = load_data(DataRecipe(name="-"), path, "question-answering")
    titles = [{q.title for q in splits.split(split).questions} for split in SPLITS]
    assert sum(map(len, titles)) == 40 and len(splits.test) == 50


@pytest.mark.parametrize("seed", range(6))
def test_a_large_article_is_split_by_its_texts(tmp_path: Path, seed: int) -> None:
    """A split that has twice its share, or all, is none."""
    path = write(tmp_path / "q.json", articles({"Large": [4] * 30, "Small": [4] * 3}))
    splits = load_data(DataRecipe(name="-", split_seed=seed), path, "question-answering")
    contexts = [{q.context for q in splits.split(split).questions} for split in SPLITS]
    assert sum(map(len, contexts)) == 33
    assert len(splits.test) <= 0.5 * 132 and len(splits.train) >= 0.4 * 132


@pytest.mark.parametrize("seed", range(6))
def test_a_text_with_nearly_all_questions_is_trained_on(tmp_path: Path, seed: int) -> None:
    path = write(tmp_path / "q.json", articles({"Cats": [92, 2, 2, 2, 2]}))
    recipe = DataRecipe(name="-", split_seed=seed, test_fraction=0.04, validation_fraction=0.04)
    assert len(load_data(recipe, path, "question-answering").train) >= 92


def test_one_text_cannot_be_split(tmp_path: Path) -> None:
    path = write(tmp_path / "q.json", articles({"Cats": [20]}))
    with pytest.raises(DataError, match=r"20 questions .* are on one text.*Give more texts"):
        load_data(DataRecipe(name="-"), path, "question-answering")


@needs_squad
def test_real_questions_in_hub_layout() -> None:
    parts = read_questions(str(SQUAD))
    assert {split: len(part) for split, part in parts.items()} == {"train": 925, "validation": 138}
    first = parts["train"][0]
    assert (first.id, first.title, first.question) == (
        "56beb4343aeaaa14008c925b", "Super_Bowl_50", "How many points did the Panthers defense surrender?"
    )  # fmt: skip
    assert (first.answers, first.answer_starts) == (("308",), (34,))
    assert first.context is parts["train"][1].context
    assert {split: len(part) for split, part in read_questions(str(SQUAD), "test").items()} == {"test": 138}
    file = next(SQUAD.rglob("validation*.parquet"))
    assert read_questions(str(file))["train"] == parts["validation"]


@needs_squad
def test_real_questions_survive_the_other_forms(tmp_path: Path) -> None:
    questions = read_questions(str(SQUAD))["validation"]
    flat = [
        {"id": q.id, "title": q.title, "context": q.context, "question": q.question,
         "answers": {"text": q.answers, "answer_start": q.answer_starts}} for q in questions
    ]  # fmt: skip
    write(tmp_path / "flat.jsonl", "".join(json.dumps(row) + "\n" for row in flat))
    articles: dict[str, dict[str, list[Any]]] = {}
    for q in questions:
        entries = articles.setdefault(q.title, {}).setdefault(q.context, [])
        pairs = zip(q.answers, q.answer_starts, strict=True)
        answers = [{"text": text, "answer_start": start} for text, start in pairs]
        entries.append({"id": q.id, "question": q.question, "answers": answers})
    data = [
        {"title": title, "paragraphs": [{"context": context, "qas": qas} for context, qas in paragraphs.items()]}
        for title, paragraphs in articles.items()
    ]
    write(tmp_path / "dev-v1.1.json", json.dumps({"version": "1.1", "data": data}))
    assert read_questions(str(tmp_path / "flat.jsonl"))["train"] == questions
    official = read_questions(str(tmp_path))["validation"]
    assert sorted(official, key=lambda q: q.id) == sorted(questions, key=lambda q: q.id)


def test_a_question_without_an_answer(tmp_path: Path) -> None:
    plausible = {"plausible_answers": [{"text": "cat", "answer_start": 4}]}
    text = squad_json(entry(), entry(id="q2", answers=[], **plausible), entry(id="q3", is_impossible=True))
    first, second, third = read_questions(write(tmp_path / "x.json", text))["train"]
    assert (first.answers, first.answer_starts) == (("cat",), (4,))
    assert (second.answers, second.answer_starts) == ((), ())
    assert second.title == "Cats"
    assert third.answers == ()


def test_a_mark_of_no_answer_may_be_spelled_as_text(tmp_path: Path) -> None:
    """A CSV has no types: pandas writes SQuAD v2's marks as words."""
    marks = ["False", "false", "", "0", 0, None, False, "True", "1", 1, True]
    rows = [json.dumps({**GOOD, "is_impossible": mark}) for mark in marks]
    questions = read_questions(write(tmp_path / "x.jsonl", "\n".join(rows)))["train"]
    assert [bool(q.answers) for q in questions] == [True] * 7 + [False] * 4
    odd = write(tmp_path / "odd.jsonl", json.dumps({**GOOD, "is_impossible": "perhaps"}))
    with pytest.raises(DataError, match=r"'is_impossible' is 'perhaps', neither true nor false \(.*line 1\)"):
        read_questions(odd)


def test_characters_beyond_the_basic_plane_count_as_one(tmp_path: Path) -> None:
    row = {**GOOD, "context": "\U0001f408 the cat", "answers": {"text": ["cat"], "answer_start": [6]}}
    assert read_questions(write(tmp_path / "x.jsonl", json.dumps(row)))["train"][0].answer_starts == (6,)


def test_a_test_split_whose_answers_were_kept_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train.jsonl", json.dumps(GOOD))
    write(tmp_path / "test.jsonl", json.dumps({k: v for k, v in GOOD.items() if k != "answers"}))
    with caplog.at_level(logging.WARNING):
        assert set(read_questions(str(tmp_path))) == {"train"}
    assert "left out the test split, which comes without 'answers'" in caplog.text


def test_squads_own_files_without_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As everywhere: a test split without them is left out, a question among answered ones is named."""
    bare = [{k: v for k, v in entry(id=name).items() if k != "answers"} for name in ("q2", "q3")]
    write(tmp_path / "train.json", squad_json(entry()))
    write(tmp_path / "test.json", squad_json(*bare))
    assert set(read_questions(str(tmp_path))) == {"train"}
    assert "left out the test split, which comes without 'answers'" in caplog.text
    with pytest.raises(DataError, match=r"no filled column 'answers' .*test\.json"):
        read_questions(str(tmp_path / "test.json"))
    write(tmp_path / "train.json", squad_json(entry(), *bare))
    with pytest.raises(DataError, match=r"no 'answers' \(.*train\.json, question q2\)\. Answer it"):
        read_questions(str(tmp_path))
    marked = [{**question, "is_impossible": True} for question in bare]
    write(tmp_path / "train.json", squad_json(entry(), *marked))
    assert [question.answers for question in read_questions(str(tmp_path))["train"]] == [("cat",), (), ()]


def test_squads_own_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(squad_json(entry()), encoding="utf-8-sig")
    assert read_questions(str(tmp_path / "x.json"))["train"][0].answers == ("cat",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"answers": {"text": ["cat"], "answer_start": [16]}},
            r"the answer 'cat' does not begin at character 16 of its context \(.*x\.jsonl, line 2\)\. "
            r"The nearest one begins at 22: correct answer_start",
        ),
        ({"answers": {"text": ["cat"], "answer_start": [-1]}}, "The nearest one begins at 4"),
        ({"answers": {"text": ["dog" * 20], "answer_start": [4]}}, r"'(dog){13}…' .*does not hold it"),
        ({"answers": {"text": ["cat"], "answer_start": []}}, r"1 answers and 0 starts \(.*x\.jsonl, line 2\)"),
        ({"answers": {"text": ["cat"], "answer_start": ["4"]}}, r"'answers\.answer_start' is '4', not a whole number"),
        ({"answers": {"text": [""], "answer_start": [4]}}, r"'answers\.text' is empty \(.*line 2\)"),
        ({"answers": {"text": ["cat"]}}, r"no 'answer_start' \(.*line 2\)"),
        ({"answers": "cat"}, r"no 'text' \(.*line 2\)"),
        ({"question": "  "}, r"'question' is empty \(.*line 2\)"),
        ({"context": ""}, r"'context' is empty \(.*line 2\)"),
    ],
)
def test_what_is_wrong_in_a_row_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", json.dumps(GOOD) + "\n" + json.dumps({**GOOD, **changes}) + "\n")
    with pytest.raises(DataError, match=message) as caught:
        read_questions(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (squad_json(entry(), entry(id="q2", answers=[{"text": "cat", "answer_start": 5}])), r"x\.json, question q2"),
        (squad_json(entry(), {"id": "q2"}), r"no 'question' \(.*x\.json, row 0, paragraph 0\)"),
        (squad_json(paragraphs={}), r"a dict where a list is due \(.*x\.json, row 0\)"),
        (squad_json(), r"no questions \(.*x\.json\)"),
        (json.dumps([{"context": CONTEXT, "question": "?", "answers": []}]), r"'id' among context, question, answers"),
        (json.dumps([{"id": "1", "context": CONTEXT, "question": "?"}]), r"'answers' among id, context, question"),
        (json.dumps([]), r"has no rows \(.*x\.json\)"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_questions(write(tmp_path / "x.json", text))

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kdedge.data.sentences import read_sentences
from kdedge.data.splits import load_data
from kdedge.errors import DataError
from kdedge.recipe import DataRecipe
from tests.text_data import SST2, needs_sst2


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def records(path: Path, rows: list[dict[str, Any]]) -> str:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def parquet(path: Path, columns: dict[str, list[Any]], names: list[str] | None = None) -> str:
    import datasets

    table = datasets.Dataset.from_dict(columns)
    if names:
        table = table.cast_column("label", datasets.ClassLabel(names=names))
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    return str(path)


@needs_sst2
def test_real_sentences_in_hub_layout() -> None:
    parts, names = read_sentences(str(SST2))
    assert {split: len(part) for split, part in parts.items()} == {"train": 6920, "validation": 872}
    assert names == ("negative", "positive")
    assert parts["validation"].texts[0] == "one long string of cliches"
    assert parts["validation"].labels[:2].tolist() == [0, 0]
    assert parts["train"].labels.dtype == torch.int64
    assert parts["train"].pairs is None


@needs_sst2
def test_real_sentences_in_one_file_carry_their_class_names() -> None:
    file = next(SST2.glob("validation*.parquet"))
    parts, names = read_sentences(str(file))
    assert len(parts["train"]) == 872
    assert names == ("negative", "positive")


@needs_sst2
def test_validation_serves_as_test_where_there_is_none() -> None:
    parts, _ = read_sentences(str(SST2), "test")
    assert {split: len(part) for split, part in parts.items()} == {"test": 872}


def test_every_kind_of_file_gives_the_same(tmp_path: Path) -> None:
    rows = [("a film, \u201cfine\u201d", "good"), ("dull\ttwice\nover", "bad"), ("ok", "good")]
    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    flat = [{"text": text, "label": label} for text, label in rows]
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    sources = [
        str(tmp_path / "x.csv"),
        records(tmp_path / "x.jsonl", flat),
        records(tmp_path / "lines.json", flat),
        write(tmp_path / "x.json", json.dumps(flat, indent=1)),
        write(tmp_path / "data.json", json.dumps({"data": flat})),
        parquet(tmp_path / "x.parquet", columns),
    ]
    for source in sources:
        parts, names = read_sentences(source)
        assert names == ("bad", "good"), source
        assert parts["train"].texts == tuple(text for text, _ in rows), source
        assert parts["train"].labels.tolist() == [1, 0, 1], source


def test_a_tsv_is_not_quoted(tmp_path: Path) -> None:
    source = write(tmp_path / "x.tsv", 'sentence\tlabel\n"so she said\t1\nfine , he " said\t0\n')
    parts, names = read_sentences(source)
    assert parts["train"].texts == ('"so she said', 'fine , he " said')
    assert names == ("0", "1")


def test_files_of_splits_and_a_test_split_whose_labels_were_kept_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "train.tsv", "sentence\tlabel\na\t0\nb\t1\n")
    write(tmp_path / "dev.tsv", "sentence\tlabel\nc\t1\n")
    write(tmp_path / "test.tsv", "index\tsentence\n0\td\n")
    write(tmp_path / "notes.csv", "nothing\n")
    with caplog.at_level(logging.WARNING):
        parts, _ = read_sentences(str(tmp_path))
    assert "left out the test split, which comes without 'label'" in caplog.text
    assert {split: part.texts for split, part in parts.items()} == {"train": ("a", "b"), "validation": ("c",)}
    assert set(read_sentences(str(tmp_path), "test")[0]) == {"test"}


def test_the_hubs_sign_for_no_label(tmp_path: Path) -> None:
    names = ["negative", "positive"]
    parquet(tmp_path / "data" / "train-0.parquet", {"sentence": ["a", "b"], "label": [0, 1]}, names)
    parquet(tmp_path / "data" / "test-0.parquet", {"sentence": ["c", "d"], "label": [-1, -1]}, names)
    assert set(read_sentences(str(tmp_path))[0]) == {"train"}


def test_splits_that_number_their_classes_unlike_are_matched_by_name(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-0.parquet", {"sentence": ["a", "b", "c"], "label": [0, 1, 2]}, ["x", "y", "z"])
    parquet(tmp_path / "data" / "validation-0.parquet", {"sentence": ["d"], "label": [0]}, ["x", "y", "z"])
    parquet(tmp_path / "data" / "test-0.parquet", {"sentence": ["e", "f"], "label": [0, 1]}, ["z", "x"])
    parts, names = read_sentences(str(tmp_path))
    assert names == ("x", "y", "z")
    assert {split: part.labels.tolist() for split, part in parts.items()} == {
        "train": [0, 1, 2], "validation": [0], "test": [2, 0]
    }  # fmt: skip
    assert read_sentences(str(tmp_path), "test")[0]["test"].labels.tolist() == [2, 0]


def test_a_split_whose_classes_the_training_split_lacks(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-0.parquet", {"sentence": ["a", "b"], "label": [0, 1]}, ["x", "y"])
    parquet(tmp_path / "data" / "test-0.parquet", {"sentence": ["c", "d"], "label": [0, 1]}, ["x", "odd"])
    with pytest.raises(
        DataError, match=r"split 'test' has classes that 'train' lacks: odd \(.*\)\. Give all"
    ) as caught:
        read_sentences(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_files_of_one_split_that_number_their_classes_unlike(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", {"sentence": ["a"], "label": [0]}, ["x", "y"])
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", {"sentence": ["b"], "label": [0]}, ["y", "x"])
    with pytest.raises(DataError, match=r"classes of 'label' stand in another order .*train-00001-of-00002\.parquet"):
        read_sentences(str(tmp_path))


def test_a_test_split_whose_labels_are_blank(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train.csv", "text,label\na,good\nb,bad\n")
    write(tmp_path / "test.csv", "text,label\nc,\nd, \n")
    parts, names = read_sentences(str(tmp_path))
    assert (set(parts), names) == ({"train"}, ("bad", "good"))
    assert "left out the test split, which comes without 'label'" in caplog.text


def test_a_cell_longer_than_pythons_limit(tmp_path: Path) -> None:
    text, limit = "word " * 50_000, csv.field_size_limit()
    for name, comma in (("x.csv", ","), ("x.tsv", "\t")):
        source = write(tmp_path / name, f"text{comma}label\n{text}{comma}0\nb{comma}1\n")
        assert read_sentences(source)[0]["train"].texts == (text, "b")
    assert csv.field_size_limit() == limit


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    for name, content in (("x.csv", "text,label\na,0\nb,1\n"), ("x.jsonl", JSONL), ("x.json", JSONL)):
        parts, _ = read_sentences(write(tmp_path / name, b"\xef\xbb\xbf" + content.encode()))
        assert parts["train"].texts == ("a", "b"), name


def write_arrow(path: Path, odd: Any, metadata: dict[str, str] | None = None) -> str:
    """A .parquet of two sentences and a column ``odd``."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": ["a", "b"], "label": [0, 1], "odd": odd})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)
    return str(path)


def test_a_parquet_file_of_odd_columns_is_one_clear_line(tmp_path: Path) -> None:
    import pyarrow

    pairs = pyarrow.array([[("k", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int32()))
    far = pyarrow.array([2**30, 1], pyarrow.date32())
    cases = {
        write_arrow(tmp_path / "map" / "train.parquet", pairs): r"types of the columns .*map<string, int32.*\.parquet",
        write_arrow(tmp_path / "date" / "train.parquet", far): r"column 'odd' .*days=1073741824",
        write_arrow(tmp_path / "about" / "train.parquet", far, {"huggingface": "none"}): "types of the columns",
    }
    for file, message in cases.items():
        for source in (file, str(Path(file).parent)):  # also as a folder in Hub layout
            with pytest.raises(DataError, match=message) as caught:
                read_sentences(source)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence"), ("question1", "question2")],
)
def test_pairs_of_sentences(first: str, second: str, tmp_path: Path) -> None:
    source = records(
        tmp_path / "x.jsonl", [{first: "a", second: "b", "label": 0}, {first: "c", second: "d", "label": 1}]
    )
    data = read_sentences(source)[0]["train"]
    assert (data.texts, data.pairs) == (("a", "c"), ("b", "d"))
    taken = data.take(torch.tensor([1, 1, 0]))
    assert (taken.texts, taken.pairs, taken.labels.tolist()) == (("c", "c", "a"), ("d", "d", "b"), [1, 1, 0])


def test_classes_without_names_are_the_numbers_that_occur_in_any_split(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,label\na,10\nb,2\n")
    write(tmp_path / "test.csv", "text,label\nc,3\n")
    parts, names = read_sentences(str(tmp_path), "test")
    assert names == ("2", "3", "10")
    assert parts["test"].labels.tolist() == [1]


# Half characters have no UTF-8, and the csv module of Python 3.10 takes no NUL.
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
JSONL = '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "text,label\na,0\n\nb,1\n ,1\n", r"'text' is empty \(.*x\.csv, line 5\)"),
        ("x.csv", 'text,label\n"a\nb",0\nc,1,2\n', r"3 cells, the header has 2 \(.*x\.csv, line 4\)"),
        ("x.csv", 'text,label\na,0\n"b,1\n', r"cannot read: unexpected end of data \(.*x\.csv, line 3\)"),
        ("x.csv", "text,label\na,0\nb,good\n", r"labels of mixed types: 'good' here, 0 in .*x\.csv, line 3"),
        ("x.csv", "text,label\na,0\nb,1\nc,-1\n", r"label -1 lies outside the 2 classes \(.*x\.csv, line 4\)"),
        ("x.csv", "text,label\na,0\nb,\n", r"label '' is neither a .* name \(.*line 3\)\. .* remove the row"),
        ("x.csv", "text,label\na,0\nb,0\n", r"found 1 class, at least 2"),
        ("x.csv", "text,label\na,-1\nb,-1\n", r"no filled column 'label' among text, label"),
        ("x.csv", "text,label\n", r"has no rows \(.*x\.csv\)"),
        ("x.csv", "", r"has no rows \(.*x\.csv\)"),
        ("x.csv", "review,stars\na,0\n", r"no filled column 'label' among review, stars \(.*x\.csv\)\. Rename"),
        ("x.csv", "review,label\na,0\nb,1\n", r"no filled column 'sentence' or 'text' among review, label"),
        ("x.csv", b"text,label\na,0\n\xe9t\xe9,1\n", r"byte 0xe9 is not UTF-8 \(.*x\.csv, line 3\)"),
        ("x.jsonl", JSONL + '{"text": "c", "label"\n', r"not JSON: .*x\.jsonl, line 3"),
        ("x.jsonl", JSONL + "[1]\n", r"a list where a record is due \(.*x\.jsonl, line 3\)"),
        ("x.jsonl", JSONL + '{"label": 1}\n', r"'text' is empty \(.*x\.jsonl, line 3\)"),
        ("x.jsonl", JSONL + '{"text": 7, "label": 1}\n', r"'text' is int, not text \(.*x\.jsonl, line 3\)"),
        ("x.jsonl", JSONL + '{"text": "c", "label": 1.0}\n', r"label 1\.0 is neither .*line 3"),
        ("x.jsonl", JSONL + '{"text": "c", "label": true}\n', r"label True is neither .*line 3"),
        ("x.jsonl", JSONL + '{"text": "\\ud83d", "label": 1}\n', r"'text' holds half a character \(.*line 3\)"),
        ("x.jsonl", '{"text": "c", "label": "\\ud83d"}\n', r"'label' holds half a character \(.*line 1\)"),
        ("x.json", '{"a": 1}', r"neither a list of records nor \{'data'"),
        ("x.json", "[" * 100_000, r"not JSON"),
        ("x.parquet", b"PAR1 and no more", r"cannot read: .*x\.parquet"),
        ("x.txt", "a", r"cannot read '\.txt' files .* Known are \.csv, \.tsv, \.jsonl, \.json, \.parquet"),
    ],
)
def test_what_is_wrong_is_named(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    source = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_sentences(source)
    assert "\n" not in str(caught.value)


def test_a_label_outside_the_named_classes(tmp_path: Path) -> None:
    import pyarrow.parquet

    parquet(tmp_path / "x.parquet", {"text": ["a", "b"], "label": [0, 1]}, ["n", "p"])
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    spoilt = table.set_column(1, table.schema.field("label"), pyarrow.array([0, 2]))
    pyarrow.parquet.write_table(spoilt, tmp_path / "y.parquet")
    with pytest.raises(DataError, match=r"label 2 lies outside the 2 classes \(.*y\.parquet, row 1\)"):
        read_sentences(str(tmp_path / "y.parquet"))


def test_folders_that_do_not_tell_their_splits(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"found no file of a split .*Name the files train, validation and test"):
        read_sentences(str(tmp_path / "empty"))
    write(tmp_path / "two" / "train.csv", "text,label\na,0\n")
    write(tmp_path / "two" / "train-v2.jsonl", JSONL)
    with pytest.raises(DataError, match=r"two files for the split 'train': train-v2\.jsonl, train\.csv"):
        read_sentences(str(tmp_path / "two"))


@pytest.mark.parametrize("source", ["./nowhere", "reviews.csv", "~/no/such/place"])
def test_a_source_that_is_not_there(source: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_sentences(source)


def test_a_name_that_the_hub_does_not_know() -> None:
    with pytest.raises(DataError, match=r"cannot load the data set: .* \(nobody/nothing\)") as caught:
        read_sentences("nobody/nothing")
    assert "\n" not in str(caught.value)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.text(LETTERS, min_size=1).filter(str.strip), st.integers(0, 3)),
        min_size=2,
    )
)
def test_any_text_comes_back_from_csv_and_json_lines(rows: list[tuple[str, int]], tmp_path: Path) -> None:
    rows = [*rows, ("x", 4), ("y", 5)]
    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "label"), *rows])
    records(tmp_path / "x.jsonl", [{"text": text, "label": label} for text, label in rows])
    classes = sorted({label for _, label in rows})
    for kind in ("csv", "jsonl"):
        parts, names = read_sentences(str(tmp_path / f"x.{kind}"))
        assert parts["train"].texts == tuple(text for text, _ in rows)
        assert [classes[index] for index in parts["train"].labels.tolist()] == [label for _, label in rows]
        assert names == tuple(map(str, classes))


def test_test_sentences_that_are_trained_on_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that says everything twice: a split at random tests what was learnt by heart."""
    rows = [f"the film number {n} was {word},{word}" for n in range(20) for word in ("good", "bad")]
    for name, lines in (("once", rows), ("twice", rows * 2)):
        (tmp_path / f"{name}.csv").write_text("\n".join(["sentence,label", *lines]) + "\n")
        caplog.clear()
        splits = load_data(DataRecipe(name="-"), str(tmp_path / f"{name}.csv"), "text-classification")
        copies = len(set(splits.test.texts) & set(splits.train.texts))
        said = [message for message in caplog.messages if "training samples as well" in message]
        assert bool(said) is bool(copies) is (name == "twice")
        if said:
            both = sum(text in splits.train.texts for text in splits.test.texts)
            assert f"{both} of the {len(splits.test)} test samples" in said[0]

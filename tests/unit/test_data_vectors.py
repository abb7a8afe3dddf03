from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from kdedge.data.splits import load_data, load_evaluation
from kdedge.data.vectors import FeaturePreprocessing, read_vectors
from kdedge.distillation import distill
from kdedge.errors import DataError
from kdedge.evaluation import evaluate
from kdedge.recipe import DataRecipe
from kdedge.recipe_file import load_recipe
from kdedge.tasks import restore_preprocessing

ROWS = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]])


def archive(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_an_archive_with_and_without_splits(tmp_path: Path) -> None:
    parts, names = read_vectors(archive(tmp_path / "a.npz", x=ROWS, y=np.array([0, 1, 0, 1])))
    assert names == ("0", "1")
    assert parts["train"].features.dtype == torch.float32
    assert parts["train"].labels.tolist() == [0, 1, 0, 1]
    path = archive(tmp_path / "b.npz", x_train=ROWS, y_train=np.array(list("abab")), x_test=ROWS[:2], y_test=["b", "c"])
    parts, names = read_vectors(path)
    assert names == ("a", "b", "c")
    assert parts["test"].labels.tolist() == [1, 2]
    assert set(read_vectors(path, "test")[0]) == {"test"}


def test_tables_of_columns_and_of_lists(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("height,label,weight\n1.5,cat,3\n2.5,dog,4\n")
    parts, names = read_vectors(str(tmp_path / "t.csv"))
    assert names == ("cat", "dog")
    assert parts["train"].features.tolist() == [[1.5, 3.0], [2.5, 4.0]]
    lines = [{"features": [1, 2, 3], "label": 1}, {"features": [4, 5, 6], "label": 0}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    parts, _ = read_vectors(str(tmp_path / "t.jsonl"))
    assert parts["train"].features.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_row_numbers_are_no_feature(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As pandas writes them beside a table: of rows that once stood sorted by class they give the label away."""
    frame = pd.DataFrame({"width": [1.5, 2.5, 3.5], "label": [0, 1, 0]}, index=[2, 0, 1])
    frame.to_csv(tmp_path / "t.csv")
    frame.to_parquet(tmp_path / "t.parquet")
    frame.reset_index().to_csv(tmp_path / "reset.csv", index=False)
    for name, column in (("t.csv", ""), ("t.parquet", "__index_level_0__"), ("reset.csv", "index")):
        caplog.clear()
        parts, _ = read_vectors(str(tmp_path / name))
        assert parts["train"].features.tolist() == [[1.5], [2.5], [3.5]]
        assert f"left out the column '{column}', which numbers the rows" in caplog.text
    folder = tmp_path / "split"
    folder.mkdir()
    (folder / "train.csv").write_text("id,label\n4,a\n4,b\n5,a\n")
    (folder / "test.csv").write_text("id,label\n4,a\n5,b\n")  # of two rows none stands twice by chance
    parts, _ = read_vectors(str(folder))
    assert parts["train"].features.tolist() == [[4], [4], [5]]
    assert parts["test"].features.tolist() == [[4], [5]]


def test_row_numbers_with_a_decimal_point_are_no_feature_either(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t.csv").write_text("index,width,label\n0.0,1.5,a\n1.0,2.5,b\n")
    (tmp_path / "t.jsonl").write_text('{"id": 7.0, "width": 1.5, "label": 0}\n{"id": 8.0, "width": 2.5, "label": 1}')
    for name, column in (("t.csv", "index"), ("t.jsonl", "id")):
        assert read_vectors(str(tmp_path / name))[0]["train"].features.tolist() == [[1.5], [2.5]]
        assert f"left out the column '{column}', which numbers the rows" in caplog.text
    (tmp_path / "t.csv").write_text("index,width,label\n0.5,1.5,a\n1.0,2.5,b\n")
    assert read_vectors(str(tmp_path / "t.csv"))[0]["train"].features.tolist() == [[0.5, 1.5], [1.0, 2.5]]


def test_lists_beside_other_columns_are_taken_alone_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"features": [1, 2], "height": 7, "label": 0}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "label": 1}))
    (tmp_path / "test.jsonl").write_text(json.dumps({"features": [3, 4], "label": 1}))
    parts, _ = read_vectors(str(tmp_path))
    assert parts["train"].features.tolist() == [[1, 2], [1, 2]]
    assert parts["test"].features.tolist() == [[3, 4]]
    assert "takes the column 'features' alone, not height" in caplog.text
    assert caplog.text.count("takes the column") == 1


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": ROWS * np.nan, "y": [0, 1, 0, 1]}, r"feature 0 is nan .*row 0"),
        ({"x": ROWS * 1e300, "y": [0, 1, 0, 1]}, r"feature 0 is 1e\+300"),
        ({"x": ROWS, "y": [0, 1, 0]}, r"features \[4, 2\] and labels \[3\] do not go together"),
        ({"x": ROWS, "y": [0, 0, 0, 0]}, "found 1 class"),
        ({"x": ROWS.astype(complex), "y": [0, 1, 0, 1]}, "no real numbers"),
        ({"x": ROWS, "y": [0.5, 1, 0, 1]}, "labels of dtype float64"),
        ({"z": ROWS}, "no features and labels among z"),
        ({"x": np.array([[1], [2]], dtype=object), "y": [0, 1]}, "it holds pickled objects"),
        ({"x": ROWS[:, :0], "y": [0, 1, 0, 1]}, "do not go together"),
        ({"x_train": ROWS, "y_train": [0, 1, 0, 1], "x_test": ROWS}, "not one array of features and one of labels"),
        ({"x": ROWS, "y": [0, 1, 0, 1], "x_train": ROWS, "y_train": [0, 1, 0, 1]}, "not one array"),
        ({"x": 5.0, "y": 0}, r"features \[\] and labels \[\] do not go together .*\. Give x \[N, D\] and y \[N\]"),
        ({"x": ROWS, "y": ["a", "", "b", "a"]}, r"label '' is no class .*row 1"),
        ({"x_train": ROWS, "y_train": [0, 1, 0, 1], "x_test": ROWS[:, :1], "y_test": [0, 1, 0, 1]}, "unlike width"),
    ],
)
def test_a_bad_archive_is_one_clear_line(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_vectors(archive(tmp_path / "bad.npz", **arrays))
    assert "\n" not in str(caught.value)


def test_a_bad_table_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,label\n1,2,x\n3,tall,y\n")
    with pytest.raises(DataError, match=r"'b' is 'tall', no number .*line 3"):
        read_vectors(str(tmp_path / "t.csv"))
    (tmp_path / "t.jsonl").write_text('{"features": [1, 2], "label": "x"}\n{"features": [1], "label": "y"}')
    with pytest.raises(DataError, match=r"1 features, the first row has 2 .*line 2"):
        read_vectors(str(tmp_path / "t.jsonl"))
    (tmp_path / "t.csv").write_text("a,a,label\n1,2,x\n3,4,y\n")
    with pytest.raises(DataError, match="two columns are called 'a'"):
        read_vectors(str(tmp_path / "t.csv"))
    (tmp_path / "t.jsonl").write_text('{"embedding": [1, 2], "label": "x"}\n{"embedding": [1, 3], "label": "y"}')
    with pytest.raises(DataError, match="Name a column of lists 'features'"):
        read_vectors(str(tmp_path / "t.jsonl"))
    for record in ({"a": 10**400}, {"features": [10**400]}):
        lines = [{**record, "label": 0}, {**record, "label": 1}]
        for name, text in (("h.json", json.dumps(lines)), ("h.jsonl", "\n".join(map(json.dumps, lines)))):
            (tmp_path / name).write_text(text)
            with pytest.raises(DataError, match=r"is 1000+\.\.\.0+, no number that a float can hold .*(row 0|line 1)"):
                read_vectors(str(tmp_path / name))
    (tmp_path / "t.csv").write_text(f"a,label\n{10**400},x\n3,y\n")
    with pytest.raises(DataError, match=r"feature 0 is inf .*line 2"):
        read_vectors(str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("features,b,label\n1,2,x\n3,4,y\n")
    with pytest.raises(DataError, match=r"'features' is '1', no list of numbers .*line 2\)\. Give a list a row, or"):
        read_vectors(str(tmp_path / "t.csv"))
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as stream:
        stream.writestr("x", b"no array")
        stream.writestr("y", b"no array")
    with pytest.raises(DataError, match="no features and labels among nothing"):
        read_vectors(str(tmp_path / "raw.npz"))
    np.save(tmp_path / "one.npy", ROWS)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(DataError, match="one array, no archive"):
        read_vectors(str(tmp_path / "one.npz"))
    path = tmp_path / "cut.npz"
    archive(path, x=ROWS, y=[0, 1, 0, 1])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"cannot read the archive.*cut\.npz"):
        read_vectors(str(path))
    with pytest.raises(DataError, match="no such file"):
        load_data(DataRecipe(name="-"), "./none.npz", "vector-classification")


def test_a_class_that_no_training_sample_has_is_refused(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.npz", x_train=np.tile(ROWS, (5, 1)), y_train=[0, 1] * 10, x_test=ROWS[:2], y_test=[0, 7]
    )
    with pytest.raises(DataError, match="no training sample is of class 7"):
        load_data(DataRecipe(name="-"), path, "vector-classification")


def test_an_embedded_set_is_not_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breast-cancer").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(load_data(DataRecipe(name="breast-cancer"), None, "vector-classification").labels) == 2


def test_columns_of_splits_are_matched_by_name(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b,label\n1,10,x\n2,20,y\n")
    (tmp_path / "test.csv").write_text("label,b,a\nx,30,3\ny,40,4\n")
    assert read_vectors(str(tmp_path))[0]["test"].features.tolist() == [[3.0, 30.0], [4.0, 40.0]]
    (tmp_path / "test.csv").write_text("label,c,a\nx,30,3\ny,40,4\n")
    with pytest.raises(DataError, match=r"not the columns of the training split: b, c .*test\.csv"):
        read_vectors(str(tmp_path))


def test_features_are_normalised_by_the_training_split() -> None:
    features = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    fitted = FeaturePreprocessing.measured(features)
    (x,) = fitted.prepare((features,))
    assert x.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    again = restore_preprocessing(json.loads(json.dumps(fitted.to_dict())), {})
    assert again == fitted


def test_small_features_are_no_constants() -> None:
    (x,) = FeaturePreprocessing.measured(torch.tensor([[1e-20], [3e-20]])).prepare((torch.tensor([[1e-20], [3e-20]]),))
    torch.testing.assert_close(x, torch.tensor([[-1.0], [1.0]]))


def test_the_shipped_recipe_learns_from_the_embedded_data(tmp_path: Path) -> None:
    recipe = load_recipe("vectors-mlp", ["teacher.training.epochs=20", "student.training.epochs=20"])
    bundle = distill(recipe, out=tmp_path / "run").bundle
    scores = bundle.manifest["metrics"]
    assert scores["student_int8"]["accuracy"] > 0.92
    assert scores["student_int8"]["n"] == 188
    assert bundle.manifest["integer_macs_share"] == 1.0
    test = load_evaluation(recipe.data, "breast-cancer", "test", bundle.labels, recipe.task)
    assert evaluate(bundle.int8_program(), test, bundle.preprocessing).to_dict() == scores["student_int8"]

"""Which cells a matrix has, and which of them a folder of records holds already."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kdedge.cli.conditions import axes_of
from kdedge.errors import ArtifactError, UserError
from tests.agent_tools import make_onnx

from kdedge_bench.devices import LOCAL, Device
from kdedge_bench.matrix import Cell, cells_of, measured_already, request_of
from kdedge_bench.meters import find_meter
from kdedge_bench.session import bench

PI, JETSON = Device("pi", "pi@a"), Device("jetson", "me@b")
WISHES: dict[str, Any] = {"repetitions": 20, "min_duration_s": 0.0, "power": False, "meter": None, "wait_s": 600.0}


def files(folder: Path) -> list[Path]:
    """Three that differ; nobody opens them here."""
    paths = [folder / name for name in ("a.onnx", "b.onnx", "c.tflite")]
    for path in paths:
        path.write_text(path.name)
    return paths


def test_a_runtime_of_another_format_makes_no_cell(tmp_path: Path) -> None:
    a, b, c = files(tmp_path)
    cells, left_out = cells_of([a, b, c], [PI, JETSON], ["onnxruntime", "ai-edge-litert"], [1, 2])
    assert [(cell.artifact.path.name, cell.runtime) for cell in cells[::4]] == [
        ("a.onnx", "onnxruntime"), ("b.onnx", "onnxruntime"), ("c.tflite", "ai-edge-litert"),
    ]  # fmt: skip
    assert len(set(cells)) == 3 * 2 * 2
    assert [str(entry) for entry in left_out] == [
        f"4 cells left out: ai-edge-litert opens no onnx ({a})",
        f"4 cells left out: ai-edge-litert opens no onnx ({b})",
        f"4 cells left out: onnxruntime opens no tflite ({c})",
    ]


def test_one_file_under_two_names_is_measured_once(tmp_path: Path) -> None:
    a, b, _ = files(tmp_path)
    b.write_bytes(a.read_bytes())
    cells, (left_out,) = cells_of([a, b], [PI], [None], [1])
    assert [cell.label for cell in cells] == ["a.onnx, 1 thread"]
    assert str(left_out) == f"1 cell left out: {b} is the same file as {a}"


def test_no_cell_at_all_is_a_mistake(tmp_path: Path) -> None:
    a, *_ = files(tmp_path)
    with pytest.raises(UserError, match="nothing is left to measure: ai-edge-litert opens no onnx"):
        cells_of([a], [PI], ["ai-edge-litert"], [1])
    with pytest.raises(UserError, match=r"no runtime 'onnxruntim'\. Did you mean onnxruntime\?"):
        cells_of([a], [PI], ["onnxruntim"], [1])
    with pytest.raises(ArtifactError, match="no such file"):
        cells_of([a, tmp_path / "none.onnx"], [PI], [None], [1])


def test_a_wish_that_no_cell_can_meet_is_found_before_anything_begins(tmp_path: Path) -> None:
    (cell,), _ = cells_of(files(tmp_path)[:1], [PI], [None], [300])
    with pytest.raises(UserError, match="threads: from 1 to 256"):
        request_of(cell, WISHES)


@pytest.mark.parametrize(
    ("words", "several"),
    [
        ((["a.onnx"], "pi", None, "1"), False),
        ((["a.onnx"], "pi", "onnxruntime", "4"), False),
        ((["a.onnx", "b.onnx"], "pi", None, "1"), True),
        ((["a.onnx"], "pi,jetson", None, "1"), True),
        ((["a.onnx"], "all", None, "1"), True),
        ((["a.onnx"], "@shelf", None, "1"), True),
        ((["a.onnx"], "pi", "onnxruntime,tflite-runtime", "1"), True),
        ((["a.onnx"], "pi", None, "1, 2"), True),
    ],
)
def test_what_makes_a_matrix(words: tuple[list[str], str, str | None, str], several: bool) -> None:
    artifacts, devices, runtime, threads = words
    assert axes_of([Path(path) for path in artifacts], devices, runtime, threads).are_several is several


@pytest.mark.parametrize("threads", ["0", "-1", "two", "1,", "", "1;2", "1.5", "99999"])
def test_no_threads(threads: str) -> None:
    with pytest.raises(UserError, match="--threads"):
        axes_of([Path("a.onnx")], "pi", None, threads)


def test_what_stands_twice_counts_once() -> None:
    axes = axes_of([Path("a.onnx"), Path("a.onnx")], "pi", "onnxruntime,onnxruntime", "2,1,2")
    assert (axes.artifacts, axes.runtimes, axes.threads) == ((Path("a.onnx"),), ("onnxruntime",), (2, 1))
    with pytest.raises(UserError, match="no artifact"):
        axes_of([], "pi", None, "1")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An artifact, and a folder with its record, of this machine."""
    folder = tmp_path_factory.mktemp("measured")
    artifact = make_onnx(folder / "a.onnx")
    bench(artifact, repetitions=20, min_duration_s=0.0, power=False, out_dir=folder / "runs")
    return artifact, folder / "runs"


def cell_of(artifact: Path, **changes: Any) -> Cell:
    (cell,), _ = cells_of([artifact], [LOCAL], [None], [1])
    return replace(cell, **changes)


def found(measured: tuple[Path, Path], cell: Cell, wishes: dict[str, Any] = WISHES, data: str | None = None) -> bool:
    scored = {} if data is None else {cell.artifact.sha256: data}
    return cell in measured_already([cell], measured[1], wishes, scored=scored)


def test_what_was_measured_already(measured: tuple[Path, Path]) -> None:
    cell = cell_of(measured[0])
    assert found(measured, cell)
    assert found(measured, cell, {**WISHES, "wait_s": 3.0}), "how long it may wait is no condition"
    assert found(measured, replace(cell, runtime="onnxruntime")), "it is what was there"


@pytest.mark.parametrize(
    "wish", [{"repetitions": 21}, {"power": True}, {"governor": "performance"}, {"pin": [0]}, {"meter": "csv:x"},
             {"scenario": "offline"}, {"cool_down_s": 3.0}, {"profile": True}]
)  # fmt: skip
def test_other_conditions_are_measured_again(measured: tuple[Path, Path], wish: dict[str, Any]) -> None:
    assert not found(measured, cell_of(measured[0]), {**WISHES, **wish})


def test_other_cells_are_measured_again(measured: tuple[Path, Path], tmp_path: Path) -> None:
    artifact = measured[0]
    assert not found(measured, cell_of(artifact, threads=2))
    assert not found(measured, cell_of(artifact, device=PI))
    assert not found(measured, cell_of(make_onnx(tmp_path / "a.onnx", width=4)))
    assert not found(measured, cell_of(artifact), data="a1"), "accuracy was not measured"


def changed(measured: tuple[Path, Path], folder: Path, change: Any) -> tuple[Path, Path]:
    """The same with its record changed."""
    (file,) = measured[1].glob("*.json")
    record = json.loads(file.read_text())
    change(record)
    (folder / file.name).write_text(json.dumps(record))
    return measured[0], folder


def test_records_of_other_versions(measured: tuple[Path, Path], tmp_path: Path) -> None:
    cell = cell_of(measured[0])
    older = changed(measured, tmp_path, lambda record: record["request"].pop("profile"))
    assert found(older, cell), "a key that is not there yet was at its default"
    newer = changed(measured, tmp_path, lambda record: record["request"].update(hurry=True))
    assert not found(newer, cell)
    another = changed(measured, tmp_path, lambda record: record["versions"].update(kdedge="0.0.0"))
    assert not found(another, cell)
    scores = {"n": 100, "accuracy": 0.5, "data": {"source": "digits", "split": "test", "sha256": "a1"}}
    with_accuracy = changed(measured, tmp_path, lambda record: record.update(accuracy=scores))
    assert found(with_accuracy, cell) and found(with_accuracy, cell, data="a1")
    assert not found(with_accuracy, cell, data="b2"), "as many samples of other data"


def test_another_board_of_the_same_name_is_measured_again(measured: tuple[Path, Path], tmp_path: Path) -> None:
    moved = changed(measured, tmp_path, lambda record: record.update(device_sha256=replace(PI, name="local").sha256))
    assert not found(moved, cell_of(measured[0]))
    assert PI.sha256 != replace(PI, port=2222).sha256 != replace(PI, python="/opt/py/bin/python3").sha256


def test_what_another_meter_read_is_measured_again(measured: tuple[Path, Path], tmp_path: Path) -> None:
    cell, wishes = cell_of(measured[0]), {**WISHES, "meter": "csv:watts.csv", "meter_accuracy": 0.01}

    def read_by(name: str, accuracy: float | None) -> Any:
        def change(record: dict[str, Any]) -> None:
            record["request"]["external_meter"] = True
            record["power"] = {"meter": {"name": name, "accuracy": accuracy}}

        return changed(measured, tmp_path, change)

    name = find_meter("csv:watts.csv").name
    assert found(read_by(name, 0.01), cell, wishes)
    assert not found(read_by(name, 0.001), cell, wishes)
    assert not found(read_by("kasa plug", 0.01), cell, wishes)


def test_the_newest_of_several_counts(measured: tuple[Path, Path], tmp_path: Path) -> None:
    cell = cell_of(measured[0])
    (file,) = measured[1].glob("*.json")
    record = json.loads(file.read_text())
    for number, day in enumerate(("02", "03", "01")):
        document = {**record, "run_id": f"r{number}", "created_at": f"2026-01-{day}T00:00:00+00:00"}
        (tmp_path / f"r{number}.json").write_text(json.dumps(document))
    assert measured_already([cell], tmp_path, WISHES, scored={})[cell].run_id == "r1"


def test_what_is_no_record_is_passed_over(measured: tuple[Path, Path], tmp_path: Path) -> None:
    cell = cell_of(measured[0])
    assert measured_already([cell], tmp_path / "none", WISHES, scored={}) == {}
    for name, text in (
        ("cut", '{"run_id": "x", "schema'),
        ("list", "[]"),
        ("later", '{"run_id": 1, "schema_version": 9}'),
    ):
        (tmp_path / f"{name}.json").write_text(text)
    assert measured_already([cell], tmp_path, WISHES, scored={}) == {}

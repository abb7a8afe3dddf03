"""The file of --matrix: every option of kdedge bench, and every mistake by its key."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from kdedge.cli.bench import bench
from kdedge.cli.commands import app
from kdedge.cli.matrix_file import AXES, SETTINGS, read_matrix_file
from kdedge.errors import UserError
from typer.testing import CliRunner


def test_it_has_the_options_of_the_command() -> None:
    """But those that say what to do with the matrix itself, and of a bundle, which makes none."""
    others = {"matrix", "resume", "as_json", "accept_new_host_key", "precision"}
    assert {parameter for parameter, _ in [*AXES.values(), *SETTINGS.values()]} == (
        set(inspect.signature(bench).parameters) - others
    )


def test_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(
        'artifacts = ["a b.onnx", "c.tflite"]\ndevices = ["pi", "@shelf"]\nruntimes = "onnxruntime"\n'
        "threads = [1, 4]\nseconds = 1\npower = false\nrepetitions = 50\n"
    )
    assert read_matrix_file(file) == {
        "artifacts": ["a b.onnx", "c.tflite"], "device": "pi,@shelf", "runtime": "onnxruntime", "threads": "1,4",
        "min_duration_s": 1, "power": False, "repetitions": 50,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("artifact = ['a.onnx']", "unknown key 'artifact' (FILE). Did you mean 'artifacts'?"),
        ("device = 'pi'", "unknown key 'device' (FILE). Did you mean 'devices'?"),
        ("zzz = 1", "unknown key 'zzz' (FILE). Known are artifacts, devices"),
        ("threads = [1, 'two']", "key 'threads' is [1, 'two'] (FILE). It is a list like [1, 2, 4]"),
        ("threads = [true]", "key 'threads' is [True]"),
        ("artifacts = []", "key 'artifacts' is [] (FILE). It is a list"),
        ("repetitions = 'many'", "key 'repetitions' is 'many' (FILE). It is a whole number"),
        ("repetitions = true", "key 'repetitions' is True"),
        ("seconds = 'long'", "key 'seconds' is 'long' (FILE). It is a number"),
        ("power = 1", "key 'power' is 1 (FILE). It is true or false"),
        ("[devices]\npi = 1", "key 'devices' is {'pi': 1}"),
        ("threads = ", "not TOML"),
    ],
)
def test_mistakes_are_named_by_key(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_matrix_file(file)
    assert words.replace("FILE", str(file)) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_matrix_file(tmp_path / "none.toml")
    with pytest.raises(UserError, match="cannot read"):
        read_matrix_file(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not TOML"):
        read_matrix_file(tmp_path / "bytes.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jobs = 0", "key 'jobs' is 0: "),
        ("starts = 0", "key 'starts' is 0: "),
        ("threads = [0, 1]", "key 'threads': --threads '0' is no number of threads (FILE). Write numbers from 1 on"),
        ("pin = 'all'", "key 'pin': --pin 'all' names no processors (FILE)"),
        ("cool_down = 'soon'", "key 'cool_down': --cool-down 'soon' is neither seconds nor a temperature (FILE)"),
    ],
)
def test_values_that_the_options_refuse_name_the_file(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(f"artifacts = ['a.onnx']\n{text}\n")
    done = CliRunner().invoke(app, ["bench", "--matrix", str(file)])
    assert isinstance(done.exception, UserError)
    assert str(done.exception).startswith(words.replace("FILE", str(file))) and str(file) in str(done.exception)

"""The contract that users' scripts rest on: commands, exit codes, one JSON document on stdout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kdedge.bundle import Bundle
from tests import warm
from tests.conftest import SMALL, WITH_TESTS

from kdedge_agent.onnx_session import exact_here

COMMANDS = [
    ["distill"], ["export"], ["eval"], ["bench"], ["report"], ["recipes"], ["demo"], ["cache"], ["device"],
    ["recipes", "show"], ["cache", "build"], ["cache", "info"], ["cache", "prune"],
    ["device", "add"], ["device", "list"], ["device", "check"], ["device", "setup"], ["device", "remove"],
]  # fmt: skip


# One thread; the small bundle's student is a function of the tests'.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": WITH_TESTS}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With a configuration folder of the test's own."""
    return {**ENVIRONMENT, "KDEDGE_CONFIG_DIR": str(tmp_path / "config")}


def kdedge(environment: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    return warm.run(words, env=environment, timeout_s=600)


# kdedge with an artifact that chooses other classes than its student: none does so by itself.
DEPARTING = """
import dataclasses
from kdedge.cli.entry import main
from kdedge_exporters import parity

compare = parity.compare
parity.compare = lambda *given, **more: dataclasses.replace(compare(*given, **more), agreement=0.5)
main()
"""


def departing(environment: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DEPARTING, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def document(process: subprocess.CompletedProcess[str]) -> Any:
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def refused(process: subprocess.CompletedProcess[str], *says: str, code: int = 2) -> None:
    """One line of error that says these words; the code; no traceback."""
    assert process.returncode == code, process.stderr
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, process.stderr
    for words in says:
        assert words in lines[0]
    assert "Traceback" not in process.stderr


@pytest.fixture(scope="module")
def artifacts(small_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both formats, exported by the command line from the small bundle: format -> its JSON document."""
    folder = tmp_path_factory.mktemp("artifacts")
    made = {}
    for format_ in ("onnx", "tflite"):
        out = folder / f"student.{format_}"
        made[format_] = document(
            kdedge(ENVIRONMENT, "export", small_bundle.path, "--format", format_, "--out", out, "--json")
        )
    return made


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_an_example(words: list[str], environment: dict[str, str]) -> None:
    process = kdedge(environment, *words, "--help")
    assert process.returncode == 0
    assert "Example: kdedge " in process.stdout


def test_version(environment: dict[str, str]) -> None:
    from kdedge import __version__

    assert kdedge(environment, "--version").stdout == f"kdedge {__version__}\n"


def test_recipes(environment: dict[str, str]) -> None:
    listed = document(kdedge(environment, "recipes", "--json"))
    assert {"digits", "cifar10-cpu"} <= {entry["name"] for entry in listed}
    lines = kdedge(environment, "recipes").stdout.splitlines()
    assert len(lines) == len(listed)


def test_a_recipe_is_shown_copied_and_read_back(environment: dict[str, str], tmp_path: Path) -> None:
    from kdedge.recipe_file import load_recipe

    shown = kdedge(environment, "recipes", "show", "digits")
    assert shown.returncode == 0, shown.stderr
    mine = tmp_path / "mine.toml"
    written = kdedge(environment, "recipes", "show", "digits", "--out", mine)
    assert written.returncode == 0 and str(mine) in written.stdout
    assert mine.read_text() == shown.stdout
    assert load_recipe(mine).sha256 == load_recipe("digits").sha256
    mine.write_text(shown.stdout.replace("epochs = 4\n", "epochs = 5\n"))
    refused(kdedge(environment, "recipes", "show", "digits", "--out", mine), "there already", "--force")
    assert document(kdedge(environment, "recipes", "show", mine, "--json"))["qat"]["training"]["epochs"] == 5
    over = document(kdedge(environment, "recipes", "--json", "show", "digits", "--out", mine, "--force"))
    assert over["qat"]["training"]["epochs"] == 4
    assert mine.read_text() == shown.stdout
    refused(kdedge(environment, "recipes", "show", "digit"), "no recipe 'digit'", "Did you mean 'digits'")
    refused(kdedge(environment, "recipes", "show", tmp_path / "none.toml"), "none.toml")
    refused(kdedge(environment, "recipes", "show", "digits", "--out", tmp_path / "mine.txt"), ".toml")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_export_document(artifacts: dict[str, Any], format_: str) -> None:
    made = artifacts[format_]
    assert made["format"] == format_
    assert made["precision"] == "int8"
    artifact = Path(made["artifact"])
    assert made["size_bytes"] == artifact.stat().st_size
    assert made["float_ops"] == []
    assert made["parity"]["n"] == 592
    assert made["parity"]["agreement"] >= 0.95
    assert abs(made["parity"]["accuracy_student"] - made["parity"]["accuracy_artifact"]) <= 0.02
    record = json.loads(artifact.with_name(artifact.name + ".parity.json").read_text())
    assert record["sha256"] == made["sha256"]
    assert record["parity"]["data"] == {"source": "digits", "split": "test"}


def test_export_says_which_tensors_cost_the_logits_most(
    small_bundle: Bundle, environment: dict[str, str], tmp_path: Path
) -> None:
    words = ("export", small_bundle.path, "--format", "onnx", "--out", tmp_path / "s.onnx")
    made = document(kdedge(environment, *words, "--explain-quantization", "--json"))
    errors = made["quantization_error"]
    ratios = [error["logits_sqnr_db"] for error in errors if error["logits_sqnr_db"] is not None]
    assert ratios == sorted(ratios)
    assert {"weight", "activation"} == {error["kind"] for error in errors}
    assert any(error["name"].startswith("features.") for error in errors)
    refused(kdedge(environment, *words, "--precision", "float32", "--explain-quantization"), "only int8 has quantised")
    failed = departing(environment, *words)
    assert failed.returncode == 1
    assert f"Most noise comes from {errors[0]['name']}" in failed.stderr


def test_export_calibrated_symmetric_and_of_pixels(
    small_bundle: Bundle, environment: dict[str, str], tmp_path: Path
) -> None:
    export = ("export", small_bundle.path, "--format", "onnx", "--out", tmp_path / "a.onnx")
    made = document(
        kdedge(environment, *export, "--calibrate", "200", "--activations", "symmetric", "--tolerance", "0.1", "--json")
    )
    wanted = {"method": "calibration", "activations": "symmetric", "calibration_samples": 200, "widened_scales": []}
    assert made["quantisation"] == wanted
    assert made["integer_macs_share"] == 1.0 and made["parity"]["accuracy_float"] > 0.8
    pixels = document(kdedge(environment, *export, "--io", "uint8", "--json"))
    scored = document(kdedge(environment, "eval", tmp_path / "a.onnx", "--data", "digits", "--json"))
    assert scored["metrics"]["accuracy"] == pytest.approx(pixels["parity"]["accuracy_artifact"], abs=1e-6)
    refused(kdedge(environment, *export, "--calibrate", "9", "--precision", "float32"), "--calibrate: only int8")
    refused(kdedge(environment, *export, "--activations", "symmetric"), "zero point 0", "--calibrate 500")


def test_distill_and_export_say_when_quantising_cost_more_than_the_recipe_tolerates(
    small_bundle: Bundle, environment: dict[str, str], tmp_path: Path
) -> None:
    settings = [f"--set={setting}" for setting in (*SMALL, "qat.training.learning_rate=10")]
    reuse = ("--reuse", small_bundle.path.parent)
    diverged = kdedge(environment, "distill", "digits", *settings, "--out", tmp_path / "run", *reuse, "--json")
    metrics = document(diverged)["metrics"]
    drop = "note: accuracy of the int8 student is {:.4f}, of the float one {:.4f}. Most noise comes from ".format(
        metrics["student_int8"]["accuracy"], metrics["student_float"]["accuracy"]
    )
    (note,) = [line for line in diverged.stderr.splitlines() if line.startswith("note: accuracy")]
    assert note.startswith(drop)
    export = ("export", tmp_path / "run" / "bundle", "--format", "onnx", "--out", tmp_path / "a.onnx", "--json")
    exported = kdedge(environment, *export, "--explain-quantization", "--tolerance", "1", "--agreement", "0")
    worst = ", ".join(error["name"] for error in document(exported)["quantization_error"][:3])
    assert note in exported.stderr.splitlines() and f"{drop}{worst}: see" in note
    left = departing(environment, *export)
    assert left.returncode == 1 and f"Most noise comes from {worst}: see" in left.stderr.splitlines()[-1]
    assert left.stderr.count("measuring what each quantised tensor costs") == 1, "both lines go by one look"
    lost = kdedge(environment, "distill", "digits", *settings, "--out", tmp_path / "run", "--resume")
    assert lost.returncode == 0 and note in lost.stderr.splitlines()
    kept = kdedge(environment, *export[:-2], tmp_path / "b.onnx", "--precision", "float32", "--json")
    assert document(kept) and "note: accuracy" not in kept.stderr


def test_eval_is_one_path_for_bundle_and_artifacts(
    small_bundle: Bundle, artifacts: dict[str, Any], environment: dict[str, str]
) -> None:
    scored = document(kdedge(environment, "eval", small_bundle.path, "--json"))
    assert scored["metrics"] == {
        key: small_bundle.manifest["metrics"]["student_int8"][key] for key in ("accuracy", "f1_macro")
    }
    assert scored["n"] == 592
    assert scored["runtime"]["name"] == "torch"
    for format_, runtime in (("onnx", "onnxruntime"), ("tflite", "ai-edge-litert")):
        path = artifacts[format_]["artifact"]
        own = document(kdedge(environment, "eval", path, "--data", "digits", "--json"))
        assert own["runtime"]["name"] == runtime
        assert own["runtime"]["version"]
        # The artifact's own metadata lead to the very test split of the training.
        assert own["n"] == 592
        assert own["metrics"]["accuracy"] == pytest.approx(artifacts[format_]["parity"]["accuracy_artifact"], abs=1e-6)


def test_bench_local_and_report(artifacts: dict[str, Any], environment: dict[str, str], tmp_path: Path) -> None:
    for format_, made in artifacts.items():
        record = document(
            kdedge(
                environment,
                "bench",
                made["artifact"],
                "--repetitions",
                "50",
                "--min-duration",
                "0.2",
                "--accuracy-data",
                "digits",
                "--out",
                tmp_path / "records",
                "--json",
            )
        )
        latency = record["latency_s"]
        assert len(latency["samples"]) == latency["n"] >= 50
        assert 0 < latency["p50"] <= latency["p90"]
        assert (latency["p99"] is None) == ("latency_s.p99" in record["unmeasured"])
        assert record["device"] == "local"
        assert record["artifact_sha256"] == made["sha256"]
        assert record["load_s"] > 0
        assert record["first_inference_s"] > 0
        assert record["memory_bytes"]["peak"] > 1e6
        assert (record["power_w"] is None) == ("power_w" in record["unmeasured"])
        assert record["verdict"] in ("steady", "drifting", "throttled", "undervoltage", "noisy")
        assert record["accuracy"]["accuracy"] == pytest.approx(made["parity"]["accuracy_artifact"], abs=1e-6)
        assert record["runtime"]["version"], format_
        assert record["runtime"]["options"] == (exact_here() if format_ == "onnx" else {})
    page = tmp_path / "report.html"
    reported = document(kdedge(environment, "report", tmp_path / "records", "--out", page, "--json"))
    assert len(reported["rows"]) == 2
    assert page.read_text().startswith("<!")


def test_parity_refuses_to_leave_an_artifact(small_bundle: Bundle, environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "student.onnx"
    export = ("export", small_bundle.path, "--format", "onnx", "--out", out, "--json")
    process = departing(environment, *export)
    refused(process, "agreement of the arg-maxes is 0.5", code=1)
    assert json.loads(process.stdout)["error"]["exit_code"] == 1
    refused(kdedge(environment, *export, "--agreement", "99"), "99.0 is no share (--agreement)")
    refused(kdedge(environment, *export, "--tolerance", "nan"), "nan is no share (--tolerance)")
    assert list(tmp_path.glob("*student*")) == []


def test_the_users_mistakes_with_a_recipe_and_data(environment: dict[str, str], tmp_path: Path) -> None:
    refused(kdedge(environment, "distill", "digit"), "no recipe 'digit'", "Did you mean 'digits'")
    refused(
        kdedge(environment, "distill", "digits", "--set", "student.training.epoch=1"),
        "unknown recipe key 'student.training.epoch'", "Did you mean 'student.training.epochs'",
    )  # fmt: skip
    refused(
        kdedge(environment, "distill", "digits", "--data", tmp_path / "none", "--out", tmp_path / "o"), "no such folder"
    )
    assert not (tmp_path / "o").exists()
    assert kdedge(environment, "distill").returncode == 2
    unknown = kdedge(environment, "no-such-command", "--json")
    assert unknown.returncode == 2 and "No such command 'no-such-command'" in unknown.stderr
    assert json.loads(unknown.stdout)["error"]["what"] == "No such command 'no-such-command'."


def test_a_teacher_of_other_classes(small_bundle: Bundle, environment: dict[str, str], tmp_path: Path) -> None:
    import torch
    from torch import nn

    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7)).state_dict(), tmp_path / "t.pt")
    refused(
        kdedge(environment, "distill", "digits", "--teacher", tmp_path / "t.pt", "--out", tmp_path / "o"),
        "the teacher has 7 classes, the data has 10",
    )


def test_the_users_mistakes_with_bundles_and_artifacts(
    small_bundle: Bundle, artifacts: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    refused(kdedge(environment, "export", tmp_path / "none", "--format", "onnx"), "no such bundle")
    refused(
        kdedge(environment, "export", small_bundle.path, "--format", "coreml"), "no format 'coreml'", "onnx, tflite"
    )
    damaged = shutil.copytree(small_bundle.path, tmp_path / "bundle")
    (damaged / "student-int8.safetensors").write_bytes(b"cut")
    refused(kdedge(environment, "export", damaged, "--format", "onnx"), "truncated", "student-int8.safetensors")
    for format_, made in artifacts.items():
        half = tmp_path / f"half.{format_}"
        whole = Path(made["artifact"]).read_bytes()
        half.write_bytes(whole[: len(whole) // 2])
        refused(kdedge(environment, "eval", half, "--data", "digits"), f"half.{format_}")
        refused(kdedge(environment, "bench", half, "--out", tmp_path / "r"), f"half.{format_}")
        refused(kdedge(environment, "eval", made["artifact"]), "--data digits")
        refused(
            kdedge(environment, "eval", made["artifact"], "--data", "digits", "--precision", "int8"),
            "--precision int8 has no effect",
        )
    refused(kdedge(environment, "eval", small_bundle.path, "--runtime", "onnxruntime"), "has no effect")
    refused(kdedge(environment, "eval", small_bundle.path, "--split", "dev"), "no split 'dev'", "train, validation")
    refused(kdedge(environment, "eval", tmp_path / "none"), "no such file")
    refused(kdedge(environment, "bench", tmp_path / "none.onnx"), "none.onnx")
    refused(kdedge(environment, "bench", small_bundle.path, "--precision", "int4"), "no int4 student")
    refused(kdedge(environment, "bench", small_bundle.path, "--device", "pi"), "on this machine only")
    refused(kdedge(environment, "report", tmp_path / "none"), "none")


def test_devices(artifacts: dict[str, Any], environment: dict[str, str]) -> None:
    path = artifacts["onnx"]["artifact"]
    refused(kdedge(environment, "bench", path, "--device", "pi"), "kdedge device add pi")
    added = document(
        kdedge(environment, "device", "add", "pi", "pi@127.0.0.1", "--kind", "pi", "--port", "1", "--json")
    )
    assert added["address"] == "pi@127.0.0.1"
    listed = document(kdedge(environment, "device", "list", "--json"))
    assert [device["name"] for device in listed] == ["local", "pi"]
    # Nothing listens on port 1 of loopback.
    refused(kdedge(environment, "bench", path, "--device", "pi"), "pi", code=3)
    checked = kdedge(environment, "device", "check", "pi", "--json")
    assert checked.returncode == 3
    assert json.loads(checked.stdout)["ok"] is False
    refused(kdedge(environment, "device", "add", "pi", "pi@127.0.0.1"), "there already")
    assert document(kdedge(environment, "device", "remove", "pi", "--json"))["name"] == "pi"
    refused(kdedge(environment, "device", "remove", "pi"), "pi")

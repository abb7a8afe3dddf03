"""What kdedge says of the runtimes' versions, asked of the runtimes themselves."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kdedge import quantize
from kdedge.errors import ReachError, UserError
from tests import bundles, runtime_environments, runtime_probe, text_nets

from kdedge_exporters import export, reach
from kdedge_exporters.inspection import Contents, OpKind, contents, inspect_artifact

HERE = [("onnxruntime", sys.executable), ("ai-edge-litert", sys.executable)]


def table_of(runtime: str, version: str) -> dict[str, int] | None:
    """The row of a runtime without what it does not know; None where its version has none."""
    major, minor = map(int, version.split(".")[:2])
    row = reach._versions(runtime).get((major, minor))
    return None if row is None else {name.replace("ai.onnx", "opset"): newest for name, newest in row.items() if newest}


def check(python: Path | str, runtime: str, folder: Path) -> None:
    version, newest = runtime_probe.ask(python, runtime, folder)
    known = table_of(runtime, version)
    assert known is not None, f"{runtime} {version} has no row yet: {newest}"
    assert known == newest


@pytest.mark.parametrize("runtime, python", HERE)
def test_the_table_holds_for_the_runtimes_here(runtime: str, python: str, tmp_path: Path) -> None:
    check(python, runtime, tmp_path)


@pytest.mark.parametrize(
    ("environment", "runtime"),
    [("oldest", "tflite-runtime"), ("oldest", "onnxruntime"), *runtime_environments.LATER],
)
def test_the_table_holds_for_other_versions(environment: str, runtime: str, tmp_path: Path) -> None:
    check(runtime_environments.python_of(environment), runtime, tmp_path)


def made_of(ops: dict[str, int], **versions: int) -> Contents:
    kinds = tuple(OpKind(op, "int8", 1, 0) for op in ops)
    return Contents("", {**ops, **versions}, kinds, 0, 0, 0, (), (), {}, {})


def test_the_oldest_version_is_named_with_what_the_one_before_lacks() -> None:
    tflite_runtime, litert = reach.oldest_versions(made_of({"ADD": 5, "CONV_2D": 8}), "tflite")
    assert (tflite_runtime.runtime, tflite_runtime.oldest) == ("tflite-runtime", None)
    assert tflite_runtime.obstacles == ("CONV_2D version 8, it knows up to 7",)
    assert (litert.runtime, litert.oldest, litert.obstacles) == ("ai-edge-litert", "1.0", ())
    (onnxruntime,) = reach.oldest_versions(made_of({}, ir=9, **{"ai.onnx": 20}), "onnx")
    assert onnxruntime.oldest == "1.17"
    assert onnxruntime.obstacles == ("operator set 20, it knows up to 19",)
    unknown = reach.oldest_versions(made_of({"CUSTOM": 1}), "tflite")
    assert [found.oldest for found in unknown] == [None, None]
    assert "it has no CUSTOM" in unknown[0].obstacles


def test_an_op_of_a_dtype_may_need_a_newer_version_than_its_op_set() -> None:
    """Seen: 1.15.1 and 1.16.3 refuse the file, 1.17.3 and 1.18.1 open it."""
    inside = made_of({}, ir=8, **{"ai.onnx": 18})
    for dtype, oldest in (("float32", "1.15"), ("float16", "1.17")):
        with_it = dataclasses.replace(inside, ops=(OpKind("LayerNormalization", dtype, 2, 0),))
        (found,) = reach.oldest_versions(with_it, "onnx")
        assert found.oldest == oldest
    assert found.obstacles == ("it does not open LayerNormalization in float16",)
    with pytest.raises(ReachError, match=r"onnxruntime 1\.16 would not open the file: it does not open LayerNorm"):
        reach.require(with_it, reach.Target.parse("onnxruntime==1.16"))


@pytest.mark.parametrize(
    "text, says",
    [
        ("tensorrt", "unknown runtime 'tensorrt'"),
        ("onnxruntime==new", "'new' is no version"),
        ("onnxruntime==1.9", "oldest version probed is 1.15"),
    ],
)
def test_a_target_that_nobody_asked_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        reach.probed(reach.Target.parse(text))


def test_versions_between_those_probed_count_as_the_older_one() -> None:
    assert reach.newest_opset(reach.Target.parse("onnxruntime==1.30")) == 25
    assert reach.newest_opset(reach.Target.parse("onnxruntime")) == 18


def test_an_image_net_reaches_the_oldest_runtimes(tmp_path: Path) -> None:
    bundle = bundles.write(tmp_path / "bundle", size=16, model="tests.small_nets:student")
    for format_, oldest in (
        ("onnx", {"onnxruntime": "1.15"}),
        ("tflite", {"tflite-runtime": "2.14", "ai-edge-litert": "1.0"}),
    ):
        for precision in ("int8", "float32"):
            made = export(bundle, format_, precision=precision, samples=None, out=tmp_path / f"a.{format_}")
            assert made.opened_by == oldest
            assert {found.runtime: found.oldest for found in inspect_artifact(made.artifact).reach} == oldest


@pytest.mark.parametrize("python", ["here", "oldest"])
def test_divisions_are_named_and_run_in_every_runtime(python: str, tmp_path: Path) -> None:
    """Left to litert-torch they were ops of integers, which old runtimes refuse, some of them by the data."""
    bundle = bundles.write(tmp_path / "bundle", size=16, model="tests.small_nets:divided", steps=5)
    made = export(bundle, "tflite", samples=None, out=tmp_path / "a.tflite")
    assert "DIV" in {op["op"] for op in made.float_ops}
    images = bundles.images_of((3, 16, 16), 50)[0]
    runtime, interpreter = "ai-edge-litert", Path(sys.executable)
    if python == "oldest":
        runtime, interpreter = "tflite-runtime", runtime_environments.python_of(python)
    _, logits = runtime_environments.logits_in(interpreter, made.artifact, runtime, images.numpy(), tmp_path)
    with torch.no_grad():
        exact = bundle.int8_program()(images).numpy()
    step = quantize.qparams(bundle.int8_program())[-1].scale[0]
    assert np.abs(logits - exact).max() < 2.5 * step


def test_a_file_that_would_end_the_process_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 dies of this net's float16 file while it optimizes it; a version that does not compares it."""
    bundle = bundles.write(tmp_path / "bundle", size=32, steps=3, quantised=False, model="tests.vit_net:student")
    samples = bundles.images_of((3, 32, 32), 20)
    out = tmp_path / "a.onnx"
    try:
        export(bundle, "onnx", precision="float16", samples=samples, out=out, min_agreement=0.0)
    except ReachError as error:
        assert "onnxruntime here does not open the file: died with code" in str(error)
        assert not out.exists()
    assert export(bundle, "onnx", precision="float32", samples=samples, out=out).parity is not None


def test_gelu_needs_a_newer_onnx_runtime_and_an_older_one_gets_it_in_float(tmp_path: Path) -> None:
    net = text_nets.trained("bert", "text-classification", steps=2)
    bundle = text_nets.write(tmp_path / "bundle", net, text_nets.quantised(net, steps=1))
    wide = export(bundle, "onnx", samples=None, out=tmp_path / "a.onnx")
    assert wide.opened_by == {"onnxruntime": "1.17"}
    old = export(bundle, "onnx", samples=None, target_runtime="onnxruntime==1.16", out=tmp_path / "b.onnx")
    assert old.opened_by == {"onnxruntime": "1.15"}
    assert "Erf" in {op["op"] for op in old.float_ops} - {op["op"] for op in wide.float_ops}


def test_a_file_that_its_target_would_not_open_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundles.write(tmp_path / "bundle", size=16, model="tests.small_nets:student", steps=1)
    inside = contents(export(bundle, "tflite", samples=None, out=tmp_path / "a.tflite").artifact, "tflite")
    newer = dataclasses.replace(inside, versions={**inside.versions, "ADD": 6})
    monkeypatch.setattr("kdedge_exporters.inspection.contents", lambda *_: newer)
    with pytest.raises(ReachError, match="tflite-runtime would not open the file: ADD version 6, it knows up to 5"):
        export(bundle, "tflite", samples=None, target_runtime="tflite-runtime", out=tmp_path / "b.tflite")
    assert not (tmp_path / "b.tflite").exists()
    with pytest.raises(UserError, match="tflite-runtime opens tflite files, not onnx"):
        export(bundle, "onnx", samples=None, target_runtime="tflite-runtime", out=tmp_path / "b.onnx")

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from kdedge import quantize
from kdedge.bundle import Bundle
from kdedge.data.splits import load_data
from kdedge.errors import BundleError
from kdedge.evaluation import evaluate


@pytest.fixture
def copy(small_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_bundle.path, tmp_path / "bundle"))


def edit(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.update(changes)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_manifest_says_what_a_stranger_needs(small_bundle: Bundle) -> None:
    manifest = small_bundle.manifest
    assert manifest["format"] == "kdedge-bundle"
    assert manifest["labels"] == [str(n) for n in range(10)]
    assert manifest["inputs"] == [{"name": "image", "dtype": "float32", "shape": [3, 32, 32], "layout": "NCHW"}]
    assert manifest["metrics"]["student_int8"]["n"] == 592
    assert manifest["recipe"]["student"]["model"] == "tests.small_nets:Mobile"
    assert manifest["energy_j"]["total"] is not None or manifest["unmeasured"]["energy_j.total"]
    assert set(manifest["versions"]) >= {"python", "kdedge", "torch", "torchao"}
    assert len(manifest["data"]["fingerprint"]) == 64
    assert manifest["integer_macs_share"] == 1.0
    assert manifest["float_ops"] == []


def test_it_holds_no_pickle(small_bundle: Bundle) -> None:
    assert {p.suffix for p in small_bundle.path.iterdir()} == {".json", ".safetensors"}


def test_the_program_is_the_one_that_was_scored_in_training(small_bundle: Bundle) -> None:
    """The scales froze before the last steps moved the weights: a loaded bundle must keep the frozen ones."""
    test = load_data(small_bundle.recipe.data).test
    scored = evaluate(small_bundle.int8_program(), test, small_bundle.preprocessing)
    assert scored.to_dict() == small_bundle.manifest["metrics"]["student_int8"]


def test_one_image_alone_is_what_it_is_among_others(small_bundle: Bundle) -> None:
    images = torch.rand(5, *small_bundle.input_shape)
    program = small_bundle.int8_program()
    with torch.no_grad():
        together = program(images)
        one_by_one = torch.cat([program(image[None]) for image in images])
    # Float kernels for one image and for several sum in another order: a value may round to the next integer.
    step = quantize.qparams(small_bundle.qat_student())[-1].scale[0]
    assert float((together - one_by_one).abs().max()) <= 2 * step
    assert float((together == one_by_one).float().mean()) > 0.5


def test_two_loads_give_the_same_logits(small_bundle: Bundle) -> None:
    images = torch.rand(2, *small_bundle.input_shape)
    with torch.no_grad():
        a, b = (Bundle.load(small_bundle.path).int8_program()(images) for _ in range(2))
        c, d = (Bundle.load(small_bundle.path).float_student()(images) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(c, d)


def test_nobody_can_spoil_what_others_are_given(small_bundle: Bundle) -> None:
    """The student is followed once and copied for each caller."""
    images = torch.rand(2, *small_bundle.input_shape)
    bundle = Bundle.load(small_bundle.path)
    first = bundle.qat_student().eval()
    with torch.no_grad():
        wanted = first(images), bundle.int8_program()(images)
        for parameter in first.parameters():
            parameter.zero_()
        quantize.set_fake_quantize(first, False)
        assert torch.equal(bundle.qat_student().eval()(images), wanted[0])
        assert torch.equal(bundle.int8_program()(images), wanted[1])
        calibrated = bundle.calibrated([(images,)])
        assert not torch.equal(calibrated.int8_program()(images), wanted[1])


@pytest.mark.parametrize("name", ["student.safetensors", "student-int8.safetensors", "quantisation.json"])
def test_a_truncated_file_is_named(copy: Path, name: str) -> None:
    file = copy / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(BundleError, match=f"truncated.*{name}"):
        Bundle.load(copy)


def test_one_flipped_bit_is_found(copy: Path) -> None:
    file = copy / "student.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        Bundle.load(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "student-int8.safetensors").unlink()
    with pytest.raises(BundleError, match=r"missing.*student-int8\.safetensors"):
        Bundle.load(copy)


def test_foreign_and_newer_bundles_are_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle.load(tmp_path / "nothing")
    with pytest.raises(BundleError, match="no readable manifest"):
        Bundle.load(tmp_path)
    edit(copy, format_version=99)
    with pytest.raises(BundleError, match="format version 99"):
        Bundle.load(copy)
    edit(copy, format="other")
    with pytest.raises(BundleError, match="not a kdedge bundle"):
        Bundle.load(copy)


def test_a_manifest_cannot_reach_outside(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = manifest["files"]["student.safetensors"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    "key", ["task", "model", "recipe", "recipe_sha256", "versions", "data", "labels", "preprocessing", "files"]
)
def test_what_a_manifest_lacks_is_named(copy: Path, key: str) -> None:
    file = copy / "manifest.json"
    whole = json.loads(file.read_text())
    for damaged in ({name: value for name, value in whole.items() if name != key}, {**whole, key: None}):
        file.write_text(json.dumps(damaged))
        with pytest.raises(BundleError, match=rf"damaged manifest: no '{key}' .*manifest\.json\)\. ") as caught:
            Bundle.load(copy)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {}}, "it names no weights"),
        ({"files": {"student.safetensors": None}}, r"no size and hash of 'student\.safetensors'"),
        ({"files": {"student.safetensors": {"size_bytes": "1", "sha256": "0"}}}, r"no size and hash of 'student\.safe"),
        ({"files": {"student.safetensors": {"size_bytes": 1}}}, r"no size and hash of 'student\.safetensors'"),
        ({"preprocessing": {}}, "damaged manifest: KeyError"),
        ({"preprocessing": {"kind": "smells"}}, "damaged manifest: KeyError"),
        ({"task": "juggling"}, "damaged manifest: its task is 'juggling', the recipe's 'image-classification'"),
    ],
)
def test_a_manifest_of_odd_values(copy: Path, changes: dict[str, object], message: str) -> None:
    edit(copy, **changes)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.load(copy)
    assert "\n" not in str(caught.value)


def test_a_manifest_cut_in_half(copy: Path) -> None:
    file = copy / "manifest.json"
    file.write_text(file.read_text()[:400])
    with pytest.raises(BundleError, match="not a JSON document"):
        Bundle.load(copy)

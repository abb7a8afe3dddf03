"""Which runtimes a device can have, by its Python, processor and C library."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kdedge_bench.remote import Ground, parse_answer, parse_ground
from kdedge_bench.wheels import WheelsError, _lacking, fetch, marker_environment, plan, platform_tags


def ground(
    python: tuple[int, int, int], machine: str = "aarch64", glibc: str = "2.36", system: str = "Linux"
) -> Ground:
    libc = ("glibc", glibc) if glibc else ("", "")
    return Ground(python="/p", version=python, cache="/c", machine=machine, system=system, libc=libc)


@pytest.mark.parametrize(
    ("device", "requirements", "missing"),
    [
        (ground((3, 11, 2)), ("onnxruntime", "ai-edge-litert"), set()),  # Raspberry Pi OS bookworm
        (ground((3, 13, 5), glibc="2.41"), ("onnxruntime", "ai-edge-litert"), set()),  # trixie
        (ground((3, 10, 12), glibc="2.35"), ("onnxruntime", "ai-edge-litert"), set()),  # JetPack 6
        (ground((3, 8, 10), glibc="2.31"), ("onnxruntime",), {"tflite"}),  # JetPack 5
        (ground((3, 8, 10), glibc="2.35"), ("onnxruntime", "tflite-runtime==2.14.0", "numpy<2"), set()),
        (ground((3, 11, 2), machine="armv7l"), ("tflite-runtime==2.14.0", "numpy<2"), {"onnx"}),  # 32-bit
        (ground((3, 13, 0), machine="armv7l"), (), {"onnx", "tflite"}),
        (ground((3, 12, 0), glibc=""), (), {"onnx", "tflite"}),  # musl
    ],
)
def test_plan(device: Ground, requirements: tuple[str, ...], missing: set[str]) -> None:
    planned = plan(device)
    assert planned.requirements == requirements
    assert set(planned.missing) == missing
    assert all(planned.missing.values())
    assert set(planned.why) == {"onnx", "tflite"} - missing
    assert all(planned.why[name].split(",")[0] in planned.requirements for name in planned.why)


def test_tags_cover_every_wheel_the_device_can_install() -> None:
    from packaging.tags import Tag
    from packaging.utils import parse_wheel_filename

    tags = platform_tags(ground((3, 11, 2), glibc="2.31"))
    assert tags[0] == "manylinux_2_31_aarch64" and "manylinux2014_aarch64" in tags and "linux_aarch64" in tags
    assert "manylinux_2_34_aarch64" not in tags  # it would not load there
    accepted = {Tag("cp311", "cp311", tag) for tag in tags}
    for name, fits in (
        ("onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_aarch64.whl", True),
        ("ai_edge_litert-2.3.0-cp311-cp311-manylinux_2_27_aarch64.whl", True),
        ("tflite_runtime-2.14.0-cp311-cp311-manylinux_2_34_aarch64.whl", False),
    ):
        assert bool(accepted & parse_wheel_filename(name)[3]) is fits
    for none in ("", "2.²", "2.3000000"):
        with pytest.raises(WheelsError):
            platform_tags(ground((3, 11, 2), glibc=none))


def test_a_format_alone() -> None:
    planned = plan(ground((3, 8, 10), glibc="2.35"))
    assert planned.for_formats(["onnx"]) == ("onnxruntime",)
    assert planned.for_formats(["tflite"]) == ("tflite-runtime==2.14.0", "numpy<2")
    assert planned.for_formats([]) == ()


def test_a_python_of_ours_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As uv makes them."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(WheelsError, match=r"has no pip .*python -m ensurepip, or uv pip install pip"):
        fetch(["onnxruntime"], ground((3, 11, 2)), tmp_path)


def wheel(folder: Path, name: str, *requires: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        lines = "".join(f"Requires-Dist: {line}\n" for line in requires)
        archive.writestr(
            f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{lines}"
        )


def test_requirements_are_judged_for_the_device_not_for_this_python(tmp_path: Path) -> None:
    wheel(
        tmp_path,
        "top",
        "Other_One",
        'old>=2; python_version < "3.10"',
        'new; python_version >= "3.10"',
        'arm; platform_machine == "aarch64"',
        'win; sys_platform == "win32"',
        'extra; extra == "all"',
    )
    wheel(tmp_path, "other_one")
    assert _lacking(tmp_path, ground((3, 9, 2))) == ["arm", "old>=2"]
    assert _lacking(tmp_path, ground((3, 13, 0), machine="x86_64")) == ["new"]
    assert marker_environment(ground((3, 9, 2)))["python_full_version"] == "3.9.2"


GOOD = {"python": "/usr/bin/python3", "version": [3, 11, 2], "cache": "/home/pi/.cache/kdedge", "free_bytes": 1}


def test_ground_of_a_sound_answer() -> None:
    answer = {**GOOD, "libc": ["glibc", "2.36"], "machine": "aarch64", "have": ["a"]}
    found = parse_ground(answer)
    assert (found.glibc, found.version_text, found.have) == ((2, 36), "3.11.2", frozenset({"a"}))
    assert found.path("x") == "/home/pi/.cache/kdedge/x"


@pytest.mark.parametrize(
    "lie",
    [
        {"python": "python"},
        {"python": "-c"},
        {"python": "/a\nb"},
        {"python": "/" + "a" * 5000},
        {"python": 7},
        {"cache": None},
        {"cache": "/\x1b[2J"},
        {"version": "3.11"},
        {"version": [3]},
        {"version": [3, "x", {}]},
        {"free_bytes": "much"},
        {"free_bytes": None},
        {"free_bytes": -1},
        {"free_bytes": 10**400},
        {"version": [3, 11, 10**400]},
        {"version": [3, -11, 2]},
        {"machine": "\x1b]0;pwned\x07mips"},
        {"machine": "a" * 33},
        {"machine": None},
        {"system": "Linux\n"},
        {"libc": ["\x1b[31mglibc", "2.36"]},
        {"libc": ["glibc", "2.\u00b2"]},
        {"libc": ["glibc", "\u202e63.2"]},
    ],
)
def test_ground_of_a_lying_answer(lie: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_ground({**GOOD, **lie})


@pytest.mark.parametrize(
    ("version", "glibc"), [("2.36", (2, 36)), ("2.36.1", (2, 36)), ("2.3000000", None), ("2", None), ("", None)]
)
def test_versions_of_the_c_library(version: str, glibc: tuple[int, int] | None) -> None:
    assert parse_ground({**GOOD, "libc": ["glibc", version]}).glibc == glibc


@pytest.mark.parametrize("stdout", [b"", b"kdedge-answer {", b"kdedge-answer []", b"x kdedge-answer {}", b"\xff\xfe"])
def test_no_answer(stdout: bytes) -> None:
    assert parse_answer(stdout) is None


def test_the_answer_among_noise() -> None:
    assert parse_answer(b'welcome\nkdedge-answer {"a": 1}\nlogout\n') == {"a": 1}

"""Which runtimes a device can have, and their wheels fetched by the host for one without internet.

What exists where (PyPI, aarch64 and x86-64): onnxruntime for Python 3.8 and later on glibc 2.27 and later;
ai-edge-litert for Python 3.9 and later on glibc 2.27; tflite-runtime 2.14.0 for Python 3.8 to 3.11 on glibc
2.34, built against numpy 1 without saying so.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from kdedge.errors import DeviceError, UserError

from kdedge_bench.remote import Ground, program
from kdedge_bench.text import last_line

_DOWNLOAD_S = 1200.0
_MAX_ROUNDS = 5


class WheelsError(DeviceError):
    """The wheels for a device could not be fetched on the host."""


@dataclass(frozen=True)
class Plan:
    """What to install on a device.

    Attributes:
        chosen: Format -> what its runtime is, for pip.
        missing: Format -> why no runtime for it exists there.
        why: Format -> the runtime that was chosen, and the reason.
    """

    chosen: dict[str, tuple[str, ...]]
    missing: dict[str, str]
    why: dict[str, str]

    @property
    def requirements(self) -> tuple[str, ...]:
        """For pip, of all formats."""
        return self.for_formats(self.chosen)

    def for_formats(self, formats: Iterable[str]) -> tuple[str, ...]:
        """For pip, of some formats."""
        return tuple(requirement for name in formats for requirement in self.chosen[name])


def plan(ground: Ground) -> Plan:
    """The runtimes for a device's Python, processor and C library."""
    chosen: dict[str, tuple[str, ...]] = {}
    missing: dict[str, str] = {}
    why: dict[str, str] = {}
    for format_name, choose in (("onnx", _onnx), ("tflite", _tflite)):
        requirements, reason = choose(ground)
        if reason is not None:
            missing[format_name] = reason
        else:
            chosen[format_name] = tuple(requirements)
            why[format_name] = _why(requirements[0], ground)
    return Plan(chosen, missing, why)


def _why(chosen: str, ground: Ground) -> str:
    here = f"Python {ground.version_text} on {ground.machine}"
    if ground.glibc is not None:
        here += f" with glibc {'.'.join(map(str, ground.glibc))}"
    if chosen.startswith("tflite-runtime"):
        return f"{chosen}, since ai-edge-litert has no wheel for {here}; with the numpy 1 that it was built against"
    return f"{chosen}, which has a wheel for {here}"


def _onnx(ground: Ground) -> tuple[list[str], str | None]:
    reason = _no_wheels_at_all(ground, oldest_glibc=(2, 27))
    if reason is None and ground.machine not in ("aarch64", "arm64", "x86_64"):
        reason = f"there is no onnxruntime wheel for {ground.machine}"
    return ([], reason) if reason else (["onnxruntime"], None)


def _tflite(ground: Ground) -> tuple[list[str], str | None]:
    python, version = ground.version[:2], ground.version_text
    if python >= (3, 9) and ground.machine in ("aarch64", "arm64", "x86_64"):
        reason = _no_wheels_at_all(ground, oldest_glibc=(2, 27))
        return ([], reason) if reason else (["ai-edge-litert"], None)
    if python > (3, 11):
        return [], f"there is no TFLite runtime wheel for Python {version} on {ground.machine}"
    reason = _no_wheels_at_all(ground, oldest_glibc=(2, 34))
    return ([], reason) if reason else (["tflite-runtime==2.14.0", "numpy<2"], None)


def _no_wheels_at_all(ground: Ground, oldest_glibc: tuple[int, int]) -> str | None:
    if ground.system != "Linux":
        return None
    if ground.glibc is None:
        return "the device's C library is not glibc, and there are no wheels for others"
    if ground.glibc < oldest_glibc:
        wanted, there = (".".join(map(str, version)) for version in (oldest_glibc, ground.glibc))
        return f"its wheels need glibc {wanted}, the device has {there}"
    return None


def platform_tags(ground: Ground) -> list[str]:
    """Every platform tag that the device can install, newest first (pip does not derive the older ones)."""
    if ground.glibc is None:
        raise WheelsError("wheels can be fetched for Linux with glibc only", where=ground.machine)
    oldest = 5 if ground.machine == "x86_64" else 17
    modern = [f"manylinux_2_{minor}_{ground.machine}" for minor in range(ground.glibc[1], oldest - 1, -1)]
    legacy = ["manylinux2014"] + (["manylinux2010", "manylinux1"] if ground.machine == "x86_64" else [])
    return [*modern, *(f"{name}_{ground.machine}" for name in legacy), f"linux_{ground.machine}"]


def fetch(requirements: Sequence[str], ground: Ground, folder: Path) -> list[Path]:
    """Download wheels for the device's Python with everything they need there.

    pip judges environment markers (``python_version < "3.11"``) by the Python it runs in, not by the one it
    downloads for; so what the device's Python needs beyond that is found in the wheels and fetched as well.

    Args:
        requirements: As for pip.
        ground: The device.
        folder: Empty; receives the wheels.

    Returns:
        The wheels, sorted.

    Raises:
        WheelsError: pip cannot reach its index, or there is no wheel.
    """
    wanted = list(requirements)
    for _ in range(_MAX_ROUNDS):
        _pip_download(wanted, ground, folder)
        lacking = _lacking(folder, ground)
        if not lacking:
            return sorted(folder.glob("*.whl"))
        wanted += lacking
    raise WheelsError(f"the requirements of {', '.join(requirements)} do not come to an end")


# As python -m pip, which would first look for modules in the folder where kdedge runs.
_PIP = program("import runpy; runpy.run_module('pip', run_name='__main__')")


def _pip_download(requirements: Sequence[str], ground: Ground, folder: Path) -> None:
    short = f"{ground.version[0]}{ground.version[1]}"
    options = ["--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    options += ["--python-version", ground.version_text, "--implementation", "cp"]
    for abi in (f"cp{short}", "abi3", "none"):
        options += ["--abi", abi]
    for tag in platform_tags(ground):
        options += ["--platform", tag]
    argv = [sys.executable, "-c", _PIP, "download", *options, *requirements]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=_DOWNLOAD_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise WheelsError(f"pip did not finish within {_DOWNLOAD_S:.0f} s") from None
    if done.returncode != 0:
        if "No module named pip" in done.stderr:  # uv makes environments without it
            raise WheelsError(
                "kdedge's own Python has no pip to fetch wheels with",
                where=sys.executable,
                cure=f"Give it one: {shlex.quote(sys.executable)} -m ensurepip, or uv pip install pip",
            )
        raise WheelsError(
            f"cannot fetch {', '.join(requirements)} for Python {ground.version_text}: {last_line(done.stderr)}",
            where="pip download on this machine",
            cure="Check this machine's internet connection and pip configuration",
        )


def _lacking(folder: Path, ground: Ground) -> list[str]:
    """Requirements of the fetched wheels, judged for the device, that no fetched wheel meets."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name, parse_wheel_filename

    wheels = sorted(folder.glob("*.whl"))
    there = {str(parse_wheel_filename(wheel.name)[0]) for wheel in wheels}
    environment = marker_environment(ground)
    lacking: dict[str, str] = {}
    for wheel in wheels:
        for line in _requires_dist(wheel):
            try:
                requirement = Requirement(line)
            except InvalidRequirement:
                raise UserError(f"cannot read the requirement {line!r}", where=wheel.name) from None
            needed = requirement.marker is None or requirement.marker.evaluate({**environment, "extra": ""})
            name = canonicalize_name(requirement.name)
            if needed and name not in there:
                lacking[name] = f"{requirement.name}{requirement.specifier}"
    return sorted(lacking.values())


def marker_environment(ground: Ground) -> dict[str, str]:
    """The environment of PEP 508 markers on the device."""
    return {
        "implementation_name": "cpython",
        "implementation_version": ground.version_text,
        "os_name": "posix",
        "platform_machine": ground.machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": ground.system,
        "platform_version": "",
        "python_full_version": ground.version_text,
        "python_version": f"{ground.version[0]}.{ground.version[1]}",
        "sys_platform": "linux",
    }


def _requires_dist(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(names[0]).decode("utf-8") if names else ""
    return HeaderParser().parsestr(text).get_all("Requires-Dist") or []

"""What the device is, and in what condition: the facts without which a latency means nothing.

What does not change during a run is in :func:`device_facts`; what does is in :func:`snapshot`, taken before and
after; :func:`glance` is the little that is looked at during timing, between two blocks of calls.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Set

from kdedge_agent import __version__, cpufreq, sysfs

ROOT = Path("/")

THROTTLE_BITS = {
    0: "undervoltage",
    1: "frequency_capped",
    2: "throttled",
    3: "soft_temperature_limit",
    16: "undervoltage_since_boot",
    17: "frequency_capped_since_boot",
    18: "throttled_since_boot",
    19: "soft_temperature_limit_since_boot",
}
"""https://www.raspberrypi.com/documentation/computers/os.html#get_throttled"""
_PROCESSOR_FIELD = 39 - 3
"""Of /proc/PID/stat, counted from what follows the name, which may hold blanks."""


def _cpu_model(root: Path) -> Optional[str]:
    text = sysfs.read_text(root / "proc/cpuinfo") or ""
    for key in ("model name", "Model", "Hardware", "Processor"):
        match = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
        if match and match.group(1).strip():
            return match.group(1).strip()
    match = re.search(r"^CPU part\s*:\s*(0x[0-9a-fA-F]+)$", text, re.MULTILINE)
    return f"ARM part {match.group(1)}" if match else None


def cpu_features(root: Path) -> Optional[str]:
    """What the processor can do, as the kernel names it: ``avx2 ...``, ``asimddp ...``."""
    text = sysfs.read_text(root / "proc/cpuinfo") or ""
    match = re.search(r"^(?:Features|flags)\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else None


def _os_release(root: Path) -> Optional[str]:
    text = sysfs.read_text(root / "etc/os-release") or ""
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)"?', text, re.MULTILINE)
    return match.group(1) if match else None


def _l4t(root: Path) -> Optional[str]:
    """Release of Jetson Linux: ``# R35 (release), REVISION: 4.1, ...`` as ``35.4.1``."""
    text = sysfs.read_text(root / "etc/nv_tegra_release") or ""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{match.group(1)}.{match.group(2)}" if match else None


def _power_mode(root: Path) -> Optional[str]:
    """The Jetson's nvpmodel mode, by number, with its name where the configuration gives it."""
    match = re.search(r"pmode:\s*(\d+)", sysfs.read_text(root / "var/lib/nvpmodel/status") or "")
    if match is None:
        return None
    number = int(match.group(1))
    config = sysfs.read_text(root / "etc/nvpmodel.conf") or ""
    name = re.search(rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+)\s*>", config)
    return f"{number} ({name.group(1)})" if name else str(number)


def _frequencies(root: Path) -> Dict[str, Dict[str, Any]]:
    """By cpufreq policy: governor, its processors, and Hz (the kernel's files hold kHz)."""
    found: Dict[str, Dict[str, Any]] = {}
    for policy in cpufreq.policies(root):
        entry: Dict[str, Any] = {"governor": sysfs.read_text(policy / "scaling_governor")}
        entry["cpus"] = sorted(cpufreq.processors(policy))
        for key, name in (
            ("current_hz", "scaling_cur_freq"),
            ("limit_hz", "scaling_max_freq"),
            ("max_hz", "cpuinfo_max_freq"),
        ):
            khz = sysfs.read_int(policy / name)
            entry[key] = None if khz is None else khz * 1000
        found[policy.name] = entry
    return found


def temperatures(root: Path) -> Dict[str, float]:
    """Degrees Celsius by thermal zone (the kernel's files hold thousandths)."""
    found: Dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        value = sysfs.read_int(zone / "temp")
        if value is not None:
            name = sysfs.read_text(zone / "type") or zone.name
            found[name if name not in found else f"{name} ({zone.name})"] = value / 1000
    return found


def _cooling(root: Path) -> Dict[str, int]:
    """State by cooling device that slows the processor down; 0 is not at work."""
    found: Dict[str, int] = {}
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        kind = sysfs.read_text(device / "type") or ""
        state = sysfs.read_int(device / "cur_state")
        if state is not None and re.search(r"cpufreq|Processor|cpu-?throttle", kind):
            found[f"{kind} ({device.name})"] = state
    return found


def _throttle_count(root: Path) -> Optional[int]:
    """How often this x86 package was throttled since boot; None where the kernel does not count."""
    return sysfs.read_int(root / "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count")


def _kernel_throttle(root: Path) -> Optional[int]:
    """The Raspberry Pi's flags from the kernel's own file, which costs no process; None where it has none."""
    for path in sorted((root / "sys/devices/platform").glob("soc*/soc*firmware/get_throttled")):
        text = sysfs.read_text(path) or ""
        if re.fullmatch(r"(0x)?[0-9a-fA-F]+", text):
            return int(text, 16)
    return None


def _flag_names(raw: int) -> List[str]:
    return [name for bit, name in THROTTLE_BITS.items() if raw >> bit & 1]


def throttle_flags(root: Path = ROOT) -> Dict[str, Any]:
    """The Raspberry Pi's flags: {"raw", "set": names of the bits that are set}, and a "reason" where raw is None.

    The kernel's file is asked first, then ``vcgencmd``.
    """
    raw = _kernel_throttle(root)
    if raw is not None:
        return {"raw": raw, "set": _flag_names(raw)}
    tool = sysfs.find_vcgencmd(root)
    if tool is None:
        return {"raw": None, "set": [], "reason": "no vcgencmd here (it is the Raspberry Pi's)"}
    text, reason = sysfs.vcgencmd(tool, "get_throttled")
    match = re.search(r"throttled=(0x[0-9a-fA-F]+)", text or "")
    if match is None:
        return {"raw": None, "set": [], "reason": reason or "vcgencmd get_throttled gave no number"}
    raw = int(match.group(1), 16)
    return {"raw": raw, "set": _flag_names(raw)}


def _meminfo(root: Path) -> Dict[str, Optional[int]]:
    text = sysfs.read_text(root / "proc/meminfo") or ""
    values = {m.group(1): int(m.group(2)) * 1024 for m in re.finditer(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return {
        key: values.get(name)
        for key, name in (
            ("total_bytes", "MemTotal"),
            ("available_bytes", "MemAvailable"),
            ("swap_free_bytes", "SwapFree"),
            ("swap_total_bytes", "SwapTotal"),
            ("nvmap_used_bytes", "NvMapMemUsed"),
        )
    }


def _load_average(root: Path) -> Optional[List[float]]:
    words = (sysfs.read_text(root / "proc/loadavg") or "").split()
    try:
        return [float(word) for word in words[:3]] if len(words) >= 3 else None
    except ValueError:
        return None


def _disk_free(folder: Path) -> Optional[int]:
    try:
        return shutil.disk_usage(str(folder)).free
    except OSError:
        return None


def _affinity() -> Optional[List[int]]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def device_facts(root: Path = ROOT) -> Dict[str, Any]:
    """What does not change during a run; None where the device does not say.

    Returns:
        board, cpu, cpu_features, machine, cpu_count, affinity, system, kernel, os_release, libc, python,
        python_executable, agent_version, l4t, power_mode (Jetson), hostname is left out on purpose.
    """
    uname = platform.uname()
    return {
        "board": sysfs.board_model(root),
        "cpu": _cpu_model(root),
        "cpu_features": cpu_features(root),
        "machine": uname.machine,
        "cpu_count": os.cpu_count(),
        "affinity": _affinity(),
        "system": uname.system,
        "kernel": uname.release,
        "os_release": _os_release(root),
        "libc": " ".join(part for part in platform.libc_ver() if part) or None,
        "python": platform.python_version(),
        "python_executable": sys.executable,
        "agent_version": __version__,
        "l4t": _l4t(root),
        "power_mode": _power_mode(root),
    }


def snapshot(root: Path = ROOT, folder: Optional[Path] = None) -> Dict[str, Any]:
    """The condition of the device now.

    Returns:
        monotonic_s, frequency (by policy), temperature_c (by zone), cooling (by device that slows the processor),
        throttle (Raspberry Pi), throttle_count (x86), load_average, memory, disk_free_bytes (of ``folder``).
    """
    return {
        "monotonic_s": time.monotonic(),
        "frequency": _frequencies(root),
        "temperature_c": temperatures(root),
        "cooling": _cooling(root),
        "throttle": throttle_flags(root),
        "throttle_count": _throttle_count(root),
        "load_average": _load_average(root),
        "memory": _meminfo(root),
        "disk_free_bytes": _disk_free(folder or root),
    }


def glance(root: Path = ROOT, worker: Optional[int] = None) -> Dict[str, Any]:
    """What is looked at about once a second during timing, while the worker waits between two blocks.

    Args:
        root: Of the tree with the files.
        worker: Number of the process that is measured; None leaves out where it ran.

    Returns:
        monotonic_s, frequency_hz (by policy), worker_policies (those of the processors that its threads ran on last;
        None where that is not known), temperature_c (by zone), throttle (raw, set).
    """
    flags = throttle_flags(root)
    policies = cpufreq.policies(root)
    ran_on = None if worker is None else _last_processors(root, worker)
    return {
        "monotonic_s": time.monotonic(),
        "frequency_hz": {
            policy.name: khz * 1000
            for policy in policies
            for khz in [sysfs.read_int(policy / "scaling_cur_freq")]
            if khz is not None
        },
        "worker_policies": (
            None if ran_on is None else [policy.name for policy in policies if cpufreq.processors(policy) & ran_on]
        ),
        "temperature_c": temperatures(root),
        "throttle": {"raw": flags["raw"], "set": flags["set"]},
    }


def _last_processors(root: Path, process: int) -> Optional[Set[int]]:
    """Processors that the threads of a process ran on last (proc(5), field 39 of stat); None where none is told."""
    found = set()
    for stat in (root / f"proc/{process}/task").glob("*/stat"):
        after_name = (sysfs.read_text(stat) or "").rpartition(")")[2].split()
        if len(after_name) > _PROCESSOR_FIELD and after_name[_PROCESSOR_FIELD].isdigit():
            found.add(int(after_name[_PROCESSOR_FIELD]))
    return found or None

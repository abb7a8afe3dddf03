"""The kernel's cpufreq policies: which processors each governs, and by what governor."""

from __future__ import annotations

import re
from pathlib import Path
from typing import List, Optional, Sequence, Set

from kdedge_agent import sysfs

_FOLDER = "sys/devices/system/cpu/cpufreq"


def policies(root: Path) -> List[Path]:
    """Folders ``policyN`` in the order of their numbers; none where the kernel does not set the clock."""
    found = (root / _FOLDER).glob("policy[0-9]*")
    return sorted(found, key=lambda path: int(re.sub(r"\D", "", path.name)))


def processors(policy: Path) -> Set[int]:
    """Numbers of the processors whose clock a policy sets; its own number where the kernel does not list them."""
    for name in ("affected_cpus", "related_cpus"):
        words = (sysfs.read_text(policy / name) or "").split()
        if words and all(word.isdigit() for word in words):
            return {int(word) for word in words}
    return {int(re.sub(r"\D", "", policy.name))}


def policies_of(root: Path, cpus: Optional[Sequence[int]]) -> List[Path]:
    """Policies of the given processors; of all where they are not known."""
    return [policy for policy in policies(root) if cpus is None or processors(policy) & set(cpus)]


def has_any(own: Optional[Sequence[int]], cpus: Optional[Sequence[int]]) -> bool:
    """Whether a policy of the processors ``own`` governs one of ``cpus``; so it is taken where either is not known."""
    return own is None or cpus is None or bool(set(own) & set(cpus))

"""What `kdedge device setup` would do on a device, found out without leaving anything there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kdedge.errors import AgentError

from kdedge_agent.runtimes import RUNTIMES
from kdedge_bench import remote, wheels
from kdedge_bench.devices import Device, get_device
from kdedge_bench.process import Transport
from kdedge_bench.remote import Ground
from kdedge_bench.text import one_line
from kdedge_bench.transport import open_transport


@dataclass(frozen=True)
class SetupPlan:
    """What a set-up would do.

    Attributes:
        device: Its name.
        python: The interpreter that is used now, or that the environment would be made of.
        python_version: Of it.
        machine: ``aarch64``, ``x86_64``, ...
        libc: Name and version; empty where unknown.
        free_bytes: Where the environment would lie.
        there: Runtime -> version, of what is installed; whether it can be imported, only a set-up or a check tries.
        install: Requirements for pip; empty where nothing has to be done, or nothing can be.
        environment: The folder that would be made or replaced; None where nothing would.
        why: Format -> which runtime, and for what reason.
        missing: Format -> why no runtime for it can be had there.
    """

    device: str
    python: str
    python_version: str
    machine: str
    libc: str
    free_bytes: int
    there: dict[str, str]
    install: tuple[str, ...]
    environment: str | None
    why: dict[str, str]
    missing: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def plan_setup(device: Device | str, *, accept_new_host_key: bool = False) -> SetupPlan:
    """Look at a device, and say what ``setup.setup_device`` would do; nothing is changed there.

    Args:
        device: A device or its name.
        accept_new_host_key: Put the key of a host that is not known yet on record here.

    Raises:
        DeviceError: one of its children, with the cure.
    """
    where = get_device(device) if isinstance(device, str) else device
    with open_transport(where, accept_new_host_key=accept_new_host_key) as transport:
        ground = transport.look_around({}, tidy=False)
        there = _installed(transport, ground)
        planned = wheels.plan(ground)
        needed = [name for name in RUNTIMES if name not in planned.missing and not _has(there, name)]
        if needed and not where.is_local and where.python is None:
            ground = transport.look_around({}, own_venv=False, tidy=False)
            planned = wheels.plan(ground)
    own = bool(needed) and where.python is None and not where.is_local
    return SetupPlan(
        device=where.name,
        python=ground.python,
        python_version=ground.version_text,
        machine=ground.machine,
        libc=" ".join(filter(None, ground.libc)),
        free_bytes=ground.free_bytes,
        there=there,
        # An environment of our own is made anew; into one of the user's only what is lacking is to come.
        install=planned.requirements if own else planned.for_formats(needed),
        environment=ground.path("venv") if own else None,
        why={name: planned.why[name] for name in planned.why if name in needed},
        missing={name: why for name, why in planned.missing.items() if not _has(there, name)},
    )


def _installed(transport: Transport, ground: Ground) -> dict[str, str]:
    """Runtime -> version, of those that Python finds there; none is imported."""
    names = [name for of_format in RUNTIMES.values() for name in of_format]
    done = transport.run([ground.python, "-c", _INSTALLED, json.dumps(names)])
    answer = remote.parse_answer(done.stdout)
    if answer is None:
        raise AgentError(
            "the device's Python did not say what it has", where=f"{transport.device.name}: {ground.python}"
        )
    return {name: one_line(str(answer[name]), 40) for name in names if name in answer}


# A runtime is its module, whatever the package is called that brought it: Jetsons have theirs from onnxruntime-gpu.
_INSTALLED = remote.program("""
import importlib.util, json, sys
from importlib import metadata
def version(name, module):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
    for package in metadata.distributions():
        modules = (package.read_text("top_level.txt") or "").split()
        if module in (modules or [str(path).split("/")[0] for path in package.files or []]):
            return package.version
    return "unknown"
found = {}
for name in json.loads(sys.argv[1]):
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.origin is not None:
        found[name] = version(name, module)
print(chr(10) + "kdedge-answer " + json.dumps(found))
""")


def _has(there: Mapping[str, str], format_name: str) -> bool:
    return any(name in there for name in RUNTIMES[format_name])

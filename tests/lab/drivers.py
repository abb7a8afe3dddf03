"""The kernel's own drivers of current monitors, and its stub of an I2C bus, which Debian's arm64 kernel leaves out."""

from __future__ import annotations

import os
from pathlib import Path

from tests.lab.packages import LabError, call

SOURCES = {
    "ina2xx": "drivers/hwmon/ina2xx.c",
    "ina238": "drivers/hwmon/ina238.c",
    "ina3221": "drivers/hwmon/ina3221.c",
    "i2c-stub": "drivers/i2c/i2c-stub.c",
}
STUB_NODE = "/i2c-stub"
# The one change: with a node of the device tree the stub's bus gets the chips that are described there, with labels
# and shunts, and the kernel binds their drivers as it does on a board.
_BEFORE = "ret = i2c_add_adapter(&stub_adapter);"
_AFTER = f'stub_adapter.dev.of_node = of_find_node_by_path("{STUB_NODE}");\n\t{_BEFORE}'
_INCLUDE = "#include <linux/module.h>\n"


def build(folder: Path, release: str) -> list[Path]:
    """Build them against the headers of that kernel.

    Args:
        folder: As ``packages.unpack`` left it.
        release: Of the kernel.

    Returns:
        The modules.

    Raises:
        LabError: the compiler failed, or the kernel's source is not as expected.
    """
    headers = folder / f"build/usr/src/linux-headers-{release}"
    makefile = headers / "Makefile"
    makefile.write_text(makefile.read_text().replace(" /usr/src/", f" {folder}/build/usr/src/"))
    here = folder / "drivers"
    here.mkdir()
    for name, source in _sources(folder).items():
        (here / f"{name}.c").write_text(source)
    (here / "Makefile").write_text(f"obj-m := {' '.join(f'{name}.o' for name in SOURCES)}\n")
    # The headers bring arm64 programs of their own, for which qemu-user finds libraries in the userland.
    env = {**os.environ, "QEMU_LD_PREFIX": str(folder / "root")}
    cross = ["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-", "CC=aarch64-linux-gnu-gcc"]
    call("make", "-C", str(headers), f"M={here}", *cross, "modules", env=env)
    return [here / f"{name}.ko" for name in SOURCES]


def _sources(folder: Path) -> dict[str, str]:
    (archive,) = (folder / "build/usr/src").glob("linux-source-*.tar.xz")
    top = archive.name.removesuffix(".tar.xz")
    names = [f"{top}/{path}" for path in SOURCES.values()]
    call("tar", "--occurrence=1", "-xJf", str(archive), "-C", str(folder), *names)
    texts = {name: (folder / top / path).read_text() for name, path in SOURCES.items()}
    stub = texts["i2c-stub"]
    if stub.count(_BEFORE) != 1 or stub.count(_INCLUDE) != 1:
        raise LabError("i2c-stub.c of this kernel is not the one that is known here")
    texts["i2c-stub"] = stub.replace(_INCLUDE, f"{_INCLUDE}#include <linux/of.h>\n").replace(_BEFORE, _AFTER)
    return texts

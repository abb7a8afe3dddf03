"""A cable that is pulled: nobody tells either end, both notice."""

from __future__ import annotations

from pathlib import Path

from kdedge.errors import WireError
from tests.device import boards
from tests.device.namespace import namespaced_device
from tests.device.runs import failure, quick, running


def test_a_cable_that_is_pulled(slow_file: Path, tmp_path: Path) -> None:
    with namespaced_device(boards.pi4) as server, running(slow_file, server.device(), tmp_path, "timing") as future:
        server.pull_cable()
        error = failure(future)
        assert isinstance(error, WireError)
        assert error.exit_code == 3
        server.plug_cable()
        server.cut()  # what the server's own keepalive does, later
        assert server.left_over() == {}
        assert server.partial_files() == []
        assert quick(slow_file, server.device(), tmp_path).latency_s["n"] >= 20

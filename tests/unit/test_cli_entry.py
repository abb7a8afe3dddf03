"""What the command line settles before anything is loaded."""

from __future__ import annotations

import os

import pytest
from kdedge.cli import commands, entry


@pytest.mark.parametrize(("before", "during"), [({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")])
def test_onnx_runtime_reports_to_nobody(monkeypatch: pytest.MonkeyPatch, before: dict[str, str], during: str) -> None:
    """Unless the user wants it to."""
    seen: list[str] = []
    monkeypatch.setattr(os, "environ", dict(before))
    monkeypatch.setattr(commands, "app", lambda **_: seen.append(os.environ["ORT_DISABLE_TELEMETRY"]))
    with pytest.raises(SystemExit):
        entry.main()
    assert seen == [during]

"""The device side of a measurement: standard library plus the runtime that is measured.

Runs as ``python3 agent.pyz`` or ``python -m kdedge_agent`` and talks JSON lines over stdin and stdout.
It is written for Python 3.8 and later, because boards keep old ones.
"""

from __future__ import annotations

__version__ = "0.1.0"

"""The command line: parse, call, show. Heavy imports happen inside the commands; only this package exits."""

from __future__ import annotations

from kdedge.cli.entry import main

__all__ = ["main"]

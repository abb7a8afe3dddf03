"""The app with every command, in the order in which --help lists them."""
# ruff: noqa: F401, I001  (importing a command's module adds it; the order is --help's, groups last)

from __future__ import annotations

import kdedge.cli.demo
import kdedge.cli.distill
import kdedge.cli.evaluate
import kdedge.cli.export
import kdedge.cli.inspect
import kdedge.cli.bench
import kdedge.cli.report
import kdedge.cli.recipes
import kdedge.cli.cache
import kdedge.cli.device
from kdedge.cli.app import app

__all__ = ["app"]

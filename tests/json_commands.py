"""kdedge's commands as scripts use them."""

from __future__ import annotations

import json
from typing import Any

from tests import warm


def kdedge(*words: object) -> Any:
    """The JSON document of a command that ends well, with one thread."""
    done = warm.run([*words, "--json"])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

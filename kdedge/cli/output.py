"""stdout carries results, stderr carries the rest; with --json exactly one document goes to stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kdedge.errors import KdedgeError


def line(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr)  # noqa: T201


def result(text: str) -> None:
    """One line of the result on stdout."""
    print(text)  # noqa: T201


def document(value: Any) -> None:
    """The JSON document on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))  # noqa: T201


def error(failure: KdedgeError, *, as_json: bool) -> None:
    """An error as one line on stderr; with --json also as the document."""
    line(f"error: {one_line(failure)}")
    if as_json:
        document({"error": described(failure)})


def one_line(failure: KdedgeError) -> str:
    """What, where and the cure."""
    return " ".join(str(failure).split())


def described(failure: KdedgeError) -> dict[str, Any]:
    """An error as it stands in a JSON document."""
    return {"what": failure.what, "where": failure.where, "cure": failure.cure, "exit_code": failure.exit_code}


@contextmanager
def libraries_on_stderr() -> Iterator[None]:
    """Send what libraries print to file descriptor 1 to stderr, so that stdout holds the result alone."""
    sys.stdout.flush()
    keep = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(keep, 1)
        os.close(keep)

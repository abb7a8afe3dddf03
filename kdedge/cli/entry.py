"""The way in and the one place where errors become lines and exit codes.

0 done; 1 a check failed (parity, accuracy); 2 the user's mistake; 3 the device or the wire failed; 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys

from kdedge.cli import commands, output
from kdedge.errors import KdedgeError, UserError

SPIN_COUNT = "100000"
"""Rounds that a waiting OpenMP thread spins before it sleeps, a fraction of a millisecond."""


def main() -> None:
    """Run the command line and exit with the contract's code."""
    # Before torch is loaded: threads that wait spin for a moment, then sleep. Long spinning, libgomp's default, makes
    # two threads crawl on a busy machine of two cores; sleeping at once nearly halves the speed of an idle one
    # (benchmarks/busy_machine.py).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)

    # Before ONNX Runtime is loaded (parity, eval): it would write into ~/.cache and start a thread that uploads.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

    as_json = "--json" in sys.argv[1:]
    try:
        exit_code = commands.app(standalone_mode=False)
    except KdedgeError as error:
        output.error(error, as_json=as_json)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        output.line("stopped")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer keeps the class of what it finds wrong to itself
            raise
        error.show()  # type: ignore[attr-defined]
        if as_json:
            output.document({"error": output.described(UserError(error.format_message(), where="command line"))})
        sys.exit(UserError.exit_code)
    sys.exit(exit_code)

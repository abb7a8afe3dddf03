"""Claim: ``import kdedge`` and ``kdedge --help`` take less than 0.3 s each (median, one core, warm page cache).

Every trial is a fresh process, timed from spawn to exit, and the cases are interleaved, so that a busy
machine slows them alike. What is printed: n, median, spread (first to third quartile), and the ratio to
``python -c pass`` in the same run. ``own_s`` is the median less the bare interpreter's: what kdedge itself costs.

    python benchmarks/import_time.py [--repetitions 15] [--json] [--check]

``--check`` exits 1 when a median of kdedge's own cases is over the limit.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

LIMIT_S = 0.3

# typer's smallest app: the floor of any command line built on it (typer imports rich only to draw the help).
_TYPER_APP = "import typer; app = typer.Typer(); app.command()(lambda: None); app(['--help'])"
_TYPER_PLAIN = (
    "import typer; app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False);"
    " app.command()(lambda: None); app(['--help'])"
)
_HELP = "import sys; from kdedge.cli import main; sys.argv = ['kdedge', '--help']; main()"

BASELINE = "python -c pass"
CASES: dict[str, str] = {
    BASELINE: "pass",
    "import kdedge": "import kdedge",
    "kdedge --help": _HELP,
    "import typer": "import typer",
    "typer --help, drawn by rich": _TYPER_APP,
    "typer --help, plain": _TYPER_PLAIN,
}
LIMITED = ("import kdedge", "kdedge --help")


@dataclass(frozen=True)
class Timing:
    """Wall time of one case over fresh processes, in seconds."""

    case: str
    n: int
    median_s: float
    quartile1_s: float
    quartile3_s: float
    min_s: float
    own_s: float
    ratio: float


def run_once(code: str) -> float:
    """Seconds from spawn to exit of one fresh interpreter.

    Raises:
        RuntimeError: the interpreter failed; its last line says why.
    """
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    elapsed_s = time.perf_counter() - start
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "failed")
    return elapsed_s


def why_not(code: str) -> str | None:
    """Why a case does not run; this first run, which is not measured, also fills the byte-code and page caches."""
    try:
        run_once(code)
    except RuntimeError as error:
        return str(error)
    return None


def measure(repetitions: int) -> tuple[list[Timing], dict[str, str]]:
    """Timings of every case that runs, and the reason for each that does not."""
    failed = {case: reason for case, code in CASES.items() if (reason := why_not(code)) is not None}
    samples: dict[str, list[float]] = {case: [] for case in CASES if case not in failed}
    for _ in range(repetitions):
        for case, values in samples.items():
            values.append(run_once(CASES[case]))
    base_s = statistics.median(samples[BASELINE])
    return [_timing(case, values, base_s) for case, values in samples.items()], failed


def _timing(case: str, values: list[float], base_s: float) -> Timing:
    quartile1_s, median_s, quartile3_s = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(
        case, len(values), median_s, quartile1_s, quartile3_s, min(values), median_s - base_s, median_s / base_s
    )


def main() -> int:
    """Measure, print, and with ``--check`` hold the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15, help="fresh processes a case (at least 2)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--check", action="store_true", help="exit 1 when a limited case is over the limit")
    arguments = parser.parse_args()
    timings, failed = measure(max(2, arguments.repetitions))
    if arguments.json:
        document = {
            "python": platform.python_version(),
            "limit_s": LIMIT_S,
            "timings": [asdict(timing) for timing in timings],
            "failed": failed,
        }
        print(json.dumps(document))
    else:
        print(f"Python {platform.python_version()}, {platform.machine()}; limit {LIMIT_S} s")
        for timing in timings:
            print(
                f"{timing.case:28} n {timing.n:3}  median {timing.median_s:.3f} s"
                f"  quartiles {timing.quartile1_s:.3f}–{timing.quartile3_s:.3f}"
                f"  own {timing.own_s:.3f} s  ratio {timing.ratio:.1f}"
            )
        for case, reason in failed.items():
            print(f"{case:28} not measured: {reason}")
    over = [timing.case for timing in timings if timing.case in LIMITED and timing.median_s > LIMIT_S]
    missing = [case for case in LIMITED if case in failed]
    return 1 if arguments.check and (over or missing) else 0


if __name__ == "__main__":
    sys.exit(main())

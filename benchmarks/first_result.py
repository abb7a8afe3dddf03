"""The way of a new user: from a board that ``ssh`` reaches to its first record, in three commands.

`kdedge device add`, `kdedge device setup --offline` (the host fetches the wheels and pushes them), `kdedge bench`, each
as it is typed, against a real OpenSSH server on loopback whose Python has no package; so the network costs nothing and
the processor is this machine's. `first` has nothing fetched before; `next`, a second board of the kind, finds the
wheels in pip's cache. Printed: seconds of each command and of all, median and range, with n.

Run: python benchmarks/first_result.py [--runs 3]
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.agent_tools import make_tflite
from tests.device.sshd import Sshd, start_sshd

ARTIFACT_BYTES = 4_000_000


def seconds_of(environment: dict[str, str], *words: str) -> float:
    """Of one command of kdedge that must end well."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "kdedge", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"kdedge {' '.join(words)}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - begin


def whole_way(board: Sshd, environment: dict[str, str], artifact: Path) -> dict[str, float]:
    """Command -> seconds."""
    device = board.device()
    environment = environment | {"KDEDGE_SSH_OPTIONS": f"-F {board.folder}/ssh_config"}
    return {
        "add": seconds_of(environment, "device", "add", "pi", device.address, "--port", str(device.port)),
        "setup": seconds_of(environment, "device", "setup", "pi", "--offline"),
        "bench": seconds_of(environment, "bench", str(artifact), "--device", "pi", "--out", str(board.folder / "out")),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    runs: int = parser.parse_args().runs
    found: dict[str, list[dict[str, float]]] = {"first": [], "next": []}
    with tempfile.TemporaryDirectory(prefix="kdedge-first-") as name:
        folder = Path(name)
        width = math.isqrt(ARTIFACT_BYTES)
        artifact = make_tflite(folder / "net.tflite", metadata={}, inputs=width, outputs=width)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "bare")], check=True)
        for run in range(runs):
            fetched = folder / f"fetched{run}"
            for kind, rows in found.items():
                board = start_sshd(folder / f"{kind}{run}", path=f"{folder}/bare/bin:/usr/bin:/bin")
                own = {"KDEDGE_CONFIG_DIR": str(board.folder / "config"), "XDG_CACHE_HOME": str(fetched)}
                try:
                    rows.append(whole_way(board, {**os.environ, **own}, artifact))
                finally:
                    board.stop()
    print(f"{ARTIFACT_BYTES / 1e6:.0f} MB over SSH on loopback, {platform.machine()}, n = {runs} of each in turn")
    for kind, rows in found.items():
        columns = {command: [row[command] for row in rows] for command in rows[0]}
        columns["all"] = [sum(row.values()) for row in rows]
        cells = (f"{k} {statistics.median(v):.1f} [{min(v):.1f}, {max(v):.1f}]" for k, v in columns.items())
        print(f"  {kind}: {', '.join(cells)} s")


if __name__ == "__main__":
    main()

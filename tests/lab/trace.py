"""A power trace, played on the lab's machine, and the joules that it truly had between two moments."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise

from tests.lab.device_tree import ADDRESS
from tests.lab.machine import Machine


@dataclass(frozen=True)
class Trace:
    """What the board draws: levels one after the other, bursts on top of them, noise of its rails.

    Attributes:
        levels_w: Watts, each for ``level_s`` seconds.
        level_s: Likewise.
        burst_w: By so much more and less, in turn.
        burst_s: Seconds of one turn.
        step_s: Seconds between two changes.
        seed: Of the noise.
    """

    levels_w: tuple[float, ...]
    level_s: float = 3.0
    burst_w: float = 0.0
    burst_s: float = 0.3
    step_s: float = 0.02
    seed: int = 1


class Playback:
    """What was played.

    Attributes:
        steps: Seconds on the machine's monotonic clock, watts from then on; empty until it is over.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def energy_j(self, begin_s: float, end_s: float) -> float:
        """The joules between two moments within the playback."""
        if not self.steps or not self.steps[0][0] <= begin_s < end_s <= self.steps[-1][0]:
            raise AssertionError(f"nothing was played from {begin_s} to {end_s} s")
        return sum(
            watts * max(0.0, min(after_s, end_s) - max(at_s, begin_s))
            for (at_s, watts), (after_s, _) in pairwise(self.steps)
        )

    def watts(self, begin_s: float, end_s: float) -> Sequence[float]:
        """All values between two moments."""
        return [watts for at_s, watts in self.steps if begin_s <= at_s <= end_s]


@contextmanager
def playing(machine: Machine, trace: Trace) -> Iterator[Playback]:
    """The trace, over and over for as long as the block; the playback is complete after it."""
    rails = [(rail.volts, rail.shunt_uohm, rail.share, rail.noise_w) for rail in machine.board.rails]
    wanted = json.dumps({**asdict(trace), "chip": machine.board.chip, "address": ADDRESS, "rails": rails})
    playback = Playback()
    argv = machine.ssh(f"exec python3 /lab/player.py {shlex.quote(wanted)}")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            if process.stdout is None or process.stdout.readline() != b"playing\n":
                raise RuntimeError("the player did not start; its words are above")
            yield playback
        finally:
            said, _ = process.communicate(timeout=180)
    if process.returncode != 0:
        raise RuntimeError(f"the player ended with {process.returncode}; its words are above")
    playback.steps = [(float(at_s), float(watts)) for at_s, watts in json.loads(said)]

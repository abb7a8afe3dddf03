"""What a run shows while it works, and the log it leaves: a live line on stderr, JSON lines in a file."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from kdedge.files import cannot_write


class Progress(Protocol):
    """Where the training loop says how far it is."""

    def begin(self, stage: str, total_steps: int, done_steps: int) -> None:
        """A stage starts, ``done_steps`` of it taken over from a checkpoint."""

    def step(self, done_steps: int, *, epoch: int, loss: float, accuracy: float, samples_per_s: float) -> None:
        """A step is done; figures are running means of the epoch."""

    def end(self, stage: str) -> None:
        """The stage is done or was stopped."""

    def say(self, line: str) -> None:
        """One line that stays."""


class Silent:
    """Says nothing."""

    def begin(self, stage: str, total_steps: int, done_steps: int) -> None:
        """Nothing."""

    def step(self, done_steps: int, *, epoch: int, loss: float, accuracy: float, samples_per_s: float) -> None:
        """Nothing."""

    def end(self, stage: str) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


class Live:
    """A bar with loss, accuracy, samples/s and time left; plain lines where stderr is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("[bold]{task.description:<8}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("epoch {task.fields[epoch]:>3}  loss {task.fields[loss]:.3f}"),
            TextColumn("acc {task.fields[accuracy]:.3f}  {task.fields[rate]:.0f} samples/s"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: Any = None

    def begin(self, stage: str, total_steps: int, done_steps: int) -> None:
        """A stage starts."""
        self._task = self._bar.add_task(
            stage, total=total_steps, completed=done_steps, epoch=0, loss=0.0, accuracy=0.0, rate=0.0
        )
        self._bar.start()

    def step(self, done_steps: int, *, epoch: int, loss: float, accuracy: float, samples_per_s: float) -> None:
        """A step is done."""
        self._bar.update(
            self._task, completed=done_steps, epoch=epoch + 1, loss=loss, accuracy=accuracy, rate=samples_per_s
        )

    def end(self, stage: str) -> None:
        """The stage is done."""
        del stage
        self._bar.stop()
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def say(self, line: str) -> None:
        """One line that stays."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class JsonLog:
    """One JSON object a line, appended; each with ``time`` (UTC epoch, seconds) and ``event``. None writes nothing."""

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, event: str, **values: Any) -> None:
        """Append one event; values are plain and in SI units.

        Raises:
            UserError: the disk is full or the file cannot be written; the lines before are intact.
        """
        if self._path is None:
            return
        line = json.dumps({"time": round(time.time(), 3), "event": event, **values})
        size_bytes = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            with suppress(OSError):
                os.truncate(self._path, size_bytes)  # of the line, what found room; the next one would go on in it
            raise cannot_write(self._path, error) from error

"""The folder of a training run, and how far the run has come."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

from kdedge.errors import UserError
from kdedge.files import read_json, write_json

STATE = "state.json"


class RunFolder:
    """What is finished, with its figures; written after every stage.

    Args:
        folder: Of the run: checkpoints, teacher, bundle, log, state.
        identity: What must be the same for a run to go on (recipe, data, teacher).
        resume: Go on with the run that is there.
        overwrite: Start anew where there is one.

    Raises:
        UserError: the folder holds a run and neither was asked for, or one with another identity.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        path = folder / STATE
        self.state: dict[str, Any] = {"format_version": 1, **identity, "finished": {}}
        if overwrite:
            for name in ("checkpoints", "teacher", "bundle"):
                shutil.rmtree(folder / name, ignore_errors=True)
            path.unlink(missing_ok=True)
        if path.exists():
            if not resume:
                raise UserError(
                    "this folder already holds a run",
                    where=folder,
                    cure="Go on with --resume, start anew with --overwrite, or choose another --out",
                )
            self.state = self._resumed(path, identity)
        self.save()

    @staticmethod
    def _resumed(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
        state = cast("dict[str, Any]", read_json(path))
        for key, value in identity.items():
            if state.get(key) != value:
                raise UserError(
                    f"--resume: this run was started with another {key.replace('_', ' ')}",
                    where=path,
                    cure="Give the same recipe, data and options, or choose another --out",
                )
        return state

    def save(self) -> None:
        """Write the state."""
        write_json(self.folder / STATE, self.state)

    def finished(self, stage: str) -> bool:
        """Whether the stage is done."""
        return stage in self.state["finished"]

    def finish(self, stage: str, **figures: Any) -> None:
        """Keep the stage's figures; its checkpoint has served."""
        self.state["finished"][stage] = figures
        self.save()
        (self.checkpoints / f"{stage}.pt").unlink(missing_ok=True)

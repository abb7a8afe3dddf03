"""The folder of a training run, and how far the run has come."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from kdedge.errors import UserError
from kdedge.files import read_json, write_json

STATE = "state.json"
STAGE_FILES = {
    "teacher": "teacher",
    "assistant": "checkpoints/assistant.safetensors",
    "student": "checkpoints/student.safetensors",
    "qat": "checkpoints/qat.safetensors",
}
"""Stage -> the folder or file of a run that holds what it trained."""


def stage_file(stage: str) -> str:
    """The same of any stage, an earlier generation of the teacher among them."""
    return STAGE_FILES.get(stage, f"checkpoints/{stage}.safetensors")


class RunFolder:
    """What is finished, with its figures; written after every stage.

    Args:
        folder: Of the run: checkpoints, teacher, bundle, log, state.
        identity: What must be the same for a run to go on (recipe, data, teacher).
        made_of: Stage -> hash of all that its outcome depends on.
        resume: Go on with the run that is there.
        overwrite: Start anew where there is one.
        writes: Whether to write; else the folder is only read, after the one who writes has made it.

    Raises:
        UserError: the folder holds a run and neither was asked for, or one with another identity.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        made_of: Mapping[str, str],
        *,
        resume: bool,
        overwrite: bool,
        writes: bool = True,
    ) -> None:
        self.folder, self.made_of, self.writes = folder, made_of, writes
        self.checkpoints = folder / "checkpoints"
        path = folder / STATE
        self.state: dict[str, Any] = {"format_version": 1, **identity, "finished": {}}
        if overwrite and writes:
            for name in ("checkpoints", "teacher", "bundle"):
                shutil.rmtree(folder / name, ignore_errors=True)
            path.unlink(missing_ok=True)
        if path.exists():
            if not resume and writes:
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
        if self.writes:
            write_json(self.folder / STATE, self.state)

    def finished(self, stage: str) -> bool:
        """Whether the stage is done."""
        return stage in self.state["finished"]

    def finish(self, stage: str, **figures: Any) -> None:
        """Keep the stage's figures; its checkpoint has served."""
        self.state["finished"][stage] = {"made_of": self.made_of.get(stage), **figures}
        self.save()
        if self.writes:
            (self.checkpoints / f"{stage}.pt").unlink(missing_ok=True)

    def take_over(self, other: Path) -> list[str]:
        """Copy what another run has trained and this one would train alike; the stages that are finished by it.

        Raises:
            UserError: ``other`` holds no run, or is this one.
        """
        path = other / STATE
        if not path.is_file() or other.resolve() == self.folder.resolve():
            what = "this is the run itself" if path.is_file() else "no run is kept there"
            raise UserError(f"--reuse: {what}", where=other, cure="Give the folder of an earlier run (its --out)")
        finished = cast("dict[str, Any]", read_json(path)).get("finished", {})
        taken = []
        for stage, name in ((stage, stage_file(stage)) for stage in self.made_of):
            figures, source, target = finished.get(stage, {}), other / name, self.folder / name
            alike = figures.get("made_of") is not None and figures["made_of"] == self.made_of.get(stage)
            if not alike or not source.exists() or self.finished(stage):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)
            self.state["finished"][stage] = {**figures, "reused_from": str(other)}
            self.save()
            taken.append(stage)
        return taken

"""The folder of a training run, and how far the run has come."""

from __future__ import annotations

import fcntl
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from kdedge.errors import KdedgeError, ModelError, UserError
from kdedge.files import cannot_write, read_json, sha256_file, write_json
from kdedge.written_teacher import WEIGHTS

if TYPE_CHECKING:
    from typing_extensions import Self

STATE, LOCK = "state.json", ".lock"
_BEFORE = ".before"
"""Where a run lies that --overwrite puts another in place of, until that has something of its own."""
STAGE_FILES = {
    "teacher": "teacher",
    "assistant": "checkpoints/assistant.safetensors",
    "student": "checkpoints/student.safetensors",
    "qat": "checkpoints/qat.safetensors",
}
"""Stage -> the folder or file of a run that holds what it trained."""


_PARTS = (STATE, "checkpoints", "teacher", "bundle", "log.jsonl")
"""Of a run, the state first: without it what else is there belongs to a run that was being put aside."""


def _check_file(path: Path, figures: Mapping[str, Any]) -> None:
    """Refuse a file with another hash than its stage kept; an older run kept none."""
    wanted = figures.get("sha256")
    if wanted is not None and sha256_file(path) != wanted:
        raise ModelError(
            "this file is not what its stage wrote: it was changed or damaged",
            where=path,
            cure="Remove it, and its stage is trained again",
        )


def _remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def stage_file(stage: str) -> str:
    """The same of any stage, an earlier generation of the teacher among them."""
    return STAGE_FILES.get(stage, f"checkpoints/{stage}.safetensors")


class RunFolder:
    """What is finished, with its figures; written after every stage.

    A context manager: the process that writes holds a lock on the folder meanwhile, and leaves the folder as it found
    it where a mistake ends the run before anything was trained.

    Args:
        folder: Of the run: checkpoints, teacher, bundle, log, state.
        identity: What must be the same for a run to go on (recipe, data, teacher).
        made_of: Stage -> hash of all that its outcome depends on.
        contents: The same without the versions of libraries, by which a run that goes on is known: stages that are not
            finished have to be made of what they would have been made of, and so has what they build on.
        resume: Go on with the run that is there.
        overwrite: Start anew where there is one, which is given up with the first stage that is finished.
        reads_only: Another process writes, which has begun first.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        made_of: Mapping[str, str],
        *,
        contents: Mapping[str, str],
        resume: bool,
        overwrite: bool,
        reads_only: bool = False,
    ) -> None:
        self.folder, self.made_of, self.writes = folder, made_of, not reads_only
        self.checkpoints = folder / "checkpoints"
        self.token = secrets.token_hex(6)
        self.is_new = True
        self._identity, self._contents, self._resume, self._overwrite = identity, dict(contents), resume, overwrite
        self.state: dict[str, Any] = {"format_version": 1, **identity, "stages": dict(contents), "finished": {}}
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        """Not begun yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let others have the folder."""
        if kind is not None and issubclass(kind, KdedgeError) and self._lock is not None:
            self._give_up()
        if self._lock is not None:
            self._lock.close()

    def begin(self) -> None:
        """Look at what is there, and write the state.

        Raises:
            UserError: the folder holds a run and neither was asked for, or one of something else; or another process is
                at work there.
        """
        path = self.folder / STATE
        if self.writes:
            self._lock = self._locked()
            self._tidy()
            if self._overwrite:
                self._put_aside()
        # Where nothing was trained yet there is nothing to lose, whatever was asked for then.
        self.is_new = not path.exists() or (self.writes and not self._has_trained())
        if not self.is_new:
            if not self._resume and self.writes:
                raise UserError(
                    "this folder already holds a run",
                    where=self.folder,
                    cure="Go on with --resume, start anew with --overwrite, or choose another --out",
                )
            self.state = self._resumed(path)
        if self.writes:
            self.state["token"] = self.token
        self.token = self.state.get("token", self.token)
        self.save()

    def _locked(self) -> IO[str]:
        """The folder's lock, which the kernel takes back when this process ends."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / LOCK).open("a")
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(
                "another process trains in this folder", where=self.folder, cure="Wait for it, or choose another --out"
            ) from None
        return file

    def _tidy(self) -> None:
        """Remove what killed processes left half-written."""
        for folder in (self.folder, self.checkpoints):
            for part in folder.glob(".*.part"):
                _remove(part)

    def _put_aside(self) -> None:
        before = self.folder / _BEFORE
        if before.exists() and (self.folder / STATE).exists():
            # What lies aside has finished more than the run that was to take its place and was stopped.
            for name in _PARTS:
                _remove(self.folder / name)
        for name in _PARTS:
            if (self.folder / name).exists():
                before.mkdir(exist_ok=True)
                (self.folder / name).rename(before / name)

    def _give_up(self) -> None:
        """Leave the folder as it was found, if nothing was trained."""
        if self._has_trained() or not self.is_new:
            return
        for name in (STATE, "log.jsonl"):
            (self.folder / name).unlink(missing_ok=True)
        before = self.folder / _BEFORE
        if before.exists():
            for name in _PARTS:
                if (before / name).exists() and not (self.folder / name).exists():
                    (before / name).rename(self.folder / name)
            shutil.rmtree(before, ignore_errors=True)

    def _has_trained(self) -> bool:
        """Whether a stage is finished, or has a checkpoint."""
        path = self.folder / STATE
        finished = read_json(path).get("finished") if path.exists() else None
        return bool(finished) or any(self.checkpoints.glob("*.pt"))

    def _resumed(self, path: Path) -> dict[str, Any]:
        state = cast("dict[str, Any]", read_json(path))
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise UserError(
                    f"--resume: this run was started with another {key.replace('_', ' ')}",
                    where=path,
                    cure="Give the same recipe, data and options, or choose another --out",
                )
        begun = cast("dict[str, str] | None", state.get("stages"))
        if begun is not None and not set(self._contents) <= set(state["finished"]):
            for stage, content in self._contents.items():
                if begun.get(stage) != content:
                    raise UserError(
                        f"--resume: what stage '{stage}' is made of is not what it was when this run was started: the "
                        "files of a teacher or tokenizer, or the module of a net",
                        where=path,
                        cure="Put them back, or choose another --out",
                    )
        return state

    def save(self) -> None:
        """Write the state."""
        if self.writes:
            write_json(self.folder / STATE, self.state)

    def finished(self, stage: str) -> bool:
        """Whether the stage is done."""
        return stage in self.state["finished"]

    def trained(self, stage: str) -> Path | None:
        """The file that holds what a finished stage trained; None where it has to be trained.

        Raises:
            ModelError: the file is not what the stage wrote.
        """
        path = self.folder / stage_file(stage)
        path = path / WEIGHTS if path.is_dir() else path
        if not self.finished(stage) or not path.exists():
            return None
        _check_file(path, self.state["finished"][stage])
        return path

    def finish(self, stage: str, **figures: Any) -> None:
        """Keep the stage's figures; its checkpoint has served."""
        if self.writes:
            path = self.folder / stage_file(stage)
            path = path / WEIGHTS if path.is_dir() else path
            figures = {**figures, "sha256": sha256_file(path) if path.is_file() else None}
        self.state["finished"][stage] = {"made_of": self.made_of.get(stage), **figures}
        self.save()
        if self.writes:
            (self.checkpoints / f"{stage}.pt").unlink(missing_ok=True)
            shutil.rmtree(self.folder / _BEFORE, ignore_errors=True)

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
            _check_file(source / WEIGHTS if source.is_dir() else source, figures)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, target, dirs_exist_ok=True)
                else:
                    shutil.copyfile(source, target)
            except OSError as error:  # copytree's own is one too
                raise cannot_write(target, error) from error
            self.state["finished"][stage] = {**figures, "reused_from": str(other)}
            self.save()
            taken.append(stage)
        return taken

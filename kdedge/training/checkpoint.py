"""Checkpoints of a stage and weights of a net, atomic and without pickle; and Ctrl-C that waits for a step's end."""

from __future__ import annotations

import pickle
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from kdedge.errors import ModelError, UserError
from kdedge.files import atomic_path, write_tensors
from kdedge.ranks import is_one_of_several


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint (tensors and plain values) whole or not at all.

    Raises:
        UserError: it cannot be written, such as on a full disk; the last checkpoint is intact.
    """
    with atomic_path(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch's own writer hides the reason; a full disk is the usual one
            free_mb = shutil.disk_usage(path.parent).free / 1e6
            raise UserError(
                f"cannot write a checkpoint ({free_mb:.0f} MB free there)",
                where=path,
                cure="Free some space and go on with --resume; the last checkpoint is intact",
            ) from error


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint in a file, or None where there is none; code in it is never run.

    Raises:
        UserError: damaged.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"damaged checkpoint: {str(error).splitlines()[0]}",
            where=path,
            cure="Delete it to repeat its stage",
        ) from error
    return state


def save_tensors(net: nn.Module, path: Path) -> None:
    """The net's state as safetensors, whole or not at all.

    Raises:
        UserError: it cannot be written, such as on a full disk.
    """
    write_tensors(path, net.state_dict())


def load_tensors(net: nn.Module, path: Path) -> None:
    """Load what ``save_tensors`` wrote.

    Raises:
        ModelError: damaged, or of another net.
    """
    from safetensors.torch import load_file

    try:
        net.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and torch each have kinds of their own
        raise ModelError(f"damaged checkpoint: {str(error).splitlines()[0]}", where=path) from error


class Interrupt:
    """Whether the user asked to stop; set by the first Ctrl-C, while the second one stops at once.

    A launcher of several processes passes the first one on to those who have had it from the terminal: that is no
    second one.
    """

    def __init__(self) -> None:
        self.asked = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.asked and not is_one_of_several():
            signal.default_int_handler(signum, frame)
        self.asked = True


@contextmanager
def stoppable() -> Iterator[Interrupt]:
    """Turn Ctrl-C (and SIGTERM) into a flag that the loop looks at after each step.

    An exception in the middle of an optimizer step would leave weights that no checkpoint may hold.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    old = {number: signal.signal(number, interrupt._handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

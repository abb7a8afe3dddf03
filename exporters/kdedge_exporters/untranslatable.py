"""What a converter makes nothing of, as one line that names the op and where the student's code asks for it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdedge.errors import ModelError

if TYPE_CHECKING:
    import torch

_OP = re.compile(r"target=torch\.ops\.([\w.]+)\]")
_UNKNOWN = re.compile(r"Lowering not found|No ONNX function found")
_LINE = re.compile(r'File "([^"<>]+)", line (\d+)')
_LIBRARIES = ("site-packages", "dist-packages", "kdedge_exporters")
_LONGEST = 240


@dataclass(frozen=True)
class Converter:
    """A library that translates a student.

    Attributes:
        name: Of the library.
        format: Of its files.
        other: The other format.
    """

    name: str
    format: str
    other: str

    def refusal(self, error: Exception, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> ModelError:
        """Its error in one line."""
        texts = [str(e) for e in _chain(error)]
        op = next((found[1] for found in map(_OP.search, texts) if found), None)
        thing = "the student" if op is None else f"the student's {op}"
        if any(_UNKNOWN.search(text) for text in texts):
            reason = "it has no form of this op"
        else:
            lines = [line for line in texts[-1].splitlines() if line.strip()] or [type(_chain(error)[-1]).__name__]
            reason = lines[0].strip()[:_LONGEST]
        return ModelError(
            f"{self.name} cannot translate {thing} to {self.format}: {reason}",
            where=None if op is None else _source(op, module, inputs),
            cure=f"Write the student without it, or export it as {self.other}, whose converter knows other ops",
        )


LITERT_TORCH = Converter("litert-torch", "TFLite", "ONNX")
TORCH_ONNX = Converter("torch.onnx", "ONNX", "TFLite")


@contextlib.contextmanager
def translating(converter: Converter, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Iterator[None]:
    """Turns what the converter raises inside into a ``ModelError``.

    Args:
        converter: Who.
        module: What it is given.
        inputs: Examples of what the module takes.
    """
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:  # of many kinds, some of them private to the libraries
        raise converter.refusal(error, module, inputs) from error


def _chain(error: BaseException) -> list[BaseException]:
    """The error and its causes, the first cause last."""
    found: list[BaseException] = [error]
    while (cause := found[-1].__cause__) is not None and cause not in found:
        found.append(cause)
    return found


def _source(op: str, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> str | None:
    """File and line of the student's code that asks for the op; converters have names of their own for some.

    Args:
        op: As the converter calls it, such as ``prims.bessel_i0.default`` for ``aten.special_i0.default``.
        module: The float student, or the program that was made of it.
        inputs: Examples of what it takes.
    """
    import torch
    from torch.fx import GraphModule

    try:
        graph = module.graph if isinstance(module, GraphModule) else torch.export.export(module, inputs).graph
    except Exception:  # then the converter, which begins with the same export, failed in it and said why
        return None
    calls = [node for node in graph.nodes if node.op == "call_function"]
    alike = [node for node in calls if str(node.target) == op] or [
        node for node in calls if _last_word(str(node.target)) == _last_word(op)
    ]
    for node in alike:
        lines = _LINE.findall(node.meta.get("stack_trace") or "")
        own = [f"{file}, line {line}" for file, line in lines if not any(part in file for part in _LIBRARIES)]
        if own:
            return own[-1]
    return None


def _last_word(op: str) -> str:
    """``i0`` of ``aten.special_i0.default`` and of ``prims.bessel_i0.default``."""
    return op.split(".")[1].strip("_").rpartition("_")[2] if "." in op else op

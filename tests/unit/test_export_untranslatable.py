"""Students that a converter makes nothing of: one line that names the op and the place, and no file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kdedge.bundle import Bundle
from kdedge.errors import ModelError
from tests import bundles
from torch import Tensor, nn

from kdedge_exporters import export
from kdedge_exporters.untranslatable import LITERT_TORCH, TORCH_ONNX, Converter, translating


class Running(nn.Module):
    """A linear layer over running maxima, which neither format has."""

    def __init__(self, classes: int, inputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        maxima = torch.cummax(x.flatten(1), 1).values
        result: Tensor = self.head(maxima)
        return result


def student(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """``tests.unit.test_export_untranslatable:student``."""
    return Running(classes, shape[0] * shape[1] * shape[2])


LINE = 1 + next(n for n, line in enumerate(Path(__file__).read_text().splitlines()) if "torch.cummax(" in line)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    return bundles.write(folder, size=16, steps=1, model=f"{__name__}:student")


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize(
    ("format_", "converter"), [("onnx", "torch.onnx"), ("tflite", "litert-torch")], ids=["onnx", "tflite"]
)
def test_an_op_that_the_format_lacks_is_named(
    format_: str, converter: str, precision: str, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=rf"{converter} cannot translate the student's aten\.cummax.* to") as caught:
        export(bundle, format_, precision=precision, samples=None, out=tmp_path / f"student.{format_}")
    assert "it has no form of this op" in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.where is not None and caught.value.where == f"{__file__}, line {LINE}"
    assert list(tmp_path.iterdir()) == []


def mismatch() -> None:
    """What goes wrong first."""
    raise ValueError("axes do not match\nand much more")


def conversion() -> None:
    """As libraries wrap it."""
    try:
        mismatch()
    except ValueError as error:
        raise RuntimeError("conversion failed") from error


@pytest.mark.parametrize("converter", [LITERT_TORCH, TORCH_ONNX])
def test_other_reasons_are_those_of_the_first_cause(converter: Converter) -> None:
    with (
        pytest.raises(ModelError, match=r"the student to (TFLite|ONNX): axes do not match\. Write") as caught,
        translating(converter, nn.Identity(), (torch.zeros(1),)),
    ):
        conversion()
    assert caught.value.where is None


class Branching(nn.Module):
    """What torch.export cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_net_that_cannot_be_exported_at_all_has_no_line() -> None:
    with (
        pytest.raises(ModelError, match=r"the student's aten\.gt\.Scalar to ONNX: a branch") as caught,
        translating(TORCH_ONNX, Branching(), (torch.zeros(1),)),
    ):
        raise RuntimeError("a branch\nWhile executing %gt : call_function[target=torch.ops.aten.gt.Scalar](...)")
    assert caught.value.where is None


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_the_machine_s_own_troubles_are_not_the_student_s(error: BaseException) -> None:
    with pytest.raises(type(error)), translating(LITERT_TORCH, nn.Identity(), (torch.zeros(1),)):
        raise error

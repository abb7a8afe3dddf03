"""What a user may choose of an artifact beside its format, and which choices go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdedge.errors import UserError

from kdedge_exporters.reach import FORMATS, Target, probed

if TYPE_CHECKING:
    from kdedge.bundle import Bundle

PRECISIONS = ("int8", "int8-dynamic", "float32", "float16")
IO = ("float32", "int8", "uint8")
ACTIVATIONS = ("affine", "symmetric")


@dataclass(frozen=True)
class ExportOptions:
    """What the file is like.

    Attributes:
        precision: ``int8``: weights and activations, from QAT or calibration. ``int8-dynamic``: int8 weights of the
            float student, activations quantised at run time in matrix products (``dynamic.py``). ``float32``.
            ``float16``: half the bytes (``float16.py``).
        io: Dtype of inputs and output that are no token ids. ``float32``; ``int8``, of an int8 TFLite file, leaves
            quantising to the caller; ``uint8``, of an int8 image net, takes pixels as they are and normalises in
            integers (the output is then float32 in ONNX and int8 in TFLite).
        activations: How an int8 ONNX file stores them: ``affine`` as uint8, for ONNX Runtime; ``symmetric`` as int8
            with zero point 0, for TensorRT and others that want it.
        target: The runtime that has to open the file; None aims at as many as possible.
    """

    precision: str = "int8"
    io: str = "float32"
    activations: str = "affine"
    target: Target | None = None

    def check(self, bundle: Bundle, format: str) -> None:  # noqa: A002 - the word of the command line
        """Refuse what does not go together.

        Raises:
            UserError: an unknown word, or one that the format, the precision or the bundle has no place for.
        """
        for name, value, choices in (
            ("precision", self.precision, PRECISIONS),
            ("io", self.io, IO),
            ("activations", self.activations, ACTIVATIONS),
        ):
            if value not in choices:
                raise UserError(f"unknown {name} {value!r}", cure=f"Choose one of: {', '.join(choices)}")
        if self.io != "float32" and self.precision != "int8":
            raise UserError(f"a {self.precision} artifact has no {self.io} input", cure="Leave --io out")
        if self.io == "int8" and format == "onnx":
            raise UserError("an ONNX artifact takes float32 or uint8 input, not int8", cure="Leave --io out")
        if self.io == "uint8" and bundle.preprocessing.kind != "image":
            raise UserError(f"--io uint8 takes pixels; the inputs of this net are {bundle.preprocessing.kind}")
        if self.target is not None:
            if FORMATS[self.target.runtime] != format:
                raise UserError(f"{self.target.runtime} opens {FORMATS[self.target.runtime]} files, not {format}")
            probed(self.target)
        if self.activations == "symmetric":
            self._check_symmetric(bundle, format)

    def _check_symmetric(self, bundle: Bundle, format: str) -> None:  # noqa: A002
        if format != "onnx" or self.precision != "int8":
            what = f"a {self.precision} {format} artifact has no symmetric form"
            raise UserError(what, cure="Leave --activations out: it is for int8 ONNX files")
        if self.io != "float32":
            raise UserError("pixels as uint8 have no zero point 0", cure="Leave --io or --activations out")
        if bundle.is_quantised and bundle.activations != "symmetric":
            raise UserError(
                "this student was quantised with affine activations: with zero point 0 it would be another net",
                where=bundle.path,
                cure="Train it with qat.activations = symmetric, or quantise it anew from samples: --calibrate 500",
            )

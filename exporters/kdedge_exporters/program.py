"""The int8 program that an exporter translates."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from kdedge.bundle import Bundle
    from kdedge.images.preprocessing import ImagePreprocessing
    from torch.fx import GraphModule

    from kdedge_exporters.options import ExportOptions


def int8_program(bundle: Bundle, options: ExportOptions) -> GraphModule:
    """The student's converted program, its batch axis open, normalising pixels itself where that is asked."""
    from kdedge import quantize

    program = bundle.int8_program()
    if options.io == "uint8":
        preprocessing = cast("ImagePreprocessing", bundle.preprocessing)
        quantize.take_pixels(program, preprocessing.mean, preprocessing.std)
    return program

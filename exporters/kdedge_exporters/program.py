"""The int8 program that an exporter translates."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from kdedge.bundle import Bundle
    from kdedge.images.preprocessing import ImagePreprocessing
    from torch.fx import GraphModule

    from kdedge_exporters.options import ExportOptions


def int8_program(bundle: Bundle, options: ExportOptions, batch_size: int | None) -> GraphModule:
    """The student's converted program, normalising pixels itself where that is asked.

    Args:
        bundle: The student.
        options: Checked.
        batch_size: None leaves the axis open.
    """
    from kdedge import quantize

    program = bundle.int8_program(batch_size)
    if options.io == "uint8":
        preprocessing = cast("ImagePreprocessing", bundle.preprocessing)
        quantize.take_pixels(program, preprocessing.mean, preprocessing.std)
    return program

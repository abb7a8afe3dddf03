"""Quantisation: from the converged float student to an integer program, with training in between.

::

    prepared = prepare_qat(student, (example,))     # batch norm folded, fake quantisation in place
    ...                                             # train it like any module; then
    set_observers(prepared, False)                  # freeze the ranges for the last epochs
    program = convert(prepared)                     # int8 weights, the same scales bit for bit
    float_ops(program), integer_macs_share(program) # what is not integer, and how much is

The converted program feeds both exporters, so that every artifact carries the same scales.
"""

from __future__ import annotations

import logging

# torchao's import tries its CUDA kernels and warns for each that a CPU build of torch cannot load.
_LOGGERS = [logging.getLogger("torchao"), logging.getLogger("torch.utils._pytree")]
_LEVELS = [logger.level for logger in _LOGGERS]
for _logger in _LOGGERS:
    _logger.setLevel(logging.ERROR)
try:
    from kdedge.quantize.capture import capture, fold_batch_norm
    from kdedge.quantize.explain import TensorError, explain, in_lines
    from kdedge.quantize.fake_quantize import ActivationFakeQuantize
    from kdedge.quantize.inspect import FloatOp, float_ops, integer_macs_share, op_of_prescribed_scale
    from kdedge.quantize.pixels import take_pixels
    from kdedge.quantize.prepare import (
        calibrate,
        convert,
        copied,
        load_quantised_state,
        prepare_qat,
        quantised_state,
        set_fake_quantize,
        set_observers,
    )
    from kdedge.quantize.scale_ratios import WidenedScale, widened_scales
    from kdedge.quantize.scales import QParams, qparams
    from kdedge.quantize.weight_quantize import WeightFakeQuantize
finally:
    for _logger, _level in zip(_LOGGERS, _LEVELS, strict=True):
        _logger.setLevel(_level)

__all__ = [
    "ActivationFakeQuantize",
    "FloatOp",
    "QParams",
    "TensorError",
    "WeightFakeQuantize",
    "WidenedScale",
    "calibrate",
    "capture",
    "convert",
    "copied",
    "explain",
    "float_ops",
    "fold_batch_norm",
    "in_lines",
    "integer_macs_share",
    "load_quantised_state",
    "op_of_prescribed_scale",
    "prepare_qat",
    "qparams",
    "quantised_state",
    "set_fake_quantize",
    "set_observers",
    "take_pixels",
    "widened_scales",
]

"""TFLite: the converted program through litert-torch, with a batch of one, images NHWC, token ids int32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.errors import UserError

from kdedge_exporters.metadata import METADATA_KEY, ArtifactInput, describe, encode
from kdedge_exporters.program import int8_program
from kdedge_exporters.quiet import no_native_stderr, quiet
from kdedge_exporters.untranslatable import LITERT_TORCH, translating

if TYPE_CHECKING:
    import torch
    from kdedge.bundle import Bundle
    from kdedge.inputs import InputSpec
    from torch.fx import GraphModule

    from kdedge_exporters.options import ExportOptions


def write(bundle: Bundle, options: ExportOptions, path: Path) -> list[dict[str, str]]:
    """Write the artifact, for a batch of one.

    Args:
        bundle: The student.
        options: Checked.
        path: Where to.

    Returns:
        Name, op and reason of the ops that are computed in float (int8), or whose weights are float32 (float16).
    """
    from kdedge_exporters import tflite_divisions, tflite_file, tflite_lookups, tflite_scales

    names = [spec.name for spec in bundle.inputs]
    float_ops: list[dict[str, str]]
    if options.precision == "int8":
        program = _program(bundle, options)
        reason = _reason(program)  # in the student's words, which translating changes
        model = tflite_file.read(_translate(program, bundle.inputs, "int8"))
        tflite_file.name_io(model, names)
        tflite_lookups.gather_integers(model)
        tflite_divisions.divide_in_float(model)
        tflite_scales.unite_scales(model)
        float_ops = [{"name": op.name, "op": op.op, "reason": reason} for op in tflite_file.float_ops(model)]
    else:
        content = _translate(bundle.float_student(), bundle.inputs, options.precision)
        content, float_ops = _reduced(content, options)
        model = tflite_file.read(content)
        tflite_file.name_io(model, names)
    if options.io == "float32":
        tflite_file.float_io(model)
    elif options.io == "uint8":
        tflite_file.uint8_input(model)
    tensors = tflite_file.inputs(model)
    document = describe(
        bundle,
        options.precision,
        inputs=[
            ArtifactInput(spec.name, "NHWC" if spec.layout == "NCHW" else spec.layout, *tensors[spec.name])
            for spec in bundle.inputs
        ],
        output_shape=tflite_file.output_shape(model),
        float_ops=float_ops,
    )
    tflite_file.set_metadata(model, METADATA_KEY, encode(document))
    path.write_bytes(tflite_file.pack(model))
    return float_ops


def _reduced(content: bytes, options: ExportOptions) -> tuple[bytes, list[dict[str, str]]]:
    """The float32 file in a smaller precision, and the ops that do not take part."""
    if options.precision == "float32":
        return content, []
    from kdedge_exporters import dynamic, float16

    if options.precision == "float16":
        return float16.tflite_float16(content), float16.tflite_float32_ops(content)
    # tflite-runtime 2.14 has no kernels for a scale for each channel.
    per_channel = options.target is not None and options.target.runtime == "ai-edge-litert"
    made = dynamic.tflite_dynamic(content, per_channel=per_channel)
    return made, dynamic.tflite_float_ops(made)


def _program(bundle: Bundle, options: ExportOptions) -> GraphModule:
    """The int8 program that is translated.

    Raises:
        UserError: it holds an op whose scale TFLite prescribes, and was trained with another one.
    """
    from kdedge import quantize

    program = int8_program(bundle, options)
    if bundle.activations == "symmetric" and (op := quantize.op_of_prescribed_scale(program)) is not None:
        raise UserError(
            f"TFLite computes {op} with zero point -128 alone, and this student was trained with zero point 0",
            where=bundle.path,
            cure="Export it as ONNX, or train it with qat.activations = affine",
        )
    return program


def _translate(module: torch.nn.Module, inputs: tuple[InputSpec, ...], precision: str) -> bytes:
    """litert-torch's conversion, silenced.

    Raises:
        ModelError: it cannot translate an op.
    """
    from kdedge.inputs import examples
    from kdedge.quantize.masks import fill_by_arithmetic

    with quiet():
        with no_native_stderr():
            import litert_torch
            from litert_torch._config import config

        config.show_progress = False
        options: dict[str, Any] = {}
        if precision == "int8":
            fill_by_arithmetic(module)  # type: ignore[arg-type]
            unfold_weights(module)  # type: ignore[arg-type]
            options["quant_config"] = _static_config()
        batch = plain = examples(inputs, 1)
        if precision != "int8":
            with translating(LITERT_TORCH, module, plain):
                module = _written_out(module.eval(), plain)
        channels_last = module.eval()
        images = [position for position, example in enumerate(batch) if example.ndim == 4]
        if images:
            channels_last = litert_torch.to_channel_last_io(channels_last, args=images)
            batch = tuple(x.permute(0, 2, 3, 1).contiguous() if x.ndim == 4 else x for x in batch)
        with translating(LITERT_TORCH, module, plain):
            converted = litert_torch.convert(channels_last.eval(), batch, **options)
        with no_native_stderr():
            return bytes(converted.model_content())


def _written_out(student: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.nn.Module:
    """The float student without the ops of which litert-torch makes other ones (``kdedge/quantize/copies.py``)."""
    import torch
    from kdedge.quantize.capture import unlock
    from kdedge.quantize.copies import write_out_copies

    program = unlock(torch.export.export(student, inputs, strict=False).module(check_guards=False))
    return program if write_out_copies(program) else student


def _static_config() -> Any:
    """Tells litert-torch that the program is statically quantised; its own quantiser is never run."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config()))


def unfold_weights(program: GraphModule) -> None:
    """Write each stored int8 constant as ``quantize(float)``, which is the form litert-torch reads, in place.

    ``round(q · s / s) = q``, so the integers are the same.
    """
    import torch
    from kdedge.quantize.stored import get_tensor

    decomposed = torch.ops.quantized_decomposed
    quantize = {
        decomposed.dequantize_per_channel.default: decomposed.quantize_per_channel.default,
        decomposed.dequantize_per_tensor.default: decomposed.quantize_per_tensor.default,
    }
    graph = program.graph
    for node in list(graph.nodes):
        if node.target not in quantize or node.args[0].op != "get_attr":
            continue
        name = f"{str(node.args[0].target).replace('.', '_')}_{node.name}"
        arguments = [get_tensor(program, a) if hasattr(a, "op") else a for a in node.args]
        program.register_buffer(name, node.target(*arguments))
        with graph.inserting_before(node):
            source = graph.get_attr(name)
            node.args = (graph.call_function(quantize[node.target], (source, *node.args[1:])), *node.args[1:])
    graph.eliminate_dead_code()
    program.recompile()


def _reason(program: torch.nn.Module) -> str:
    from kdedge import quantize

    named = sorted({f"{op.op}: {op.reason}" for op in quantize.float_ops(program)})  # type: ignore[arg-type]
    return "; ".join(named) or "litert-torch's converter found no integer form"

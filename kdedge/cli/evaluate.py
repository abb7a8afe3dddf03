"""kdedge eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from kdedge.cli import output
from kdedge.cli.app import app
from kdedge.cli.options import Data, HostThreads, Json, use_threads

if TYPE_CHECKING:
    from kdedge.metrics import Scores


@app.command("eval", epilog="Example: kdedge eval runs/demo/student-int8.tflite --data digits")
def evaluate(
    target: Annotated[Path, typer.Argument(help="A bundle's folder, or an .onnx or .tflite artifact.")],
    data: Data = None,
    split: Annotated[
        str, typer.Option("--split", help="train, validation, test; all for every sample of data without splits.")
    ] = "test",
    precision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--precision", help="Of a bundle's student: int8 or float32; int8 where it has one."),
    ] = None,
    runtime: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--runtime", help="Of an artifact: onnxruntime, ai-edge-litert or tflite-runtime."),
    ] = None,
    threads: HostThreads = None,
    as_json: Json = False,
) -> None:
    """Accuracy and macro F1 of a bundle or an artifact.

    A bundle's student runs in torch, an artifact in its own runtime.
    """
    with output.libraries_on_stderr():
        if target.is_dir():
            use_threads(threads)
            if runtime is not None:
                _refuse("--runtime", runtime, "a bundle runs in torch", "Give an artifact, or leave it out")
            document = _bundle(target, data, split, precision)
        else:
            if precision is not None:
                _refuse("--precision", precision, "an artifact has one of its own", "Give its bundle, or leave it out")
            document = _artifact(target, data, split, runtime, threads or 1)
    if as_json:
        output.document(document)
        return
    from kdedge.metrics import in_words

    engine = document["runtime"]
    output.result(
        f"{target}: {in_words(document['metrics'])} "
        f"({document['precision']}, {engine['name']} {engine['version']}, "
        f"{document['data']} {split}, n={document['n']})"
    )


def _refuse(option: str, value: str, why: str, cure: str) -> None:
    from kdedge.errors import UserError

    raise UserError(f"{option} {value} has no effect: {why}", where="command line", cure=cure)


def _bundle(path: Path, data: str | None, split: str, precision: str | None) -> dict[str, Any]:
    import torch

    from kdedge.bundle import Bundle
    from kdedge.cli import samples
    from kdedge.errors import UserError
    from kdedge.evaluation import evaluate as run

    bundle = Bundle.load(path)
    chosen = precision or ("int8" if bundle.is_quantised else "float32")
    if chosen not in ("int8", "float32"):
        raise UserError(f"no precision '{chosen}'", where="--precision", cure="It is int8 or float32")
    found = samples.for_bundle(bundle, data, split)
    net = bundle.int8_program() if chosen == "int8" else bundle.float_student()
    scores = run(net, found.data, found.preprocessing)
    engine = {"name": "torch", "version": torch.__version__}
    return _document(path, scores, engine, chosen, found)


def _artifact(path: Path, data: str | None, split: str, runtime: str | None, threads: int) -> dict[str, Any]:
    import torch

    from kdedge.cli import samples
    from kdedge.evaluation import evaluate as run
    from kdedge_exporters.artifact import load_artifact

    artifact = load_artifact(path, runtime, threads)
    found = samples.for_artifact(artifact.metadata, path, data, split)

    def predict(*inputs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(artifact.predict([x.contiguous().numpy() for x in inputs]))

    scores = run(predict, found.data, found.preprocessing)
    return _document(path, scores, dict(artifact.runtime), artifact.precision, found)


def _document(path: Path, scores: Scores, engine: dict[str, str], precision: str, found: Any) -> dict[str, Any]:
    return {
        "target": str(path),
        "precision": precision,
        "n": scores.n,
        "metrics": {name: value for name, value in scores.to_dict().items() if name != "n"},
        "runtime": {"name": engine["name"], "version": engine["version"]},
        "data": found.source,
        "split": found.split,
    }

"""``python -m snnet.export``: a trained network as ONNX, or its weights as safetensors."""

from __future__ import annotations

from snnet.system.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()

from snnet.config.commands import ExportCommand
from snnet.errors import UserError
from snnet.system.command import parse_early, run_command

if __name__ == "__main__":
    command = parse_early(ExportCommand.parse)

import contextlib
import importlib.util
import io
import logging
import shlex
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnet.files.outputs import check_output, write_atomically
from snnet.files.safetensors_files import write_with_checksum
from snnet.files.text import first_line, shown
from snnet.retrieval.trained import TrainedModel, load_trained_model
from snnet.runtime import show_warnings_as_lines
from snnet.system.progress import progress, say, set_quiet
from snnet.system.terminal import tell

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # the extra "onnx"
TOLERANCE = 1e-4  # largest difference of a component of a feature from PyTorch's; rows have length 1
TRACED_BATCH = 2
_MOST_REASON = 300  # characters of what other software says
CHECKED_BATCHES = (1, 3)  # batch sizes other than the traced one


def main(command: ExportCommand) -> None:
    show_warnings_as_lines()
    set_quiet(command.quiet)
    tell(*export(command))


def export(command: ExportCommand) -> list[str]:
    """Write the file that ``command`` asks for; returns a description of it as lines of text.

    Raises :class:`~snnet.errors.UserError` for a checkpoint or weights that cannot be used, for missing packages, if
    torch, onnx or onnxruntime refuses the network, and if onnxruntime's features differ from PyTorch's. Then no file is
    written.
    """
    check_output(command.output, (".onnx", ".safetensors"), read=command.network_files)
    as_onnx = command.output.suffix == ".onnx"
    if as_onnx:
        _require_onnx()
    # On the CPU, so that the file does not depend on this machine.
    plain = {"device": "cpu", "amp": False, "channels_last": False}
    trained = load_trained_model(command.checkpoint, command.preset, {**command.given, **plain})
    trained.model.eval().requires_grad_(False)
    if as_onnx:
        return _write_onnx(trained, command.output, command.opset)
    return _write_safetensors(trained, command.output)


def _write_safetensors(trained: TrainedModel, path: Path) -> list[str]:
    state = trained.model.state_dict()
    header = {name: str(value) for name, value in trained.description().items()}
    write_atomically(path, lambda file: write_with_checksum(state, file, header))
    model, data = trained.config.model, trained.config.data
    return [
        f"{path}: {len(state)} tensors of {model.arch}, embedding {model.embedding}, {_megabytes(path.stat().st_size)}",
        f"  load it with --arch {shlex.quote(model.arch)} --embedding {model.embedding} "
        f"--weights {shlex.quote(str(path))} "
        f"--height {data.height} --width {data.width} --retrieval-feature {model.retrieval_feature}",
    ]


class _Retrieval(nn.Module):
    """The retrieval feature as a network's output."""

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.model = trained.model
        self.after_neck = trained.config.model.retrieval_feature == "after"

    def forward(self, images: Tensor) -> Tensor:
        return self.model.retrieve(images, self.after_neck)


def _write_onnx(trained: TrainedModel, path: Path, opset: int) -> list[str]:
    import onnx
    import onnxruntime

    latest = onnx.defs.onnx_opset_version()
    if opset > latest:
        raise UserError(f"--opset must be <= {latest} (of onnx {onnx.__version__}), got {opset}")

    data = trained.config.data
    retrieval = _Retrieval(trained).eval()
    shape, what = (3, data.height, data.width), f"{trained.config.model.arch} with --opset {opset}"
    wanted = _features_of_noise(retrieval, shape)  # raises for a size that cannot be
    for part in retrieval.modules():
        if hasattr(part, "fused_attn"):  # of timm: torch writes the fused operation only for some shapes
            part.fused_attn = False  # type: ignore[assignment]
    say(f"exporting {trained.config.model.arch} for images of {data.height} x {data.width} pixels")
    content = _to_onnx(retrieval, shape, _metadata(trained), opset, path)
    remedy = "; give a lower --opset, or install a later onnxruntime" if opset > ExportCommand.opset else ""
    refusal = _refusal(path, f"onnxruntime {onnxruntime.__version__} cannot run {what}", remedy)
    difference = _largest_difference(wanted, content, refusal)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{path} is not written: onnxruntime's features differ from PyTorch's by {difference:.1e}, "
            f"more than {TOLERANCE:.0e}"
        )
    write_atomically(path, lambda file: file.write(content))
    description = trained.description()
    return [
        f"{path}: {trained.config.model.arch}, {_megabytes(len(content))}, opset {opset}; "
        f"onnxruntime {onnxruntime.__version__} and PyTorch differ by at most {difference:.1e}",
        f"  input   images    float32 [batch, 3, {data.height}, {data.width}], RGB, resized {description['resize']}",
        f"                    (pixel / 255 - mean) / std, mean {_listed(description['mean'])}, "
        f"std {_listed(description['std'])}",
        f"  output  features  float32 [batch, {trained.model.feature_dim}], rows of length 1: "
        "similarity is the product of two rows",
    ]


def _to_onnx(
    retrieval: nn.Module, shape: tuple[int, int, int], metadata: dict[str, str], opset: int, path: Path
) -> bytes:
    """The network as a serialised ONNX model for any batch size, weights inside.

    Its IR version is the lowest that ``opset`` allows, because runtimes refuse versions that they do not know.
    """
    import onnx

    dynamic = {"images": {0: torch.export.Dim("batch")}}
    arch, version = metadata["arch"], f"torch {torch.__version__}"
    fault = f"{version} and onnx {onnx.__version__} cannot write {arch} with --opset {opset}"
    with _silence(), progress(None, "exporting", total=3, unit="step") as bar:
        with _refusal(path, f"{version} cannot trace {arch}"):
            captured = torch.export.export(
                retrieval, (torch.zeros(TRACED_BATCH, *shape),), dynamic_shapes=dynamic
            )
        bar.update()
        with _refusal(path, fault):
            program = torch.onnx.export(
                captured,
                dynamo=True,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=dynamic,
                optimize=False,
                verbose=False,
                opset_version=opset,
            )
            if program is None:
                raise RuntimeError("torch.onnx.export returned nothing")
            bar.update()
            program.optimize()
            bar.update()
            model = program.model_proto
    graph = model.graph
    # The exporter's notes for its own debugging: a third of the file, paths on this machine among them.
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    if [(entry.domain, entry.version) for entry in model.opset_import] != [("", opset)]:
        raise UserError(f"--opset {opset}: this network cannot be written with it")
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    onnx.helper.set_model_props(model, metadata)
    graph.doc_string = metadata["description"]
    with _refusal(path, fault):
        onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _features_of_noise(retrieval: nn.Module, shape: tuple[int, int, int]) -> list[tuple[Tensor, Tensor]]:
    """Random images in batches of several sizes, and PyTorch's features of them."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(batch, *shape, generator=generator) for batch in CHECKED_BATCHES]
    with torch.no_grad():
        return [(images, retrieval(images)) for images in batches]


def _largest_difference(
    wanted: list[tuple[Tensor, Tensor]], content: bytes, refusal: AbstractContextManager[None]
) -> float:
    """Largest difference of a component between PyTorch's features and onnxruntime's; NaN where one is NaN."""
    import onnxruntime

    with refusal:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        found = [session.run(["features"], {"images": images.numpy()})[0] for images, _ in wanted]
    differences = [torch.from_numpy(ours) - theirs for ours, (_, theirs) in zip(found, wanted, strict=True)]
    return float(torch.cat(differences).abs().max())


def _metadata(trained: TrainedModel) -> dict[str, str]:
    """What a user of the model has to know, as the model's own properties."""
    description = trained.description()
    mean, std = _listed(description["mean"]), _listed(description["std"])
    text = (
        f"Person re-identification feature of {description['arch']}. Input: RGB crops resized to "
        f"{description['height']} x {description['width']} (height x width), {description['resize']}, then "
        f"(pixel / 255 - mean) / std with mean {mean} and std {std} a channel. Output: L2-normalised features; "
        "similarity is their inner product."
    )
    return {name: _text(value) for name, value in description.items()} | {"description": text}


def _require_onnx() -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--output .onnx needs {', '.join(missing)}, which is not installed: "
            "pip install '.[onnx]' in the checkout"
        )


@contextlib.contextmanager
def _refusal(path: Path, fault: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever other software raises into one line, with the first cause that it names."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # exporter, checker and runtime have kinds of their own
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = shown(first_line(cause), _MOST_REASON)  # type: ignore[arg-type]
        raise UserError(f"{path} is not written: {fault} ({reason}){remedy}") from error


@contextlib.contextmanager
def _silence() -> Any:
    """Leave out what the exporter says about its own stages."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _text(value: Any) -> str:
    return _listed(value) if isinstance(value, list) else str(value)


def _listed(values: list[float]) -> str:
    return " ".join(str(value) for value in values)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    run_command(lambda: main(command))

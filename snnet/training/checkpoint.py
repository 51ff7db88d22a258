"""The checkpoints of a run.

A checkpoint holds tensors and plain values only and is read with ``weights_only=True``: opening one runs no
code. It is a zip archive, with a CRC-32 of each member and a list of these: all are compared before it is used.
"""

from __future__ import annotations

import functools
import os
import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnet.errors import UserError
from snnet.files.outputs import write_atomically
from snnet.files.run_files import CHECKPOINT_FILE, CHECKPOINT_FORMAT
from snnet.files.text import Damaged, FileFault, shown
from snnet.files.torch_files import NeedsCode, read_torch, tensor_fault, write_torch
from snnet.training.metric_checks import check_record, checked_ranks
from snnet_kernels import PseudoLabelMemory

VERSION = 1  # the memories are in "head"
VERSION_IN_PIECES = 2  # they are in the files that "pieces" names
_CONTENTS = {
    "model": dict, "optimizer": dict, "head": dict, "config": dict, "rng": dict, "before": dict,
    "metrics": list, "images": int, "torch": str,
}  # fmt: skip
_OPTIONAL = {"styles": int, "pictures": int}  # an earlier version may have written none

# Of how many training images, and of how much of each file, the content is compared.
_COMPARED_IMAGES, _COMPARED_BYTES = 1000, 1 << 16


def save_checkpoint(
    path: Path,
    *,
    pieces: list[list[Any]] | None = None,
    styles: int | None = None,
    pictures: int | None = None,
    **contents: Any,
) -> None:
    """Write a checkpoint; ``contents`` are the entries that :func:`load_checkpoint` returns.

    ``pieces`` names those that :mod:`snnet.training.pieces` wrote; ``styles`` is None where CamStyle is off.
    """
    if contents.keys() != _CONTENTS.keys():
        raise TypeError(f"a checkpoint holds {sorted(_CONTENTS)}, got {sorted(contents)}")
    state = {"format": CHECKPOINT_FORMAT, "version": VERSION, **contents}
    if pieces is not None:
        state |= {"version": VERSION_IN_PIECES, "pieces": pieces}
    prints = {"styles": styles, "pictures": pictures}
    state |= {name: value for name, value in prints.items() if value is not None}
    write_atomically(path, functools.partial(write_torch, state))


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Returns ``model``, ``optimizer`` and ``head`` (state dicts), ``config`` (flat values), ``rng``, ``before``
    (metrics before training, empty where nothing can be evaluated), ``metrics`` (one dict for each epoch
    done), ``images`` (fingerprint of the training images' names) and ``torch`` (its version). Unless an earlier version
    wrote it, it has ``pictures`` (fingerprint of the images' content; not of the built-in set) too, and that of a run
    with CamStyle ``styles`` (of the CamStyle files' names). What several processes wrote has an empty ``head``, and
    ``pieces`` for :func:`snnet.training.pieces.memory_state`. Raises :class:`~snnet.errors.UserError` for anything that
    is not a whole checkpoint of this format.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CHECKPOINT_FILE
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {os.readlink(path)}, which is not there")
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path} is no training checkpoint but weights alone: give it to --weights, with --arch"
        )
    try:
        state = read_torch(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except NeedsCode as error:
        raise UserError(
            f"{path} is refused: it is not a checkpoint of tensors and plain values only"
        ) from error
    except Damaged as error:
        raise UserError(f"{path} is damaged or not a checkpoint ({error.reason})") from error
    except FileFault as error:
        raise UserError(f"{path} {error}") from error
    if not isinstance(state, dict) or shown(state.get("format")) != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path} is not a training checkpoint of this package (its weights alone can go to --weights)"
        )
    version = state.get("version")
    if type(version) is not int or version not in (VERSION, VERSION_IN_PIECES):
        raise UserError(
            f"{path} has checkpoint version {shown(version)}; this package reads {VERSION} and {VERSION_IN_PIECES}"
        )
    contents = _CONTENTS if version == VERSION else {**_CONTENTS, "pieces": list}
    contents = contents | {name: kind for name, kind in _OPTIONAL.items() if name in state}
    for name, kind in contents.items():
        if not isinstance(state.get(name), kind):
            raise UserError(f"{path} is not a whole checkpoint: '{name}' is missing or of the wrong type")
    return state


# Tensors of exemplar and label memory that may be absent, and may have another size.
LISTS = (
    "memory.lists.", "row_entries", "row_counts", "pseudo_labels.row_entries", "pseudo_labels.row_counts",
    "pseudo_labels.column_entries", "memory.rows", "pseudo_labels.rows",
)  # fmt: skip


def load_state(
    module: nn.Module, state: dict[str, Any], path: Path, what: str, optional: tuple[str, ...] = ()
) -> None:
    """``module.load_state_dict(state)``; a mismatch of keys, types or shapes is one line that names some of them.

    Tensors whose names begin with one of ``optional`` are left to the module, which knows whether it needs them.
    """
    found = {n: t for n, t in state.items() if shown(n).startswith(optional) and isinstance(t, Tensor)}
    own = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(optional)}
    for name in [name for name in own if name.endswith("row_bits") and name not in state]:
        if f"{name.removesuffix('bits')}entries" in state:  # labels of several processes are lists
            del own[name]
    check_state(state, own | found, path, what)
    try:
        module.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} does not fit this {what}: {' '.join(str(error).split())}") from error


def check_state(state: dict[str, Any], wanted: dict[str, Tensor], path: Path, what: str) -> None:
    """Raise :class:`~snnet.errors.UserError` unless ``state`` has the keys, types and shapes of ``wanted``.

    Names come first, then shapes; no value is looked at.
    """
    problems = [f"{key} is missing" for key in wanted.keys() - state.keys()]
    problems += [f"{shown(key)} is unknown" for key in state.keys() - wanted.keys()]
    for key in wanted.keys() & state.keys():
        own, found = wanted[key], state[key]
        if not isinstance(found, Tensor) or found.shape != own.shape:
            problems.append(f"{key} has shape {_shape(found)}, needed {tuple(own.shape)}")
        elif found.dtype != own.dtype:
            problems.append(f"{key} has {found.dtype}, needed {own.dtype}")
        elif (fault := tensor_fault(found)) is not None:
            problems.append(f"{key} is {fault}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{path} does not fit this {what}: {'; '.join(sorted(problems)[:3])}{more}")


def check_measurements(state: dict[str, Any], path: Path) -> None:
    """Raise :class:`~snnet.errors.UserError` unless a checkpoint's metrics and ranks are enough to go on from.

    What else the ranks hold is dropped.
    """
    what = ""
    try:
        for epoch, record in enumerate(state["metrics"]):
            what = f"the metrics of epoch {epoch}"
            check_record(record, epoch)
        what = "the ranks before training"
        state["before"] = checked_ranks(state["before"])
    except ValueError as error:
        raise UserError(f"{path} is not a whole checkpoint: {what}: {error}") from error


def label_state(state: dict[str, Any], images: int, path: Path) -> tuple[Tensor, PseudoLabelMemory]:
    """The exemplar memory's features [n, d] and the label memory of ``images`` images, checked as they are loaded."""
    head = state["head"]
    features = head.get("memory.features")
    dim = features.shape[1] if isinstance(features, Tensor) and features.dim() == 2 else 0
    what, own = "exemplar and label memory", "pseudo_labels."
    wanted = {"memory.features": torch.empty(images, dim, device="meta")}
    check_state({name: head[name] for name in wanted if name in head}, wanted, path, what)
    labels = PseudoLabelMemory(images)
    rows = {shown(name)[len(own) :]: value for name, value in head.items() if shown(name).startswith(own)}
    load_state(labels, rows, path, what, optional=LISTS)
    return head["memory.features"], labels


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    """``optimizer.load_state_dict(state)``, checked as :func:`load_state` checks."""
    own = optimizer.state_dict()["param_groups"]
    groups, values = state.get("param_groups"), state.get("state")
    if not isinstance(groups, list) or not isinstance(values, dict) or len(groups) != len(own):
        raise UserError(f"{path} is not a whole checkpoint: its optimiser has no state, or other groups")
    for group, wanted in zip(groups, own, strict=True):
        for name, value in wanted.items():
            found = group.get(name) if isinstance(group, dict) else None
            numbers = type(value) in (int, float) and type(found) in (int, float)
            if (not numbers and type(found) is not type(value)) or (name == "params" and found != value):
                raise UserError(
                    f"{path} is not a whole checkpoint: '{name}' of its optimiser is '{shown(found)}'"
                )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in values.items():
        known = type(index) is int and 0 <= index < len(parameters) and isinstance(entries, dict)
        for name, value in entries.items() if known else [("", None)]:
            if value is None and known:
                continue
            if not isinstance(value, Tensor) or tensor_fault(value) or value.shape != parameters[index].shape:
                raise UserError(
                    f"{path} is not a whole checkpoint: '{shown(name)}' of parameter {shown(index)} of its optimiser "
                    "is not of the parameter's shape"
                )
    optimizer.load_state_dict(state)


def rng_state(*, every_gpu: bool = True) -> dict[str, Any]:
    """The state of every global random generator, as tensors and plain values.

    ``every_gpu``: those of all GPUs; otherwise only that of this process's GPU, since other processes use the others.
    """
    cuda: list[Tensor] = []
    if torch.cuda.is_available():
        cuda = torch.cuda.get_rng_state_all() if every_gpu else [torch.cuda.get_rng_state()]
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any], *, every_gpu: bool = True) -> None:
    """Set what :func:`rng_state` returned; CUDA generators where the number of devices is the same, or was 1.

    A ``state`` of another form can raise nearly anything.
    """
    torch.set_rng_state(state["torch"])
    cuda = state["cuda"]
    if torch.cuda.is_available() and every_gpu and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
    elif torch.cuda.is_available() and len(cuda) == 1:
        torch.cuda.set_rng_state(cuda[0])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def image_fingerprint(paths: Sequence[str]) -> int:
    """A checksum of the files' names in order: row i of the memory belongs to image i of this very list.

    Names count from the folder that holds them all, so that the data may move.
    """
    folder = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    names = "\n".join(os.path.relpath(path, folder) for path in paths)
    return zlib.crc32(names.encode(errors="surrogateescape"))  # the bytes of names that are no UTF-8, too


def picture_fingerprint(dataset: str, paths: Sequence[str]) -> int | None:
    """A checksum of what the files begin with, of up to 1,000 of them that are spread evenly over all.

    Files of the same names may show other images. None for the built-in set: each machine draws the same pixels, but
    its zlib may compress them to other bytes.
    """
    if dataset == "synthetic":
        return None
    found = 0
    for path in paths[:: -(-len(paths) // _COMPARED_IMAGES) or 1]:
        try:
            with open(path, "rb") as file:
                found = zlib.crc32(file.read(_COMPARED_BYTES), found)
        except OSError as error:
            raise UserError(f"cannot read image {path!r}: {error.strerror or error}") from error
    return found


def has_same_images(checkpoint: dict[str, Any], names: int, pictures: int | None = None) -> bool:
    """Whether a checkpoint is of training images with these fingerprints; ``pictures`` None: of these names."""
    written = checkpoint.get("pictures")  # None: of an earlier version, which compared names alone
    return checkpoint["images"] == names and (None in (written, pictures) or written == pictures)


def _shape(value: Any) -> str:
    return shown(tuple(value.shape) if isinstance(value, Tensor) else None)

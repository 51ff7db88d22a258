"""The checkpoints of a run.

A checkpoint holds tensors and plain values only and is read with ``weights_only=True``: opening one runs no
code.
"""

from __future__ import annotations

import os
import pickle
import random
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from snnet.errors import UserError
from snnet.flags import CHECKPOINT_FILE
from snnet.outputs import write_atomically

FORMAT = "snnet-checkpoint"
VERSION = 1
_CONTENTS = {
    "model": dict, "optimizer": dict, "head": dict, "config": dict, "rng": dict, "before": dict,
    "metrics": list, "images": int, "torch": str,
}  # fmt: skip


def save_checkpoint(path: Path, **contents: Any) -> None:
    """Write a checkpoint; ``contents`` are the entries that :func:`load_checkpoint` returns."""
    if contents.keys() != _CONTENTS.keys():
        raise TypeError(f"a checkpoint holds {sorted(_CONTENTS)}, got {sorted(contents)}")
    state = {"format": FORMAT, "version": VERSION, **contents}

    def write(file: IO[bytes]) -> None:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's zip writer reports a full disk in its own words
            raise OSError(f"the file could not be completed ({str(error).splitlines()[0]})") from error

    write_atomically(path, write, one_writer=True)


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Returns ``model``, ``optimizer`` and ``head`` (state dicts), ``config`` (flat values), ``rng``, ``before``
    (metrics before training, empty where nothing can be evaluated), ``metrics`` (one dict for each epoch
    done), ``images`` (fingerprint of the training images) and ``torch`` (its version). Raises
    :class:`~snnet.errors.UserError` for anything that is not a whole checkpoint of this format.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CHECKPOINT_FILE
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path} is no training checkpoint but weights alone: give it to --weights, with --arch"
        )
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a foreign file's pickle; the error below says what matters
            state = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is not a checkpoint of tensors and plain values only"
        ) from error
    except Exception as error:  # what damaged zip or pickle data raises is not a documented set
        raise UserError(f"{path} is damaged or not a checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a training checkpoint of this package (its weights alone can go to --weights)"
        )
    if state.get("version") != VERSION:
        raise UserError(f"{path} has checkpoint version {state.get('version')}; this package reads {VERSION}")
    for name, kind in _CONTENTS.items():
        if not isinstance(state.get(name), kind):
            raise UserError(f"{path} is not a whole checkpoint: '{name}' is missing or of the wrong type")
    return state


def load_state(module: nn.Module, state: dict[str, Any], path: Path, what: str) -> None:
    """``module.load_state_dict(state)``; a mismatch of keys or shapes is one line that names some of them."""
    own = module.state_dict()
    problems = [f"{key} is missing" for key in own.keys() - state.keys()]
    problems += [f"{key} is unknown" for key in state.keys() - own.keys()]
    problems += [
        f"{key} has shape {_shape(state[key])}, needed {_shape(own[key])}"
        for key in own.keys() & state.keys()
        if _shape(state[key]) != _shape(own[key])
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{path} does not fit this {what}: {'; '.join(sorted(problems)[:3])}{more}")
    module.load_state_dict(state)


def rng_state() -> dict[str, Any]:
    """The state of every global random generator, as tensors and plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Undo of :func:`rng_state`; CUDA generators are set where there are as many devices as there were."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
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


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None

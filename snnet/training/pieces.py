"""The memories of a checkpoint in pieces: the share of each process that wrote it, in a file beside the checkpoint.

A checkpoint names its pieces and their checksums. It is written when they are in place. Older pieces are deleted only
after that. So a checkpoint always has its pieces, even after a kill.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from snnet.errors import UserError
from snnet.files.outputs import write_atomically
from snnet.files.run_files import CHECKPOINT_FILE
from snnet.files.safetensors_files import CHECKSUM, SafetensorsFile, open_safetensors, write_with_checksum
from snnet.files.text import FileFault, shown
from snnet.system.processes import Processes
from snnet.training.checkpoint import load_checkpoint
from snnet_kernels.distributed.state import rows_of_pieces, rows_of_state, whole_state

_NAME = re.compile(r"checkpoint-[0-9]+-[0-9]+-of-[0-9]+(-[0-9]+)?\.safetensors")
_ATTEMPTS = 5  # at reading a run that goes on, which has written another checkpoint meanwhile


def write_pieces(
    folder: Path, epochs: int, rows: range, state: Mapping[str, Tensor], processes: Processes
) -> list[list[Any]] | None:
    """Write this process's ``rows`` of the memories, ``state``. All processes call it; rank 0 gets their names.

    No piece that is there is replaced: the last checkpoint, though of as many epochs, needs its own.
    """
    stem = f"checkpoint-{epochs}-{processes.rank}-of-{processes.count}"
    names = itertools.chain([f"{stem}.safetensors"], (f"{stem}-{n}.safetensors" for n in itertools.count(2)))
    name = next(name for name in names if not (folder / name).exists())
    checksum = write_atomically(folder / name, lambda file: write_with_checksum(state, file))
    return processes.gathered([name, rows.start, rows.stop, checksum])


def clear_pieces(folder: Path, kept: list[list[Any]]) -> None:
    """Delete the pieces in ``folder`` that are not ``kept``: those of other checkpoints."""
    names = {piece[0] for piece in kept}
    for path in folder.glob("checkpoint-*.safetensors"):
        if _NAME.fullmatch(path.name) and path.name not in names:
            with contextlib.suppress(OSError):  # the next one tries again
                path.unlink()


def memory_state(checkpoint: dict[str, Any], path: Path, rows: range | None = None) -> dict[str, Tensor]:
    """The state of the memories in ``checkpoint``, which was read from ``path``: whole, or the piece of these ``rows``.

    Raises :class:`~snnet.errors.UserError` where a piece is missing, damaged or of another checkpoint.
    """
    with contextlib.ExitStack() as stack:
        made: Callable[[], dict[str, Tensor]]
        if (pieces := checkpoint.get("pieces")) is None:
            state = checkpoint["head"]
            if rows is None:
                return dict(state)
            made = functools.partial(rows_of_state, state, rows)
        else:
            _check_names(pieces, path)
            opened = [stack.enter_context(_opened(path, *piece)) for piece in pieces]
            made = (
                functools.partial(whole_state, opened)
                if rows is None
                else functools.partial(rows_of_pieces, opened, rows)
            )
        try:
            return made()
        except (ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
            raise UserError(f"{path} has no whole memories: {' '.join(str(error).split())}") from error


def load_whole_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint with whole memories under ``head``, also where the run that writes it goes on."""
    for attempt in range(_ATTEMPTS):
        checkpoint = load_checkpoint(path)
        file = path / CHECKPOINT_FILE if path.is_dir() else path
        try:
            return {**checkpoint, "head": memory_state(checkpoint, file)}
        except UserError:
            gone = [not (file.parent / piece[0]).exists() for piece in checkpoint.get("pieces") or []]
            if not any(gone) or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError


class _Piece(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is asked for."""

    def __init__(self, path: Path, file: SafetensorsFile) -> None:
        self._path, self._file = path, file

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._file.types:
            raise KeyError(f"{shown(name)} is missing")
        try:
            return self._file.tensor(name)
        except FileFault as error:
            raise UserError(f"{self._path} {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.types)

    def __len__(self) -> int:
        return len(self._file.types)


@contextlib.contextmanager
def _opened(path: Path, name: str, first: int, last: int, checksum: str) -> Iterator[_Piece]:
    """A piece of the checkpoint ``path``."""
    piece = path.parent / name
    if not piece.is_file():
        raise UserError(f"{path} needs {piece}, which is not there: they belong together")
    try:
        with open_safetensors(piece) as file:
            if file.metadata.get(CHECKSUM) != checksum:
                raise UserError(f"{piece} is not the piece that {path} was written with")
            yield _Piece(piece, file)
    except OSError as error:
        raise UserError(f"cannot read {piece}: {error.strerror or error}") from error
    except FileFault as error:
        raise UserError(f"{piece} {error}") from error


def _check_names(pieces: list[Any], path: Path) -> None:
    """Names must be those of this folder's pieces, and the rows follow each other."""
    end = 0
    for piece in pieces:
        whole = isinstance(piece, list) and [type(part) for part in piece] == [str, int, int, str]
        if not whole or not _NAME.fullmatch(piece[0]) or piece[1] != end or piece[2] < end:
            raise UserError(f"{path} is not a whole checkpoint: its piece '{shown(piece)}' is damaged")
        end = piece[2]

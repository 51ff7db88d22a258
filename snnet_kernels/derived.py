"""Whether a tensor still holds what something was derived from.

Neighbour lists follow the exemplar memory, the transposed label bits follow the label bits, the similarity that a
forward pass leaves for the update follows features and memory. A :class:`Source` watches the tensor that they are
made from. Three signs cost nothing: another storage (assignment, ``load_state_dict(assign=True)``, ``set_``), another
address, a count of writes that has gone on (in-place operations, those of this package included). Writers that leave
none of them (``torch.distributed``, ``.data``, numpy, DLPack) change the checksums of rows: on the CPU, outside of
traced code, a call compares those of the rows that it names, O(B d). After a write to other rows, in traced code or on
a GPU, call ``mark_written_()`` of the module.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .checks import check_index_values
from .ops.checksums import checksums, checksums_match
from .tracing import has_values

_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)


class Source:
    """A matrix [n, d] as it was when something was derived from it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Vouch for nothing."""
        self._storage: StorageWeakRef | None = None
        self._signs: tuple[Any, ...] = ()
        self._sums: Tensor | None = None

    def remember(self, tensor: Tensor) -> None:
        """Vouch for the tensor as it is, by its signs alone."""
        self.forget()
        if has_values(tensor):
            # A weak reference keeps the identity of a storage from being given to another one.
            self._storage, self._signs = StorageWeakRef(tensor.untyped_storage()), _signs_of(tensor)

    def remember_rows(self, tensor: Tensor, rows: Tensor | None = None) -> None:
        """The same with checksums: of all rows, or anew of ``rows`` int64 [k] where the others stand as they were."""
        sums = self._sums
        self.remember(tensor)
        if tensor.device.type != "cpu" or not has_values(tensor):
            return
        if rows is None or sums is None:
            self._sums = row_checksums(tensor)
        else:
            self._sums = sums.index_copy_(0, rows, row_checksums(tensor, rows))

    def holds(self, tensor: Tensor, rows: Tensor | None = None) -> bool:
        """Whether nothing is known of a write since; with ``rows`` int64 [k] their checksums are compared too.

        A row -1 stands for none.
        """
        if not has_values(tensor):
            return True
        storage = self._storage
        if (
            storage is None
            or storage.cdata != tensor.untyped_storage()._cdata
            or self._signs != _signs_of(tensor)
        ):
            return False
        if rows is None or self._sums is None:
            return True
        words = _words(tensor)
        if words is None:
            check_index_values("index", rows, len(tensor), lowest=-1)
            rows = rows[rows >= 0]
            return torch.equal(self._sums.index_select(0, rows), row_checksums(tensor, rows))
        return bool(checksums_match(words, rows, _keys(words.shape[1], words.device), self._sums))

    def holds_all(self, tensor: Tensor) -> bool:
        """Whether nothing is known of a write since, and the checksums of all rows are the same."""
        if not self.holds(tensor):
            return False
        return self._sums is None or not has_values(tensor) or torch.equal(self._sums, row_checksums(tensor))

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return (Source, ())  # a copy, or what is read from a file, has another tensor


def _signs_of(tensor: Tensor) -> tuple[Any, ...]:
    writes = None if tensor.is_inference() else tensor._version  # the former do not count
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, writes


def row_checksums(tensor: Tensor, rows: Tensor | None = None) -> Tensor:
    """A checksum int64 [k] of the bits of each row of a matrix [n, d], or of ``rows`` int64 [k] of it."""
    if torch.is_inference_mode_enabled():  # what it makes cannot be written later
        with torch.inference_mode(False):
            return row_checksums(tensor, rows)
    if tensor.shape[1] == 0:
        return torch.zeros(len(tensor if rows is None else rows), dtype=torch.int64, device=tensor.device)
    words = _words(tensor)
    if words is None:
        part = tensor.detach() if rows is None else tensor.detach().index_select(0, rows)
        words, rows = _words(part.clone(memory_format=torch.contiguous_format)), None
        assert words is not None
    return checksums(words, rows, _keys(words.shape[1], words.device))


def _words(tensor: Tensor) -> Tensor | None:
    """A matrix seen as rows of integers as long as may be, where this needs no copy."""
    matrix = tensor.detach()
    size = matrix.element_size()
    width = matrix.shape[1] * size
    # One of a single row, or of none, may call itself contiguous with any strides.
    if width == 0 or matrix.stride() != (matrix.shape[1], 1) or matrix.is_inference():
        return None
    word = next(word for word in _WORDS if width % word.itemsize == 0)
    # A part of a larger tensor may begin inside a word.
    if (matrix.storage_offset() * size) % word.itemsize or matrix.data_ptr() % word.itemsize:
        return None
    return matrix.view(word)


@lru_cache(maxsize=8)
def _keys(width: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):
        keys = torch.empty(width, dtype=torch.int64, device="cpu")
        return keys.random_(-(2**63), None, generator=generator).to(device)

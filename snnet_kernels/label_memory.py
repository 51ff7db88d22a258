"""The pseudo label memory P, kept as bits or as lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import checks, ops
from .derived import Source
from .label_tables import LabelTables
from .layout import identity_labels, label_entries
from .memory_module import UnaveragedModule, refuse_group
from .memory_size import check_room
from .ops.label_memory import _gather_labels, _write_labels_  # the rest is checked here

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Self

BYTES_OF_LIST = 250  # per image, while lists are made
MOST_BITS = 2**30  # most bytes of both bit matrices with storage "auto": 65,536 images


class PseudoLabelMemory(UnaveragedModule):
    """The most recent main label of every image, P [n, n], with its transpose. It starts as the identity matrix.

    As bits, P and its transpose take n²/4 bytes; a column P[:, i] (Eq. 4) is a contiguous row of the transpose. As
    int32 lists (the columns of each row, and the rows of each column) they take about 30 bytes per positive label, for
    any n. Inputs and outputs of the methods are the same.

    The transposed bits are kept up to date with P. Writes that autograd does not see are detected by the rules of
    :class:`ExemplarMemory`; after others call :meth:`mark_written_`. Only methods of this class may write lists.

    Args:
        num_instances: number of images n.
        storage: ``"bits"``, ``"lists"``, or ``"auto"``: bits up to 65,536 images, lists beyond. Lists grow with their
            labels: on a GPU the host waits at each call, and a write cannot be traced or captured.
        process_group: shard P over these processes, see
            :class:`.distributed.label_memory.ShardedPseudoLabelMemory`. None: no sharding; ``dist.group.WORLD`` is None
            before ``init_process_group``.

    The buffers ``row_bits`` and ``column_bits`` are uint8 [n, label_bytes(n)], or None with lists; ``state_dict()`` has
    only ``row_bits``. With lists it has ``row_entries`` int32 [E], the columns of each row in order, and ``row_counts``
    int32 [n]. Each storage loads the state of the other. ``own_rows`` is range(n).
    """

    row_bits: Tensor | None
    column_bits: Tensor | None

    def __new__(cls, *args: Any, process_group: ProcessGroup | None = None, **kwargs: Any) -> Self:
        if process_group is None or cls is not PseudoLabelMemory:
            return super().__new__(cls)
        from .distributed.label_memory import ShardedPseudoLabelMemory  # its base class is this one

        return super().__new__(ShardedPseudoLabelMemory)  # type: ignore[return-value]

    def __init__(
        self,
        num_instances: int,
        *,
        storage: str = "auto",
        device: torch.device | str | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.num_instances = checks.check_count("num_instances", num_instances)
        self.own_rows = self._join(process_group)
        self.storage = self._chosen(storage)
        needed = BYTES_OF_LIST * len(self.own_rows) if self.storage == "lists" else self._bytes_of_bits()
        check_room(self.num_instances, needed, torch.empty(0, device=device).device)
        lists = self.storage == "lists"
        self.tables = LabelTables(self.num_instances, device, own=self.own_rows) if lists else None
        with torch.inference_mode(False):
            every = torch.arange(self.num_instances, device=device)
            bits = None if lists else identity_labels(every, self.num_instances)
            self.register_buffer("row_bits", bits)
            self.register_buffer("column_bits", None if bits is None else bits.clone(), persistent=False)
        self._source = Source()  # the rows that the transpose was made from
        self._vouch_for_columns()

    def _join(self, process_group: ProcessGroup | None) -> range:
        """The columns that this process holds."""
        refuse_group(self, process_group, "ShardedPseudoLabelMemory")
        return range(self.num_instances)

    def _chosen(self, storage: str) -> str:
        if storage not in ("auto", "bits", "lists"):
            raise ValueError(f"storage must be 'auto', 'bits' or 'lists', got {storage!r}")
        if storage == "auto":
            return "bits" if self._bytes_of_bits() <= MOST_BITS else "lists"
        return storage

    def _bytes_of_bits(self) -> int:
        return 2 * self.num_instances * ops.label_bytes(self.num_instances)

    @property
    def device(self) -> torch.device:
        """The device of P."""
        return self._held.device

    @property
    def _held(self) -> Tensor:
        """A tensor of P, which says where it is."""
        held = self.row_bits if self.tables is None else self.tables.device_tensor
        assert held is not None
        return held

    def write_(self, index: Tensor, labels: Tensor) -> None:
        """P[index] = labels (Eq. 3): ``index`` int64 [B], packed ``labels`` uint8 [B, label_bytes(n)].

        If an index is repeated, its last row is kept.
        """
        index = self._checked(index)
        labels = checks.check_labels("labels", labels, self.num_instances, len(index))
        checks.check_same_device(index=index, labels=labels)
        if self.tables is not None:
            self.tables.write_(index, labels)
            return
        row_bits, column_bits = self._current_bits(index)
        checks.check_apart({"row_bits": row_bits, "column_bits": column_bits})
        _write_labels_(row_bits, column_bits, index, labels)
        self._vouch_for_columns(index)

    def rows(self, index: Tensor) -> Tensor:
        """P[index], packed, uint8 [B, label_bytes(n)]: the labels of images ``index`` [B] (Eq. 6), empty for -1."""
        index = self._checked(index, lowest=-1, read_later=True)
        if self.tables is not None:
            return self.tables.rows(index)
        assert self.row_bits is not None
        return _gather_labels(self.row_bits, index)

    def columns(self, index: Tensor) -> Tensor:
        """P[:, index]ᵀ, packed, uint8 [B, label_bytes(n)]: the images whose label contains ``index[b]`` (Eq. 4)."""
        index = self._checked(index, lowest=-1, read_later=True)
        if self.tables is not None:
            return self.tables.columns(index)
        return _gather_labels(self._current_bits(index)[1], index)

    def pairs(self, first: int = 0, last: int | None = None) -> tuple[Tensor, Tensor]:
        """The ones of P in rows [first, last): (row int64 [E], column int64 [E]), sorted by row, then by column."""
        first = checks.check_count("first", first, lowest=0)
        last = self.num_instances if last is None else checks.check_count("last", last, lowest=0)
        if self.tables is not None:
            return self.tables.pairs(first, last)
        assert self.row_bits is not None
        row, column = label_entries(self.row_bits[first:last], self.num_instances)
        return row + first, column

    def to_dense(self) -> Tensor:
        """P as a bool matrix [n, n], n² bytes."""
        return ops.unpack_labels(
            self.rows(torch.arange(self.num_instances, device=self.device)), self.num_instances
        )

    def mark_written_(self) -> None:
        """Declare that ``row_bits`` were written unseen by autograd; see :meth:`ExemplarMemory.mark_written_`."""
        if self.row_bits is None or self.column_bits is None:
            return
        n, block, device = self.num_instances, 1024, self.row_bits.device
        checks.check_labels("row_bits", self.row_bits, n, n)
        self._source.forget()  # until all columns are new
        if self.column_bits.device != device:
            with torch.inference_mode(False):
                self.column_bits = torch.zeros(self.row_bits.shape, dtype=torch.uint8, device=device)
        for start in range(0, n, block):  # a block of rows of P is a block of columns of its transpose
            part = ops.unpack_labels(self.row_bits[start : start + block], n)
            packed = ops.pack_labels(part.t())
            self.column_bits[:, start // 8 : start // 8 + packed.shape[1]] = packed
        self._vouch_for_columns()

    def _checked(self, index: Tensor, lowest: int = 0, read_later: bool = False) -> Tensor:
        self._refuse_replication()
        index = checks.check_index("index", index, self.num_instances, lowest=lowest, read_later=read_later)
        checks.check_same_device(P=self._held, index=index)
        return index

    def _current_bits(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """P and its transpose, which is made afresh if P, or its rows ``index``, have changed since."""
        assert self.row_bits is not None
        if not torch.compiler.is_compiling() and not self._source.holds(self.row_bits, index):
            self.mark_written_()
        assert self.column_bits is not None
        return self.row_bits, self.column_bits

    def _vouch_for_columns(self, rows: Tensor | None = None) -> None:
        """The transpose is current: it has just taken over ``rows`` int64 [B] of P (default: all)."""
        if not torch.compiler.is_compiling() and self.row_bits is not None:
            self._source.remember_rows(self.row_bits, rows)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.tables is not None:
            destination[prefix + "row_entries"], destination[prefix + "row_counts"] = self.tables.saved()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = [prefix + name for name in ("row_bits", "row_entries", "row_counts")]
        bits, entries, counts = (state_dict.get(name) for name in names)
        rest = {name: value for name, value in state_dict.items() if name not in names}
        lists = (entries, counts) if isinstance(entries, Tensor) and isinstance(counts, Tensor) else None
        try:
            if self.tables is None:
                if lists is not None:
                    bits = _bits_of_lists(*lists, self.num_instances)
                rest |= {} if bits is None else {names[0]: bits}
            else:
                if lists is None and isinstance(bits, Tensor):
                    lists = _lists_of_bits(bits, self.num_instances)
                if lists is None:
                    args[2].extend(names[1:])  # missing
                else:
                    self.tables.load_(*lists)
        except (TypeError, ValueError) as error:
            args[4].append(f"{prefix}{error}")  # of those that load_state_dict() raises as one
            rest |= {} if self.row_bits is None else {names[0]: self.row_bits}
        super()._load_from_state_dict(rest, prefix, *args)
        bits = self.row_bits
        if bits is not None and (bits.is_inference() or not self._source.holds_all(bits)):
            self.mark_written_()

    def extra_repr(self) -> str:
        return f"{self.num_instances}, storage={self.storage!r}"


def _bits_of_lists(entries: Tensor, counts: Tensor, n: int) -> Tensor:
    tables = LabelTables(n, entries.device)
    tables.load_(entries, counts)
    return tables.rows(torch.arange(n, device=entries.device))


def _lists_of_bits(bits: Tensor, n: int) -> tuple[Tensor, Tensor]:
    checks.check_labels("row_bits", bits, n, n)
    row, column = label_entries(bits, n)
    return column.to(torch.int32), torch.bincount(row, minlength=n).to(torch.int32)

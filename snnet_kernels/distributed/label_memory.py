"""The pseudo label memory P divided by columns over the processes of a group."""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .. import checks
from ..label_memory import PseudoLabelMemory
from ..label_tables import LabelTables
from ..layout import label_bytes
from ..ops.label_lists import gather_list_entries
from ..ops.shard_prediction import own_label_sets
from .exchange import Exchange
from .prediction import Inquiry, Predicted
from .rows import Division, Samples

SAVED = ("column_entries", "column_counts")


class LabelSets(NamedTuple):
    """The label sets of all samples of a batch."""

    packed: tuple[Tensor, ...]  # uint8 [B, label_bytes(own)] each, of the own columns
    positives: Tensor  # int64 [B, sets], of all columns
    common: Tensor  # int32 [B, sets - 1], positives of the first and of another set, of the own columns


class ShardedPseudoLabelMemory(PseudoLabelMemory):
    """The columns of P that this process owns, as lists: what ``PseudoLabelMemory(n, process_group=group)`` makes.

    All processes of the group call :meth:`write_`, :meth:`rows`, :meth:`columns` and :meth:`gather` in the same order,
    each with its own samples, of the same number; the last of a repeated index counts, in order of ranks.

    ``own_rows`` are whole blocks of 512, as equal as may be: P[:, own_rows]. ``state_dict()`` has ``column_entries``
    int32 [E], the rows of each own column in order, ``column_counts`` int32 [len(own_rows)], and ``rows`` int64 [2]:
    the first own row and ``num_instances``.
    """

    tables: LabelTables

    def _join(self, process_group: ProcessGroup | None) -> range:
        self.exchange = Exchange(process_group)
        self.division = Division(self.num_instances, self.exchange.size, self.exchange.rank)
        return self.division.own

    def _chosen(self, storage: str) -> str:
        if storage not in ("auto", "lists"):
            raise ValueError(f"storage must be 'auto' or 'lists' with a process_group, got {storage!r}")
        return "lists"

    def write_(self, index: Tensor, labels: Tensor) -> None:
        """P[index] = labels (Eq. 3) of the own samples: int64 [b], packed uint8 [b, label_bytes(n)]."""
        everything, labels = self._asked("write_", index, labels)
        parts = labels.split(self._widths, dim=1)
        shape = len(labels), self._widths[self.exchange.rank]
        found = self.exchange.send_parts(parts, [shape] * self.exchange.size)
        self._write_own_(everything, torch.cat(found))

    def _write_own_(self, index: Tensor, labels: Tensor) -> None:
        """The same by the samples of all processes, of which ``labels`` has the own columns."""
        self.tables.write_(index, labels)

    def rows(self, index: Tensor) -> Tensor:
        """P[index] of the own samples, packed, uint8 [b, label_bytes(n)]; empty at -1."""
        everything, _ = self._asked("rows", index)
        found = self.tables.rows(everything)
        parts = found.view(self.exchange.size, len(index), found.shape[1]).unbind(0)
        shapes = [(len(index), width) for width in self._widths]
        return torch.cat(self.exchange.send_parts(parts, shapes), dim=1)

    def columns(self, index: Tensor) -> Tensor:
        """P[:, index]ᵀ of the own samples, packed, uint8 [b, label_bytes(n)]; empty at -1."""
        everything, _ = self._asked("columns", index)
        samples = Samples(everything.clamp_min(0), self.division)
        own = samples.rows.masked_fill(everything[samples.own] < 0, -1)
        return samples.to_loaders(self.tables.columns(own), self.exchange)

    @property
    def _widths(self) -> list[int]:
        """Bytes of a packed label that each process owns: blocks of columns are whole bytes."""
        return [label_bytes(len(self.division.rows(rank))) for rank in range(self.division.size)]

    def _asked(self, call: str, index: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The positions of all processes, and the own ``labels``."""

        def check() -> tuple[Tensor, Tensor]:
            self._refuse_replication()
            checked = checks.check_index(
                "index", index, self.num_instances, lowest=0 if call == "write_" else -1
            )
            found = torch.zeros(0, label_bytes(self.num_instances), dtype=torch.uint8, device=self.device)
            if labels is not None:
                found = checks.check_labels("labels", labels, self.num_instances, len(checked))
            checks.check_same_device(tables=self.tables.device_tensor, index=checked, labels=found)
            return checked, found

        checked, labels = self.exchange.agreed(
            call,
            self.device,
            check,
            lambda found: {"the number of samples": len(found[0]), "num_instances": self.num_instances},
        )
        return self.exchange.gather(checked).flatten(), labels

    def _inquiry(self, samples: Samples) -> Inquiry:
        """What the owners of the samples tell all processes of the symmetric labels; and all of the neighbours'."""
        row, sizes = gather_list_entries(*self.tables.lists("column"), samples.rows)
        positives = self.tables.lists("row")[2]  # of each image, in the own columns
        return Inquiry(
            sizes, row, lambda neighbor: positives[neighbor.clamp_min(0)].masked_fill(neighbor < 0, 0)
        )

    def _label_sets(self, samples: Samples, predicted: Predicted) -> LabelSets:
        """Main, symmetric and neighbour labels of all samples."""
        entries, told = predicted.told
        neighbors = self.tables.rows(predicted.neighbor)
        main, symmetric, positives, common = own_label_sets(
            predicted.sample, predicted.column, samples.owner, predicted.sizes, entries, neighbors, told,
            self.own_rows.start, len(self.own_rows),
        )  # fmt: skip
        return LabelSets((main, symmetric, neighbors), positives, common)

    @overload
    def gather(self) -> PseudoLabelMemory: ...

    @overload
    def gather(self, to: int | None) -> PseudoLabelMemory | None: ...

    def gather(self, to: int | None = None) -> PseudoLabelMemory | None:
        """P as lists of one process, on the CPU: in all processes, or in rank ``to`` of the group alone and None in the
        others. It takes about 100 bytes a label while it is made, and 30 afterwards."""
        ranks = range(self.exchange.size)

        def check() -> None:
            if to is not None and to not in ranks:
                raise ValueError(f"to must be a rank of the group, 0 to {ranks[-1]}, got {to!r}")

        self.exchange.agreed(
            "gather",
            self.device,
            check,
            lambda _: {"num_instances": self.num_instances, "to": -1 if to is None else to},
        )
        entries, counts = self.tables.saved("column")
        row = (
            torch.arange(len(counts), device=counts.device).repeat_interleave(counts.long())
            + self.own_rows.start
        )
        pairs = torch.stack([entries, row.to(torch.int32)], dim=1)
        parts = [pairs if to in (None, rank) else pairs[:0] for rank in ranks]
        found = self.exchange.send_rows(parts)
        if to not in (None, self.exchange.rank):
            return None
        row, column = found.long().cpu().unbind(1)
        whole = PseudoLabelMemory(self.num_instances, storage="lists", device="cpu")
        assert whole.tables is not None
        whole.tables.take_(row, column)
        return whole

    def pairs(self, first: int = 0, last: int | None = None) -> tuple[Tensor, Tensor]:
        """Not here: :meth:`gather` gives a memory that has all columns."""
        raise NotImplementedError("P is divided by columns over the processes: ask gather() for its pairs")

    def to_dense(self) -> Tensor:
        """Not here: :meth:`gather` gives a memory that has all columns."""
        raise NotImplementedError("P is divided by columns over the processes: ask gather() for its matrix")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super(PseudoLabelMemory, self)._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in zip(SAVED, self.tables.saved("column"), strict=True):
            destination[prefix + name] = tensor
        destination[f"{prefix}rows"] = self.division.saved(self.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = [prefix + name for name in SAVED]
        found = [state_dict.get(name) for name in names]
        if all(isinstance(tensor, Tensor) for tensor in found):
            try:
                self.division.check_saved(state_dict.get(f"{prefix}rows"))
                self.tables.load_(found[0], found[1], side="column")  # type: ignore[arg-type]
            except (TypeError, ValueError) as error:
                args[4].append(f"{prefix}{error}")  # of those that load_state_dict() raises as one
        else:
            args[2].extend(names)  # missing
        rest = {name: value for name, value in state_dict.items() if name not in (*names, f"{prefix}rows")}
        super(PseudoLabelMemory, self)._load_from_state_dict(rest, prefix, *args)

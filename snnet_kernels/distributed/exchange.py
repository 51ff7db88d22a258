"""What travels between the processes of a group: equal blocks to all, parts to each, and an agreement before them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
Facts = dict[str, float]  # integers below 2^53 and numbers: name and value

CALLS = (
    "forward", "update_", "initialize_", "mark_written_", "build_lists_", "renew_lists_", "current_lists",
    "predict_labels", "nearest", "rows", "columns", "write_", "gather",
)  # fmt: skip
MOST_FACTS = 20  # stated in one agreement

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its old name


class Exchange:
    """The collectives of one group. Tensors travel as bytes; ``sent`` counts those that this process has sent."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        if not isinstance(group, dist.ProcessGroup):  # new_group() gives another object to who is no member
            raise TypeError(
                f"process_group must be a torch.distributed.ProcessGroup that this process is in, got {group!r}"
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.sent = 0

    def __deepcopy__(self, memo: dict[int, object]) -> Exchange:
        return Exchange(self.group)  # a copy of a module works with the same processes

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, of one shape and type, stacked in order of the ranks: [R, ...]."""
        own = tensor.contiguous()
        found = own.new_empty(self.size, *own.shape)
        if own.numel():
            _all_gather(_bytes(found), _bytes(own), group=self.group)
            self.sent += own.nbytes * (self.size - 1)
        return found

    def gather_rows(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """The rows of all ranks, ``counts[r]`` of rank r: they travel in blocks of the largest count."""
        most = max(counts, default=0)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        return [block[:count] for block, count in zip(self.gather(padded), counts, strict=True)]

    def send(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """``parts[r]`` goes to rank r; what comes from each, of the type of the parts and of known ``shapes[r]``."""
        like = parts[0]
        flat = torch.cat([_bytes(part.contiguous()) for part in parts])
        sizes = [like.element_size() * math.prod(shape) for shape in shapes]
        found = flat.new_empty(sum(sizes))
        dist.all_to_all_single(found, flat, sizes, [part.nbytes for part in parts], group=self.group)
        self.sent += flat.nbytes - parts[self.rank].nbytes
        return [
            block.clone().view(like.dtype).view(tuple(shape))
            for block, shape in zip(found.split(sizes), shapes, strict=True)
        ]

    def send_rows(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """``parts[r]`` [m, ...] goes to rank r, any number of rows; one exchange more, of the numbers."""
        numbers = self.gather(torch.tensor([len(part) for part in parts], device=parts[0].device))
        coming = numbers[:, self.rank].tolist()
        if not int(numbers.sum()):
            return [part[:0] for part in parts]
        return self.send(parts, [(count, *parts[0].shape[1:]) for count in coming])

    def broadcast(self, tensor: Tensor, shape: Sequence[int], rank: int) -> Tensor:
        """The ``tensor`` of ``rank``, which has ``shape``."""
        own = rank == self.rank
        found = tensor.contiguous() if own else tensor.new_empty(tuple(shape))
        if found.numel() and self.size > 1:
            dist.broadcast(found, group=self.group, group_src=rank)
            self.sent += found.nbytes * (self.size - 1) if own else 0
        return found

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it holds on one of the ranks."""
        return bool(self.gather(torch.tensor([flag], device=device)).any())

    def agreed(
        self, call: str, device: torch.device, check: Callable[[], T], facts: Callable[[T], Facts]
    ) -> T:
        """What ``check`` returns, once all ranks make this ``call``, without an error, and state the same ``facts``.

        An error of ``check`` is raised on its rank as it is; the others raise RuntimeError, which names the rank. So
        they do where another call is made; another fact is a ValueError that names it.
        """
        try:
            checked = check()
        except Exception:
            self._state(call, {}, device, failed=True)
            raise
        own = facts(checked)
        stated = self._state(call, own, device)
        for rank, (failed, *_) in enumerate(stated):
            if failed:
                raise RuntimeError(
                    f"rank {rank} of the group refused its arguments of {call}: see its own error"
                )
        calls = [CALLS[int(row[1])] for row in stated]
        if len(set(calls)) > 1:
            raise RuntimeError(
                f"the ranks of a group must make the same calls in the same order, got {calls}"
            )
        for place, name in enumerate(own, 2):
            values = [int(row[place]) if row[place].is_integer() else row[place] for row in stated]
            if len(set(values)) > 1:
                raise ValueError(f"{name} must be the same on all ranks of the group, got {values}")
        return checked

    def _state(
        self, call: str, facts: Facts, device: torch.device, failed: bool = False
    ) -> list[list[float]]:
        stated = [float(failed), CALLS.index(call), *facts.values()]
        own = torch.tensor(stated + [0] * (2 + MOST_FACTS - len(stated)), dtype=torch.float64, device=device)
        return self.gather(own).tolist()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)

"""What travels between the processes of a group: equal blocks to all, parts to each, and an agreement before them."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
Facts = dict[str, float]  # integers below 2^53 and numbers: name and value

CALLS = (
    "forward", "update_", "initialize_", "mark_written_", "build_lists_", "renew_lists_", "current_lists",
    "predict_labels", "nearest", "rows", "columns", "write_", "gather",
)  # fmt: skip
MOST_FACTS = 18  # stated in one agreement
STATEMENT = 8 * (6 + MOST_FACTS)  # bytes
TAG = 0x534E4E45  # of messages between CPUs: the caller may send others through the same group

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its old name


class Room:
    """How many bytes an agreement has for what travels with it: as many as came with the call that has followed such a
    call before. All ranks of a group know the same."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.bytes, self._last, self._after = 0, "", dict[str, int]()

    def follow(self, call: str, carried: int) -> None:
        """All ranks have made this call."""
        self._after[self._last] = carried
        self._last, self.bytes = call, self._after.get(call, 0)


_ROOMS: WeakKeyDictionary[dist.ProcessGroup, Room] = WeakKeyDictionary()


class Statement(NamedTuple):
    """What a rank says before a call, 8 bytes each."""

    failed: float
    call: float
    load: float  # bytes that are to travel with it
    flag: float  # may differ
    room_for_pairs: float
    candidates_told: float
    facts: tuple[float, ...]


class Agreed(Generic[T]):
    """What all ranks have agreed on; ``tensors`` [R, ...] as of :meth:`Exchange.gather_all`, None if they must still
    travel."""

    def __init__(self, checked: T, flags: list[int], tensors: list[Tensor] | None) -> None:
        self.checked, self.flags, self.tensors = checked, flags, tensors


def check_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    if not isinstance(group, dist.ProcessGroup):  # new_group() gives another object to who is no member
        raise TypeError(
            f"process_group must be a torch.distributed.ProcessGroup that this process is in, got {group!r}"
        )
    return group


class Exchange:
    """The collectives of one group: ``sent`` counts the bytes that this process has sent, and ``rounds`` the
    collectives."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = check_group(group)
        _let_others_compute()
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.sent = self.rounds = 0
        # Of what the last batch needed: pairs of an update, candidates of a sample. After an agreement all ranks have
        # the same, also where the object of one of them is new.
        self.room_for_pairs = self.candidates_told = 0

    def __deepcopy__(self, memo: dict[int, object]) -> Exchange:
        return Exchange(self.group)  # a copy of a module works with the same processes

    @property
    def room(self) -> Room:
        """That of the next agreement of the group."""
        return _ROOMS.setdefault(self.group, Room())

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, of one shape and type, stacked in order of the ranks: [R, ...]."""
        return self._gathered(tensor.contiguous().view(-1)).view(self.size, *tensor.shape)

    def gather_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The same of several tensors at once: [R, ...] each."""
        return parted(self._gathered(joined(tensors)), tensors)

    def _gathered(self, own: Tensor) -> Tensor:
        """The flat tensors of all ranks, [R, m]."""
        found = own.new_empty(self.size, len(own))
        if len(own) == 0:
            return found
        if own.device.type == "cpu":
            self._exchange(found, [own] * self.size)
        else:
            _all_gather(found.view(-1), own, group=self.group)
        self.sent += own.nbytes * (self.size - 1)
        self.rounds += 1
        return found

    @torch.no_grad()
    def _exchange(self, found: Sequence[Tensor] | Tensor, parts: Sequence[Tensor]) -> None:
        """``parts[r]`` goes to rank r, and ``found[r]`` comes from there: between CPUs by single messages, which gloo
        passes on without one more thread."""
        found[self.rank].copy_(parts[self.rank])
        others = [rank for rank in range(self.size) if rank != self.rank]
        requests = [self.group.recv([found[rank]], rank, TAG) for rank in others if found[rank].numel()]
        requests += [self.group.send([parts[rank]], rank, TAG) for rank in others if parts[rank].numel()]
        for request in requests:
            request.wait()

    def gather_rows(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """The rows of all ranks, ``counts[r]`` of rank r: they travel in blocks of the largest count."""
        found = self.gather(padded(rows, max(counts, default=0)))
        return [block[:count] for block, count in zip(found, counts, strict=True)]

    def send(self, rows: Tensor, counts: Sequence[int], coming: Sequence[int]) -> Tensor:
        """The first ``counts[0]`` of the ``rows`` [Σ counts, ...] go to rank 0, the next to rank 1, and so on.

        What comes from each: ``coming[r]`` rows from rank r, one after the other.
        """
        found = rows.new_empty(sum(coming), *rows.shape[1:])
        self._send(found, rows.contiguous(), list(coming), list(counts))
        return found

    def send_parts(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """``parts[r]`` goes to rank r; what comes from each, of the type of the parts and of known ``shapes[r]``."""
        like, flat = parts[0], joined(parts)
        sizes = [like.element_size() * math.prod(shape) for shape in shapes]
        found = flat.new_empty(sum(sizes))
        self._send(found, flat, sizes, [part.nbytes for part in parts])
        return [
            block.clone().view(like.dtype).view(tuple(shape))
            for block, shape in zip(found.split(sizes), shapes, strict=True)
        ]

    def _send(self, found: Tensor, own: Tensor, coming: list[int], going: list[int]) -> None:
        """So many rows from and to each, in order of the ranks."""
        if own.device.type == "cpu":
            self._exchange(found.split(coming), own.split(going))
        else:
            dist.all_to_all_single(found, own, coming, going, group=self.group)
        self.sent += own.nbytes // max(len(own), 1) * (len(own) - going[self.rank])
        self.rounds += 1

    def send_rows(self, parts: Sequence[Tensor]) -> Tensor:
        """``parts[r]`` [m, ...] goes to rank r, any number of rows; one exchange more, of the numbers. What comes from
        rank 0, then from rank 1, and so on."""
        counts = [len(part) for part in parts]
        numbers = self.gather(torch.tensor(counts, device=parts[0].device))
        if not int(numbers.sum()):
            return parts[0][:0]
        return self.send(torch.cat(list(parts)), counts, numbers[:, self.rank].tolist())

    def broadcast(self, tensor: Tensor, shape: Sequence[int], rank: int) -> Tensor:
        """The ``tensor`` of ``rank``, which has ``shape``."""
        own = rank == self.rank
        found = tensor.contiguous() if own else tensor.new_empty(tuple(shape))
        if found.numel() and self.size > 1:
            dist.broadcast(found, group=self.group, group_src=rank)
            self.sent += found.nbytes * (self.size - 1) if own else 0
            self.rounds += 1
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
        return self.agreed_with(call, device, check, facts, lambda _: (0, ())).checked

    def agreed_with(
        self,
        call: str,
        device: torch.device,
        check: Callable[[], T],
        facts: Callable[[T], Facts],
        carry: Callable[[T], tuple[int, Sequence[Tensor]]],
    ) -> Agreed[T]:
        """The same with what ``carry`` gives, in the same exchange: a flag that may differ, and tensors, for which
        there is room if there was that much to carry at such a call before. The same facts and flags make their shapes.
        """
        room = self.room
        try:
            checked = check()
            own = facts(checked)
            flag, tensors = carry(checked)
            pieces = [_bytes(tensor.contiguous()) for tensor in tensors]
        except Exception:
            self._state(Statement(1, CALLS.index(call), 0, 0, 0, 0, ()), [], room.bytes, device)
            room.forget()
            raise
        load = sum(len(piece) for piece in pieces)
        needed = self.room_for_pairs, self.candidates_told
        statement = Statement(0, CALLS.index(call), load, flag, *needed, tuple(own.values()))
        stated, loads = self._state(statement, pieces if load <= room.bytes else [], room.bytes, device)
        try:
            _refuse_differences(call, list(own), stated)
        except Exception:
            room.forget()
            raise
        came = 0 < load <= room.bytes and all(other.load == load for other in stated)
        room.follow(call, int(max(other.load for other in stated)))
        self.room_for_pairs = int(max(other.room_for_pairs for other in stated))
        self.candidates_told = int(max(other.candidates_told for other in stated))
        return Agreed(
            checked,
            [int(other.flag) for other in stated],
            parted(loads[:, :load], tensors) if came else None,
        )

    def _state(
        self, own: Statement, pieces: Sequence[Tensor], room: int, device: torch.device
    ) -> tuple[list[Statement], Tensor]:
        """The statements of all ranks, and the bytes that have come with them [R, room]; ``pieces`` of this rank."""
        numbers = [*own[:-1], *own.facts]
        numbers += [0.0] * (STATEMENT // 8 - len(numbers))
        told = torch.tensor(numbers, dtype=torch.float64, device=device).view(torch.uint8)
        left = told.new_zeros(room - sum(len(piece) for piece in pieces))
        found = self._gathered(torch.cat([told, *pieces, left]))
        rows = as_type(found[:, :STATEMENT], torch.float64).tolist()
        stated = [Statement(row[0], row[1], row[2], row[3], row[4], row[5], tuple(row[6:])) for row in rows]
        return stated, found[:, STATEMENT:]


def _refuse_differences(call: str, names: Sequence[str], stated: Sequence[Statement]) -> None:
    """One error on all ranks where one of them has failed, makes another call or states another fact."""
    for rank, other in enumerate(stated):
        if other.failed:
            raise RuntimeError(f"rank {rank} of the group refused its arguments of {call}: see its own error")
    calls = [CALLS[int(other.call)] for other in stated]
    if len(set(calls)) > 1:
        raise RuntimeError(f"the ranks of a group must make the same calls in the same order, got {calls}")
    for place, name in enumerate(names):
        values = [other.facts[place] for other in stated]
        if len(set(values)) > 1:
            told = [int(value) if value.is_integer() else value for value in values]
            raise ValueError(f"{name} must be the same on all ranks of the group, got {told}")


def _let_others_compute() -> None:
    """Make the threads by which gloo receives wait for a free CPU, and not interrupt the thread that computes.

    That one may hold the lock of a connection, in the middle of sending: the other would ask for it over and over, and
    keep the CPU for some milliseconds.
    """
    threads = Path("/proc/self/task")
    for task in threads.iterdir() if sys.platform == "linux" and threads.is_dir() else ():
        with suppress(OSError):  # it has ended, or its policy is not ours to set
            if (task / "comm").read_bytes().strip() != b"gloo_tcp_loop":
                continue
            if os.sched_getscheduler(int(task.name)) == os.SCHED_OTHER:
                os.sched_setscheduler(int(task.name), os.SCHED_BATCH, os.sched_param(0))


def padded(rows: Tensor, count: int) -> Tensor:
    """``rows`` [m, ...] with zeros behind them, [count, ...]."""
    if len(rows) == count:
        return rows
    found = rows.new_zeros(count, *rows.shape[1:])
    found[: len(rows)] = rows
    return found


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Their bytes one after the other."""
    return torch.cat([_bytes(tensor.contiguous()) for tensor in tensors])


def parted(blocks: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Of bytes [R, ...] that every rank has ``joined``, the tensors [R, ...], of shapes and types as ``like``."""
    parts = blocks.split([tensor.nbytes for tensor in like], dim=1)
    return [
        as_type(part, tensor.dtype).view(len(blocks), *tensor.shape)
        for part, tensor in zip(parts, like, strict=True)
    ]


def as_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The same bytes [..., m] as another type. What has one row, or no entry, may have any strides: it is copied."""
    width = tensor.shape[-1] * tensor.element_size() // dtype.itemsize
    flat = tensor.clone(memory_format=torch.contiguous_format).view(-1)
    return flat.view(dtype).view(*tensor.shape[:-1], width)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)

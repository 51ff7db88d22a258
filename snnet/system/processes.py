"""Several processes of one command, as ``torchrun`` starts them: which one this is, and how they meet.

Without torchrun there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from snnet.errors import ProcessesEnded, UserError
from snnet.system.launch import own_place
from snnet.system.meeting import fresh_store
from snnet.system.progress import set_quiet
from snnet.system.terminal import speak_as

MEETING = timedelta(minutes=10)  # how long one waits until all have started
PATIENCE = timedelta(days=1)  # how long one waits while others work; the end of a process is noticed at once
# Words of the errors of gloo, NCCL and their store where another process has ended.
BROKEN = ("connect", "broken pipe", "socket closed", "remote process exited", "communicator was aborted")
TURN = 0.002  # seconds between two looks whether all have come
LINGER = timedelta(seconds=2)  # how long rank 0 waits for others that may have met the error that it met

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """This process: its rank, from 0 to ``count`` - 1, and ``local_rank``, its rank on its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that prints and writes."""
        return self.rank == 0

    def share(self, items: int, block: int) -> range:
        """The consecutive items that this process works on: whole blocks of ``block`` items, as evenly as they go."""
        blocks = -(-items // block)
        first, last = (blocks * rank // self.count * block for rank in (self.rank, self.rank + 1))
        return range(min(first, items), min(last, items))

    def check_device(self, device: torch.device) -> None:
        """Raise :class:`~snnet.errors.UserError` where several processes would share a GPU."""
        if self.count == 1 or device.type != "cuda":
            return
        if device.index is not None:
            raise UserError(
                f"--device {device} is one GPU for {self.count} processes: with cuda each has its own"
            )
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {self.local_rank + 1} of this machine has no GPU: torch sees "
                f"{torch.cuda.device_count()}"
            )

    def first_ahead(self, work: Callable[[], Result]) -> Result:
        """``work()`` in rank 0, then in the others: rank 0 alone makes what is made on first use."""
        if not self.is_first:
            self.meet()
        result = work()
        if self.is_first:
            self.meet()
        return result

    def gathered(self, value: Any) -> list[Any] | None:
        """In rank 0 the values of all processes, in order; None in the others."""
        if self.count == 1:
            return [value]
        self.meet()
        values = [None] * self.count if self.is_first else None
        dist.gather_object(value, values)
        return values

    def everywhere(self, value: Result) -> list[Result]:
        """The values of all processes, in order."""
        if self.count == 1:
            return [value]
        self.meet()
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        """Raise :class:`~snnet.errors.UserError` in all processes where one has another value than rank 0.

        ``facts`` are values by the name that the error gives them. The error names the first one that differs.
        """
        first, *others = self.everywhere(facts)
        for rank, found in enumerate(others, 1):
            for name, value in first.items():
                other = found.get(name)
                if other != value:
                    raise UserError(
                        f"{name} is {value} on rank 0 and {other} on rank {rank}: all processes need the same"
                    )

    def meet(self) -> None:
        """Wait until all processes have come here, however long one of them works; signals are answered meanwhile."""
        if self.count == 1:
            return
        work = dist.barrier(async_op=True)
        assert work is not None  # this process is one of the group
        while not work.is_completed():  # in wait() Python would hear of no signal
            time.sleep(TURN)
        work.wait()

    @contextmanager
    def one_warns(self) -> Iterator[None]:
        """Let rank 0 alone warn, of what all processes meet in the block."""
        with warnings.catch_warnings():
            if not self.is_first:
                warnings.simplefilter("ignore")
            yield

    def group(self, device: torch.device, timeout: float) -> dist.ProcessGroup | None:
        """The processes for collectives of tensors on ``device``; None where there is one process.

        NCCL on GPUs, gloo on CPUs. A process that waits in a collective for ``timeout`` seconds ends with
        :class:`~snnet.errors.ProcessesEnded`. Call :meth:`meet` before it where the processes have worked for different
        times.
        """
        self.check_device(device)
        if self.count == 1:
            return None
        backend = "nccl" if device.type == "cuda" else "gloo"
        group = dist.new_group(backend=backend, timeout=timedelta(seconds=timeout))
        assert isinstance(group, dist.ProcessGroup)  # this process is one of it
        return group


ALONE = Processes()


@contextmanager
def several_processes() -> Iterator[Processes]:
    """This process among those that torchrun started; behind the block all have come to its end.

    Rank 0 alone prints lines and bars; the others' errors and warnings begin with their rank, and an error that many
    have is told once. Raises :class:`~snnet.errors.ProcessesEnded` where another one has ended before, and
    :class:`~snnet.errors.UserError` where they cannot meet.
    """
    found = _found()
    if found.count == 1:
        yield found
        return
    speak_as(found.rank)
    if not found.is_first:
        set_quiet(True)
    try:
        _begin()
        yield found
        found.meet()
        dist.destroy_process_group()
    except UserError as error:
        if not _is_first_to_tell(error, found):
            raise SystemExit(2) from None
        raise
    except RuntimeError as error:
        text = str(error).lower()
        if not isinstance(error, dist.DistError) and "gloo" not in text:
            raise
        if any(words in text for words in BROKEN):  # a connection times out by itself where a machine is gone
            line = "another process of this command has ended, and so does this one"
        elif "timed out" in text or "timeout" in text:
            line = "another process of this command was silent for --timeout seconds: this one ends"
        else:
            raise
        raise ProcessesEnded(f"{line} ({_cause(error)})") from None


def _begin() -> None:
    """Let all processes meet."""
    try:
        store, rank, count = fresh_store(MEETING)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes cannot meet: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """The first line of what torch says, without gloo's advice."""
    line = str(error).strip().partition("\n")[0]
    return line.partition(". This is typically caused by")[0]


def take_own_gpu() -> None:
    """Let "cuda" mean the GPU of this process among those that torchrun started."""
    found = _found()
    if found.are_several and found.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(found.local_rank)


def processes_here() -> int:
    """How many processes of this command share this machine."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(count) if _found().count > 1 and count.isdecimal() else 1


def _found() -> Processes:
    return Processes(*own_place())


def _is_first_to_tell(error: UserError, processes: Processes) -> bool:
    """Whether no other process has told the same; where they cannot be asked, it is told twice.

    Rank 0 may keep what was told. It goes on once the others have asked, or after :data:`LINGER`.
    """
    if not dist.is_initialized():
        return True
    try:
        store = dist.distributed_c10d._get_default_store()
        name = f"snnet/error/{zlib.crc32(str(error).encode(errors='replace'))}"
        is_first = int(store.add(name, 1)) == 1
        asked = store.add("snnet/asked", 1)
        end = time.monotonic() + LINGER.total_seconds()
        while processes.is_first and asked < processes.count and time.monotonic() < end:
            time.sleep(0.02)
            asked = store.add("snnet/asked", 0)
        return is_first
    except RuntimeError:
        return True

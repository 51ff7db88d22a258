"""What ``torchrun`` says in the environment to each process that it starts; torch is not needed to read it."""

from __future__ import annotations

import os


def own_place() -> tuple[int, int, int]:
    """The rank of this process, how many there are, and its rank on its machine.

    It is alone where one of torchrun's three variables is missing.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(os.environ.get(name, "").isdecimal() for name in names):
        return 0, 1, 0
    rank, count, local_rank = (int(os.environ[name]) for name in names)
    return rank, count, local_rank

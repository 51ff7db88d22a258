"""Where the processes of one start meet: in a store that no earlier start has written to.

With ``--max-restarts`` torchrun starts the processes again on the old store, which has the addresses of dead ones.
"""

from __future__ import annotations

import secrets
import time
from datetime import timedelta

import torch.distributed as dist

from snnet.errors import ProcessesEnded

_TURN = 0.02  # seconds between two looks


def fresh_store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """The store of torchrun's environment, under a prefix of this start; this process's rank; how many there are.

    Raises :class:`~snnet.errors.ProcessesEnded` where another process has not come after ``timeout``.
    """
    store, rank, count = next(dist.rendezvous("env://", timeout=timeout))
    return dist.PrefixStore(_agreed_word(store, rank, count, timeout), store), rank, count


def _agreed_word(store: dist.Store, rank: int, count: int, timeout: timedelta) -> str:
    """A word of rank 0's. The others ask for it with words of their own, which no dead process has used."""
    own, end = secrets.token_hex(8), time.monotonic() + timeout.total_seconds()
    if rank > 0:
        store.set(f"snnet/ask/{rank}", own)
        while not store.check([f"snnet/answer/{own}"]):
            _sleep(end)
        word = store.get(f"snnet/answer/{own}").decode()
        store.add(f"snnet/met/{word}", 1)
        return word
    while store.add(f"snnet/met/{own}", 0) < count - 1:
        for other in range(1, count):
            if store.check([f"snnet/ask/{other}"]):
                asked = store.get(f"snnet/ask/{other}").decode()
                store.set(f"snnet/answer/{asked}", own)
        _sleep(end)
    return own


def _sleep(end: float) -> None:
    if time.monotonic() > end:
        raise ProcessesEnded("another process of this command has not come, and so this one ends")
    time.sleep(_TURN)

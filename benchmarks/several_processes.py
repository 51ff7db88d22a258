"""The step of a head divided over two gloo processes of one thread beside that of one process of two threads.

``python -m benchmarks.several_processes`` on a quiet machine of two cores: both take turns, on the same batches of 64
among 12,936 images of 512 dimensions, without a network. CPU time and the number of collectives hold on a busy machine
too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels.testing import clustered_features

N, D, BATCH, IDENTITIES = 12_936, 512, 64, 751


class Step(NamedTuple):
    wall: float  # milliseconds
    cpu: float  # of one process
    rounds: int  # collectives
    sent: int  # bytes, of one process


def serve(pipe: Connection, rank: int, size: int, file: str) -> None:
    """Be one of ``size`` processes: as many steps as the pipe says, and what each took."""
    torch.set_num_threads(2 // size)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    head = sk.SNNetHead(N, D, label_storage="lists", process_group=dist.group.WORLD)
    memory = clustered_features(N, D, identities=IDENTITIES)
    head.initialize_(memory)
    head.momentum = 0.3
    generator = torch.Generator().manual_seed(0)
    part = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    while number := pipe.recv():
        steps = []
        for _ in range(number):
            index = torch.randperm(N, generator=generator)[:BATCH]
            noise = normalize(torch.randn(BATCH, D, generator=generator), dim=1)
            live = normalize(memory[index] + 0.3 * noise, dim=1)[part].requires_grad_()
            if size > 1:
                dist.barrier()
            steps.append(timed_step(head, index[part], live))
        pipe.send(steps)


def timed_step(head: sk.SNNetHead, index: torch.Tensor, live: torch.Tensor) -> Step:
    exchange = getattr(head, "exchange", None)
    counts = (exchange.rounds, exchange.sent) if exchange else (0, 0)
    wall, cpu = time.perf_counter(), time.process_time()
    head(live, index).backward()
    head.update_(index, live.detach())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = (exchange.rounds, exchange.sent) if exchange else (0, 0)
    return Step(1e3 * wall, 1e3 * cpu, after[0] - counts[0], after[1] - counts[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20, help="of ten steps each")
    turns = parser.parse_args().turns
    context = get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "2"  # of each, which sets its own number
    with tempfile.TemporaryDirectory() as folder:
        groups: dict[str, list[Connection]] = {}
        for name, size in (("one process", 1), ("two processes", 2)):
            for rank in range(size):
                own, other = context.Pipe()
                arguments = (other, rank, size, f"{folder}/meeting")
                context.Process(target=serve, args=arguments, daemon=True).start()
                other.close()  # else a child that has died would leave the parent waiting
                groups.setdefault(name, []).append(own)
        found: dict[str, list[Step]] = {name: [] for name in groups}
        for turn in range(turns + 3):
            for name, pipes in groups.items():
                for pipe in pipes:
                    pipe.send(10)
                steps = [step for pipe in pipes for step in pipe.recv()]
                found[name] += steps if turn > 2 else []  # lists, labels and rooms are there
        for pipes in groups.values():
            for pipe in pipes:
                pipe.send(0)
    for name, steps in found.items():
        middle = Step(*(statistics.median(values) for values in zip(*steps, strict=True)))
        fastest = min(step.wall for step in steps)
        print(
            f"{name}: {middle.wall:.1f} ms a step (fastest {fastest:.1f}), {middle.cpu:.1f} ms of CPU time each, "
            f"{middle.rounds:.0f} collectives, {middle.sent:,.0f} bytes sent by each"
        )
    one, two = (statistics.median(step.wall for step in steps) for steps in found.values())
    print(f"two processes take {two / one:.2f} times as long")


if __name__ == "__main__":
    main()

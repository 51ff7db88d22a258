"""The step of a head divided over two gloo processes of one thread beside that of one process of two threads.

``python -m benchmarks.several_processes`` on a quiet machine of two cores: both take turns, on the same batches of 64
among 12,936 images of 512 dimensions, without a network. CPU time and the number of collectives hold on a busy machine
too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch.distributed as dist

import snnet_kernels as sk

from .case import MOMENTUM, Case
from .shapes import SIZES, Shape

SHAPE = Shape("market", SIZES["market"], 512, 64)


def serve(pipe: Connection, rank: int, size: int, file: str) -> None:
    """One of ``size`` processes: makes as many steps as the pipe asks for, and sends what each took."""
    torch.set_num_threads(2 // size)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    head = sk.SNNetHead(SHAPE.n, SHAPE.d, label_storage="lists", process_group=dist.group.WORLD)
    case = Case(SHAPE, torch.device("cpu"))
    head.initialize_(case.memory)
    head.momentum = MOMENTUM
    generator = torch.Generator().manual_seed(0)
    part = slice(rank * SHAPE.batch // size, (rank + 1) * SHAPE.batch // size)
    while number := pipe.recv():
        steps = []
        for batch in (case.draw(generator) for _ in range(number)):
            if size > 1:
                dist.barrier()
            steps.append(timed_step(head, batch.index[part], batch.features[part].clone().requires_grad_()))
        pipe.send(steps)


def timed_step(head: sk.SNNetHead, index: torch.Tensor, live: torch.Tensor) -> list[float]:
    """Milliseconds by the clock and of this process, collectives, and bytes that it sent."""

    def counts() -> np.ndarray:
        exchange = getattr(head, "exchange", None)
        sent = (exchange.rounds, exchange.sent) if exchange else (0, 0)
        return np.array([1e3 * time.perf_counter(), 1e3 * time.process_time(), *sent])

    before = counts()
    head(live, index).backward()
    head.update_(index, live.detach())
    return (counts() - before).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20, help="of ten steps each")
    turns = parser.parse_args().turns
    context = get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "2"  # of each, which sets its own number
    with tempfile.TemporaryDirectory() as folder:
        groups: dict[str, list[Connection]] = {"one process": [], "two processes": []}
        for size, pipes in enumerate(groups.values(), start=1):
            for rank in range(size):
                own, other = context.Pipe()
                arguments = (other, rank, size, f"{folder}/meeting")
                context.Process(target=serve, args=arguments, daemon=True).start()
                other.close()  # else a child that has died would leave the parent waiting
                pipes.append(own)
        found: dict[str, list[list[float]]] = {name: [] for name in groups}
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
        wall, cpu, rounds, sent = np.median(steps, axis=0)
        print(
            f"{name}: {wall:.1f} ms a step (fastest {np.min(steps, axis=0)[0]:.1f}), {cpu:.1f} ms of CPU time each, "
            f"{rounds:.0f} collectives, {sent:,.0f} bytes sent by each"
        )
    one, two = (np.median(steps, axis=0)[0] for steps in found.values())
    print(f"two processes take {two / one:.2f} times as long")


if __name__ == "__main__":
    main()

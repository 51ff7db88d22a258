"""SNNetHead in several processes: the network in DistributedDataParallel, the head outside of it.

torchrun --nproc-per-node 2 examples/distributed_loop.py
"""

import os

import torch
import torch.distributed as dist
from pedestrians import BATCH, accuracy, arguments, batches, draw, extract, network
from torch.nn.parallel import DistributedDataParallel

import snnet_kernels as sk

flags = arguments(__doc__)
on_gpu = flags.device != "cpu"
if on_gpu:
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("nccl" if on_gpu else "gloo")
rank, processes = dist.get_rank(), dist.get_world_size()
if BATCH % processes:
    raise SystemExit(f"the number of processes must divide the batch of {BATCH} images, got {processes}")
each = BATCH // processes  # samples of a process: the same number in all


def say(line: str) -> None:
    if rank == 0:
        print(line)


data = draw(flags.images, flags.device)
plain = network(flags.device)
model = DistributedDataParallel(plain)
head = sk.SNNetHead(
    len(data.images), plain.feature_dim, threshold=0.8, hard_negative_ratio=0.05, device=flags.device,
    process_group=dist.group.WORLD,
)  # fmt: skip
own = head.memory.own_rows  # each process extracts what it keeps
head.initialize_(extract(plain, data.images[own.start : own.stop]))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)

say(f"right across cameras: {accuracy(plain, data):.1%}")
for epoch in range(flags.epochs):
    head.warmup = epoch < flags.warm_up
    head.momentum = 0.5 * epoch / flags.epochs
    head.memory.renew_lists_()  # makes lists afresh where many rows have outgrown them
    for batch, index in batches(data.images, epoch):  # the same global batches in every process
        part = slice(rank * each, (rank + 1) * each)
        features = model(batch[part])
        loss = head(features, index[part])  # the mean over the own samples, as DDP expects it
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        head.update_(index[part], features.detach())
    total = loss.detach().clone()
    dist.all_reduce(total)
    positives = head.label_statistics()["positives"]  # of the global batch
    say(f"epoch {epoch}: loss {total / processes:.3f}, {positives:.1f} positives an image")
say(f"right across cameras: {accuracy(plain, data):.1%}")
torch.save(head.state_dict(), f"head-{rank}.pt")  # a piece; snnet_kernels.distributed joins and divides them
dist.destroy_process_group()

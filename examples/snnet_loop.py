"""SNNetHead in a plain PyTorch loop.

python examples/snnet_loop.py
"""

from itertools import islice

import torch
import unfused
from pedestrians import arguments, batches, draw, extract, neighbor_accuracy, network
from speed import speed_up

import snnet_kernels as sk

flags = arguments(__doc__)
images, identities = draw(flags.images, flags.device)
model = network(flags.device)
head = sk.SNNetHead(len(images), model.feature_dim, threshold=0.7, device=flags.device)
head.initialize_(extract(model, images))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

print(f"nearest neighbour right: {neighbor_accuracy(model, images, identities):.1%}")
for epoch in range(flags.epochs):
    head.warmup = epoch < 1  # each image its own class
    head.momentum = 0.5 * epoch / flags.epochs
    for batch, index in batches(images, epoch):
        features = model(batch)
        loss = head(features, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        head.update_(index, features.detach())
    print(f"epoch {epoch}: loss {loss:.3f}, {head.label_statistics()['positives']:.1f} positives an image")
print(f"nearest neighbour right: {neighbor_accuracy(model, images, identities):.1%}")

plain = unfused.Head(len(images), model.feature_dim, flags.device)
fused = sk.SNNetHead(len(images), model.feature_dim, device=flags.device)
for form in (fused, plain):
    form.initialize_(head.memory.features)
    form.momentum = 0.3


def step(form, features, index):
    features = features.clone().requires_grad_()
    loss = form(features, index)
    loss.backward()
    form.update_(index, features.detach())
    return loss.item()


steps = [(model(batch).detach(), index) for batch, index in islice(batches(images, 0), 6)]
speed_up("labels, loss and update", lambda *x: step(fused, *x), lambda *x: step(plain, *x), steps)

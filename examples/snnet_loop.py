"""SNNetHead in a plain PyTorch loop.

python examples/snnet_loop.py
"""

from itertools import islice

import torch
import unfused
from pedestrians import accuracy, arguments, batches, draw, extract, network
from speed import speed_up

import snnet_kernels as sk

flags = arguments(__doc__)
data = draw(flags.images, flags.device)
model = network(flags.device)
options = {"threshold": 0.8, "hard_negative_ratio": 0.05, "device": flags.device}
head = sk.SNNetHead(len(data.images), model.feature_dim, **options)
head.initialize_(extract(model, data.images))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)

print(f"right across cameras: {accuracy(model, data):.1%}")
for epoch in range(flags.epochs):
    head.warmup = epoch < flags.warm_up
    head.momentum = 0.5 * epoch / flags.epochs
    head.memory.renew_lists_()  # makes lists afresh where many rows have outgrown them
    for batch, index in batches(data.images, epoch):
        features = model(batch)
        loss = head(features, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        head.update_(index, features.detach())
    positives = head.label_statistics()["positives"]
    print(f"epoch {epoch}: loss {loss.detach():.3f}, {positives:.1f} positives an image")
print(f"right across cameras: {accuracy(model, data):.1%}")


def step(form, features, index):
    features = features.clone().requires_grad_()
    loss = form(features, index)
    loss.backward()
    form.update_(index, features.detach())
    return loss.item()


fused = sk.SNNetHead(len(data.images), model.feature_dim, **options)
plain = unfused.Head(len(data.images), model.feature_dim, **options)
for form in (fused, plain):
    form.initialize_(head.memory.features)
    form.momentum = 0.3
steps = [(model(batch).detach(), index) for batch, index in islice(batches(data.images, 0), 6)]
speed_up("labels, loss and update", lambda *x: step(fused, *x), lambda *x: step(plain, *x), steps)

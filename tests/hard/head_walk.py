"""Random walks through the methods of the head; see :mod:`tests.hard.walks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import reference
from tests.hard.drawing import close, equal
from tests.hard.walk import Random, Walk

LOSS_TOLERANCE = 2e-6


class HeadWalk(Walk):
    """SNNetHead beside M, P and the reference's functions."""

    module: sk.SNNetHead

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.options = {
            "threshold": float((0.25, 0.3, 0.6)[random.integers(3)]),
            "min_rank": int(random.integers(12)),
        }
        self.live = bool(random.integers(3) == 0)
        self.kind = ("mmcl", "l2")[random.integers(2)]
        self.module = sk.SNNetHead(
            self.n,
            self.d,
            **self.options,
            loss_kind=self.kind,
            label_source="feature" if self.live else "memory",
            neighbors=self.neighbors(),
        )
        self.memory = torch.zeros(self.n, self.d)
        self.labels = torch.eye(self.n, dtype=torch.bool)
        self.momentum = 0.0
        self.last: tuple[Tensor, Tensor] | None = None
        self.initialized()

    @property
    def steps(self) -> Sequence[Callable[[], bool]]:
        trained = (self.forward, self.update, self.forward, self.update, self.forward)
        lived = (self.copied, self.saved_and_loaded, self.pickled, self.moved, self.assigned_state)
        modes = (
            self.warmed,
            self.trained,
            self.evaluated,
            self.momentum_set,
            self.initialized,
            self.row_written,
        )
        return (*trained, *trained, *modes, *lived)

    def state_is_right(self) -> bool:
        columns = reference.unpack_labels(self.module.pseudo_labels.column_bits, self.n)
        return (
            equal(self.module.memory.features, self.memory)
            and equal(self.module.pseudo_labels.to_dense(), self.labels)
            and equal(columns, self.labels.t())
        )

    def forward(self) -> bool:
        index = self.index()
        features = self.rows(len(index))
        live = features.clone().requires_grad_()
        loss = self.module(live, index)
        similarity = features @ self.memory.t()
        if self.module.warmup:
            sets, weights = [reference.identity_labels(index, self.n)], [1.0]
        else:
            rows = similarity if self.live else (self.memory @ self.memory.t())[index]
            main = reference.mplp(self.memory, index, query_rows=rows, **self.options)
            nearest = reference.loop.nearest_neighbors(self.memory, index, query_rows=rows)[0].flatten()
            before = torch.cat([self.labels, torch.zeros(1, self.n, dtype=torch.bool)])
            sets = [main, *(reference.pack_labels(p) for p in (self.labels.t()[index], before[nearest]))]
            weights = [1.0, 0.8, 0.6]
            if self.module.training:
                for place, row in zip(index.tolist(), reference.unpack_labels(main, self.n), strict=True):
                    self.labels[place] = row
        wanted = reference.mutual_label_loss(similarity, sets, weights, kind=self.kind)
        self.last = index, features
        return close(loss.detach(), wanted, LOSS_TOLERANCE) and self.state_is_right()

    def update(self) -> bool:
        index, features = self.last or (self.index(), None)
        if features is None or self.random.integers(3) == 0:
            features = self.rows(len(index))
        if 0 < self.momentum < 1:
            features = self.memory[index]
        self.module.update_(index, features)
        if self.module.training and self.momentum == 0:
            for place, row in zip(index.tolist(), features, strict=True):
                self.memory[place] = row
        return self.state_is_right()

    def warmed(self) -> bool:
        self.module.warmup = not self.module.warmup
        return True

    def trained(self) -> bool:
        self.module.train()
        return True

    def evaluated(self) -> bool:
        self.module.eval()
        return True

    def momentum_set(self) -> bool:
        self.momentum = (0.0, 0.5, 1.0)[self.random.integers(3)]
        self.module.momentum = self.momentum
        return float(self.module.momentum) == self.momentum

    def initialized(self) -> bool:
        self.memory = self.rows(self.n)
        self.module.initialize_(self.memory.clone())
        return self.state_is_right()

    def row_written(self) -> bool:
        place = int(self.random.integers(self.n))
        self.memory[place] = self.rows(1)[0]
        with torch.no_grad():
            self.module.memory.features[place] = self.memory[place]
        return self.state_is_right()

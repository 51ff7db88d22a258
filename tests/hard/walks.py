"""Random walks through the methods of the modules, each step compared with a slow oracle.

The oracle keeps M as a tensor and P as a matrix of booleans, makes every similarity afresh from M by a product, and
knows no lists. Features are of length 1 and exact, and α is 0 or 1 or meets a feature that is its row: every update
is exact, so that labels, neighbours, M and P must be equal to the bit whatever was written, loaded or moved between.
A call is one call of a method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import backends, reference
from snnet_kernels.neighbor_list_layout import are_symmetric
from tests.hard.drawing import equal, instruction_sets
from tests.hard.head_walk import HeadWalk
from tests.hard.share import Share
from tests.hard.tally import Tally
from tests.hard.walk import Random, Walk, walk
from tests.kernels.list_checks import check_lists, outcome

CALLS = 20_000  # at full size


def attack(share: Share) -> Tally:
    """Walks of the three modules in turn, until there are as many calls as the share has."""
    tally, done, number = Tally(), 0, share.part
    wanted, sets = share.count(CALLS), instruction_sets()
    walkers = (MemoryWalk, LabelWalk, HeadWalk)
    while done < wanted:
        if sets:
            backends.select_instruction_set(sets[number // share.parts % len(sets)])
        share.breadcrumb(f"walk {number}")
        walker = walkers[number // share.parts % len(walkers)]
        done += walk(walker(share.random(4, number)), tally, f"seed {share.seed} walk {number}")
        number += share.parts
    return tally


class MemoryWalk(Walk):
    """ExemplarMemory beside M alone."""

    module: sk.ExemplarMemory

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.module = sk.ExemplarMemory(self.n, self.d, neighbors=self.neighbors(), floor=0.25)
        self.oracle = torch.zeros(self.n, self.d)

    @property
    def steps(self) -> Sequence[Callable[[], bool]]:
        asked = (self.labels, self.nearest, self.similarity, self.lists_themselves, self.labels)
        written = (self.updated, self.initialized, self.assigned, self.copied_into, self.row_written)
        lived = (
            self.copied,
            self.saved_and_loaded,
            self.pickled,
            self.moved,
            self.assigned_state,
            self.dropped,
        )
        return (*asked, *asked, *written, *written, *lived, self.loaded_others, self.rebuilt)

    def same_memory(self) -> bool:
        return equal(self.module.features, self.oracle)

    def labels(self) -> bool:
        index, options = (
            self.index(),
            ((0.25, 0.3, 0.6)[self.random.integers(3)], int(self.random.integers(12))),
        )
        rows = (
            reference.memory_similarity(self.rows(len(index)), self.oracle)
            if self.random.integers(2)
            else None
        )
        found = self.module.predict_labels(index, *options, query_rows=rows)
        return (
            equal(found, reference.mplp(self.oracle, index, *options, query_rows=rows)) and self.same_memory()
        )

    def nearest(self) -> bool:
        index, k = self.index(), int(self.random.integers(1, 4))
        found = self.module.nearest(index, k)
        wanted = reference.loop.nearest_neighbors(self.oracle, index, k)
        return all(equal(a, b) for a, b in zip(found, wanted, strict=True))

    def similarity(self) -> bool:
        features = self.rows(int(self.random.integers(7)))
        return equal(self.module.similarity(features), features @ self.oracle.t())

    def lists_themselves(self) -> bool:
        lists = self.module.current_lists(torch.arange(self.n))
        if lists is None:
            return self.module.lists is None
        similarity = self.oracle @ self.oracle.t()
        return are_symmetric(lists.tables) and outcome(lambda: check_lists(lists.tables, similarity, 0.0))

    def updated(self) -> bool:
        index = self.index()
        momentum = (0.0, 0.0, 1.0, 0.5, 0.25)[self.random.integers(5)]
        features = self.rows(len(index))
        if 0 < momentum < 1:  # exact only where a feature is its row
            features = self.oracle[index]
        similarity = features @ self.oracle.t() if self.random.integers(2) else None
        self.module.update_(index, features, momentum, similarity=similarity)
        if momentum == 0:
            for place, row in zip(index.tolist(), features, strict=True):
                self.oracle[place] = row
        return self.same_memory()

    def initialized(self) -> bool:
        self.oracle = self.rows(self.n)
        self.module.initialize_(self.oracle.clone())
        return self.same_memory()

    def assigned(self) -> bool:
        self.oracle = self.rows(self.n)
        self.module.features = self.oracle.clone()
        return self.same_memory()

    def copied_into(self) -> bool:
        self.oracle = self.rows(self.n)
        with torch.no_grad():
            self.module.features.copy_(self.oracle)
        return self.same_memory()

    def row_written(self) -> bool:
        place = int(self.random.integers(self.n))
        row = self.rows(1)[0]
        self.module.features[place] = row
        self.oracle[place] = row
        return self.same_memory()

    def loaded_others(self) -> bool:
        self.oracle = self.rows(self.n)
        assign = bool(self.random.integers(2))
        self.module.load_state_dict({"features": self.oracle.clone()}, assign=assign)
        return self.same_memory()

    def rebuilt(self) -> bool:
        (self.module.build_lists_, self.module.renew_lists_)[self.random.integers(2)]()
        return self.same_memory()

    def dropped(self) -> bool:
        self.module.drop_lists_()
        return self.same_memory()


class LabelWalk(Walk):
    """PseudoLabelMemory beside a matrix of booleans."""

    module: sk.PseudoLabelMemory

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.module = sk.PseudoLabelMemory(self.n)
        self.oracle = torch.eye(self.n, dtype=torch.bool)

    @property
    def steps(self) -> Sequence[Callable[[], bool]]:
        asked = (self.asked_rows, self.asked_columns, self.dense)
        lived = (self.copied, self.saved_and_loaded, self.pickled, self.moved, self.assigned_state)
        return (
            *asked,
            *asked,
            self.written,
            self.written,
            *lived,
            self.loaded_others,
            self.copied_into,
            self.assigned,
        )

    def matrix(self) -> Tensor:
        return torch.from_numpy(self.random.random((self.n, self.n)) < self.random.random())

    def written(self) -> bool:
        index = self.index()
        labels = self.matrix()[torch.arange(len(index)) % self.n]
        self.module.write_(index, reference.pack_labels(labels))
        for place, row in zip(index.tolist(), labels, strict=True):
            self.oracle[place] = row
        return self.dense()

    def asked_rows(self) -> bool:
        index = torch.cat([self.index(), torch.tensor([-1])])
        wanted = torch.cat([self.oracle[index[:-1]], torch.zeros(1, self.n, dtype=torch.bool)])
        return equal(reference.unpack_labels(self.module.rows(index), self.n), wanted)

    def asked_columns(self) -> bool:
        index = self.index()
        return equal(reference.unpack_labels(self.module.columns(index), self.n), self.oracle.t()[index])

    def dense(self) -> bool:
        return equal(self.module.to_dense(), self.oracle)

    def loaded_others(self) -> bool:
        self.oracle = self.matrix()
        assign = bool(self.random.integers(2))
        self.module.load_state_dict({"row_bits": reference.pack_labels(self.oracle)}, assign=assign)
        return self.dense()

    def copied_into(self) -> bool:
        self.oracle = self.matrix()
        self.module.row_bits.copy_(reference.pack_labels(self.oracle))
        return self.dense()

    def assigned(self) -> bool:
        self.oracle = self.matrix()
        self.module.row_bits = reference.pack_labels(self.oracle)
        return self.dense()

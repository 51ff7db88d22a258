"""What each of several processes runs, and compares with one.

``python -m tests.kernels.sharded_cases NAME CASE WORDS -- NAME CASE WORDS -- ...``
"""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import snnet_kernels as sk
from snnet_kernels.distributed import prediction, rows_of_pieces, rows_of_state, whole_state
from snnet_kernels.distributed.exchange import STATEMENT
from snnet_kernels.distributed.prediction import CANDIDATES_AT_ONCE


def made_features(n: int, d: int, seed: int, groups: int, exact: bool) -> torch.Tensor:
    """Features of ``groups`` crowds; ``exact``: of few bits, whose products and sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, d, generator=generator)
    rows = centres[torch.randint(groups, (n,), generator=generator)] + 0.7 * torch.randn(
        n, d, generator=generator
    )
    if exact:
        signs = torch.where(rows < 0, -1.0, 1.0)
        return signs / d**0.5  # d is a power of 4: every product is a multiple of 1/d
    return torch.nn.functional.normalize(rows, dim=1)


class Pair:
    """A head of one process and one that is divided, which get the same batches."""

    def __init__(self, n: int, d: int, seed: int = 0, exact: bool = False, **options: Any) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.n, self.d, self.exact = n, d, exact
        self.generator = torch.Generator().manual_seed(seed)
        self.one = sk.SNNetHead(n, d, label_storage="lists", **options)
        self.own = sk.SNNetHead(n, d, process_group=dist.group.WORLD, **options)
        self.rows = self.own.memory.own_rows
        features = made_features(n, d, seed, max(2, n // 12), exact)
        self.one.initialize_(features)
        self.own.initialize_(features if seed % 2 else features[self.rows.start : self.rows.stop])
        for head in (self.one, self.own):
            head.momentum = 0.5

    def step(self, each: int, repeats: bool = False) -> None:
        """One step on ``each`` samples a process, and a comparison of all that came of it."""
        total, generator = each * self.size, self.generator
        index = torch.randint(self.n, (total,), generator=generator)
        if not repeats and total <= self.n:
            index = torch.randperm(self.n, generator=generator)[:total]
        noise = made_features(total, self.d, int(index.sum()), 3, self.exact)
        rows = self.one.memory.features[index]
        moved = noise if self.exact else torch.nn.functional.normalize(rows + 0.5 * noise, dim=1)
        part = slice(self.rank * each, (self.rank + 1) * each)
        whole, mine = moved.clone().requires_grad_(), moved[part].clone().requires_grad_()
        loss, own_loss = self.one(whole, index), self.own(mine, index[part])
        if each:
            loss.backward()
            own_loss.backward()
            assert whole.grad is not None and mine.grad is not None
            total_loss = own_loss.detach().clone()
            dist.all_reduce(total_loss)
            torch.testing.assert_close(total_loss / self.size, loss.detach(), rtol=1e-5, atol=1e-6)
            # The mean of the processes' gradients is that of the global batch.
            torch.testing.assert_close(mine.grad / self.size, whole.grad[part], rtol=1e-5, atol=1e-6)
        self.compare_labels()
        for name, value in self.one.label_statistics().items():
            if each and name != "products":
                torch.testing.assert_close(self.own.label_statistics()[name], value, equal_nan=True)
        if self.one.training:
            self.one.update_(index, moved)
            self.own.update_(index[part], moved[part])
            self.compare_memory()

    def compare_labels(self) -> None:
        row, column = self.one.pseudo_labels.pairs()
        own_row, own_column = self.own.pseudo_labels.gather().pairs()
        assert torch.equal(row, own_row) and torch.equal(column, own_column)

    def compare_memory(self) -> None:
        own = slice(self.rows.start, self.rows.stop)
        assert torch.equal(self.one.memory.features[own], self.own.memory.features)
        mine, lists = self.own.memory.lists.tables, self.one.memory.lists
        if mine is None or lists is None or lists.tables is None or not self.one.memory._lists_follow:
            return
        assert torch.equal(lists.tables.counts[own], mine.counts)
        assert torch.equal(lists.tables.floors[own], mine.floors)
        ours = _by_column(mine.columns, mine.values)
        theirs = _by_column(lists.tables.columns[own], lists.tables.values[own])
        for kind, found, wanted in zip(("columns", "values"), ours, theirs, strict=True):
            assert torch.equal(found, wanted), (kind, (found != wanted).nonzero()[:6])


def _by_column(columns: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists with the entries of each row in order of their columns."""
    order = columns.sort(dim=1, stable=True).indices
    return columns.gather(1, order), values.gather(1, order)


def steps(n: str, d: str, each: str, number: str, *words: str) -> None:
    """Some steps; words: exact, repeats, row_by_row, and options as NAME=VALUE."""
    prediction.WHOLE_ROWS_AT_ONCE = 1 if "row_by_row" in words else 2**22
    options = dict(word.split("=") for word in words if "=" in word)
    values = {
        name: value if name in ("loss_kind", "label_source") else float(value)
        for name, value in options.items()
    }
    for name in ("neighbors", "min_rank"):
        if name in values:
            values[name] = int(values[name])
    pair = Pair(int(n), int(d), exact="exact" in words, **values)
    if "warmup" in words:
        pair.one.warmup = pair.own.warmup = True
    for turn in range(int(number)):
        if turn == 2:
            pair.one.warmup = pair.own.warmup = False
        pair.step(int(each), "repeats" in words)
    print("as one")


def state(n: str, folder: str) -> None:
    """A head of these processes saves its piece, and is one that goes on from the pieces of others."""
    pair = Pair(int(n), 16)
    for _ in range(3):
        pair.step(4)
    piece = pair.own.state_dict()
    torch.save(piece, f"{folder}/piece-{pair.size}-{pair.rank}.pt")
    if pair.rank == 0:
        torch.save(pair.one.state_dict(), f"{folder}/one.pt")
    print("as one")


def resumed(n: str, folder: str, saved_by: str) -> None:
    """A head goes on from the pieces of ``saved_by`` processes, or from the state of one, as if it had not stopped."""
    pair = Pair(int(n), 16)
    one = torch.load(f"{folder}/one.pt")
    pair.one.load_state_dict(one)
    pieces = [torch.load(f"{folder}/piece-{saved_by}-{r}.pt", mmap=True) for r in range(int(saved_by))]
    own = rows_of_pieces(pieces, pair.rows) if pieces else rows_of_state(one, pair.rows)
    pair.own.load_state_dict(own)
    assert pair.own.memory._lists_follow  # nothing is made afresh
    pair.compare_memory()
    pair.compare_labels()
    pair.step(3)
    if pieces:
        one_again = whole_state(pieces)
        head = sk.SNNetHead(int(n), 16, label_storage="lists")
        head.load_state_dict(one_again)
        assert head.memory._lists_follow
        for name, tensor in torch.load(f"{folder}/one.pt").items():
            if not name.startswith("memory.lists."):
                assert torch.equal(head.state_dict()[name], tensor), name
    print("as one")


def modules(n: str) -> None:
    """The memories by themselves, as one process has them."""
    n_, rank, size = int(n), dist.get_rank(), dist.get_world_size()
    group = dist.group.WORLD
    one, own = sk.ExemplarMemory(n_, 16), sk.ExemplarMemory(n_, 16, process_group=group)
    features = made_features(n_, 16, 1, n_ // 12, exact=False)
    one.initialize_(features)
    own.initialize_(features)
    generator = torch.Generator().manual_seed(5)
    index = torch.randint(n_, (size * 5,), generator=generator)
    mine = index[rank * 5 : rank * 5 + 5]
    rows = torch.randn(5, n_, generator=generator)
    assert torch.equal(own.predict_labels(mine, 0.5, 4), one.predict_labels(mine, 0.5, 4))
    live = rows.clone().requires_grad_()
    odd = (2 * rows).round() / 2  # with ties
    odd[rows > 2.5], odd[rows < -2.5], odd[:, ::97] = torch.inf, -torch.inf, torch.nan
    for given in (rows, live, odd, odd - 4):
        labels = own.predict_labels(mine, query_rows=given)
        assert torch.equal(labels, one.predict_labels(mine, query_rows=given))
    sent = torch.full((2,), rank)  # a message of the caller's own, with any tag, is not taken for another
    received = torch.empty_like(sent)
    request = dist.irecv(received, (rank - 1) % size, tag=1)
    for k, given in ((1, None), (3, None), (n_, None), (3, rows), (3, live)):
        for found, wanted in zip(
            own.nearest(mine, k, query_rows=given), one.nearest(mine, k, query_rows=given), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    dist.send(sent, (rank + 1) % size, tag=1)
    request.wait()
    assert received.tolist() == [(rank - 1) % size] * 2
    labels, own_labels = sk.PseudoLabelMemory(n_), sk.PseudoLabelMemory(n_, process_group=group)
    packed = one.predict_labels(index, 0.5, 4)
    labels.write_(index, packed)
    own_labels.write_(mine, packed[rank * 5 : rank * 5 + 5])
    asked = torch.tensor([-1, int(index[rank]), 0, n_ - 1, int(index[-1])])
    assert torch.equal(own_labels.rows(asked), labels.rows(asked))
    assert torch.equal(own_labels.columns(asked), labels.columns(asked))
    assert torch.equal(own_labels.gather().to_dense(), labels.to_dense())
    exchange, last = own_labels.exchange, size - 1
    sent = exchange.sent
    whole = own_labels.gather(to=last)
    assert (whole is None) == (rank != last)
    assert whole is None or torch.equal(whole.to_dense(), labels.to_dense())
    # Beside the agreement and the numbers of pairs, the own pairs travel once, and to that rank.
    pairs = int(own_labels.tables.saved("column")[1].sum())
    assert pairs > 0 or not own.own_rows
    assert exchange.sent - sent == (size - 1) * (STATEMENT + 8 * size) + (8 * pairs if whole is None else 0)
    own.update_(mine, features[mine].flip(0), 0.3)
    one.update_(index, torch.cat([features[index[r * 5 : r * 5 + 5]].flip(0) for r in range(size)]), 0.3)
    assert torch.equal(own.features, one.features[own.own_rows.start : own.own_rows.stop])
    # A write past autograd is noticed by its owner, and all make their lists afresh.
    for memory, first in ((one, 0), (own, own.own_rows.start)):
        at = int(index[0]) - first
        if 0 <= at < len(memory.features):
            memory.features.data[at] = memory.features[at].flip(0)
    assert torch.equal(own.predict_labels(mine, 0.5, 4), one.predict_labels(mine, 0.5, 4))
    one.renew_lists_(), own.renew_lists_()
    short_lists(features)
    print("as one")


def short_lists(features: torch.Tensor) -> None:
    """Lists that do not tell are worn after a while, as in one process; rank 0 says so once, of the line that asked."""
    n, rank, size = len(features), dist.get_rank(), dist.get_world_size()
    index = torch.arange(4 * size) * (n // (4 * size))
    told = []
    for group, asked in ((None, index), (dist.group.WORLD, index[4 * rank : 4 * rank + 4])):
        memory = sk.ExemplarMemory(n, 16, neighbors=2, process_group=group)
        memory.initialize_(features)
        rounds = n // len(index) + 1
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(rounds):
                memory.predict_labels(asked, 0.5, 2)
                before = int(memory.lists.products)
                memory.nearest(asked, n // 2)
                assert int(memory.lists.products) == before + len(index)
        assert int(memory.lists.asked) == 2 * rounds * len(index) and memory.lists.are_worn()
        memory.renew_lists_()
        assert int(memory.lists.products) == int(memory.lists.asked) == 0
        told.append([warning.filename for warning in caught])
    assert told == [[__file__], [__file__] if rank == 0 else []]


def apart(n: str) -> None:
    """What one rank alone does, and may."""
    n_ = int(n)
    pair = Pair(n_, 16, threshold=0.1)
    for _ in range(2):
        pair.step(4)
    assert pair.own.exchange.candidates_told > CANDIDATES_AT_ONCE
    owner = 5 in pair.rows

    # The owner of a row writes it between forward and update: the others have no reason not to trust the last batch.
    index, features = torch.arange(4 * pair.size), made_features(4 * pair.size, 16, 7, 3, exact=False)
    part = slice(4 * pair.rank, 4 * pair.rank + 4)
    for training in (False, True):
        pair.one(features, index), pair.own(features[part], index[part])
        with torch.no_grad():
            pair.one.memory.features[5].copy_(features[0])
            if owner:
                pair.own.memory.features[5 - pair.rows.start].copy_(features[0])
        for head, own in ((pair.one, slice(None)), (pair.own, part)):
            head.update_(index[own], features[own])
            assert not head.memory._lists_follow
            head.memory.current_lists()
        pair.compare_memory()
        pair.one.train(training), pair.own.train(training)
        for _ in range(2):
            pair.step(4)
        pair.one.train(), pair.own.train()
        pair.step(4)

    if pair.rank == 0:
        pair.own = copy.deepcopy(pair.own)
    pair.one = copy.deepcopy(pair.one)  # a copy makes its lists afresh
    pair.step(4)
    # Rank 1 asks about a row of rank 0 that rank 0 has written past autograd.
    assert pair.own.memory._lists_follow
    if owner:
        pair.own.memory.features.data[5 - pair.rows.start] = features[1]
    pair.one.memory.features.data[5] = features[1]
    pair.own.memory.current_lists(torch.tensor([n_ - 1 if owner else 5]))
    pair.one.memory.current_lists(torch.tensor([5]))
    pair.compare_memory()
    similarity = features @ pair.own.memory.features.t()
    strided = similarity.t().contiguous().t() if pair.rank == 0 else similarity
    pair.own.memory.update_(index[part], features[part], 0.5, similarity=strided)
    pair.one.memory.update_(index, features, 0.5, similarity=features @ pair.one.memory.features.t())
    pair.compare_memory()
    print("as one")


def autocast(n: str, loss_kind: str) -> None:
    """Products of the head are float32 under autocast, and gradients are rounded once."""
    pair = Pair(int(n), 16, loss_kind=loss_kind)
    index, features = torch.arange(4 * pair.size), made_features(4 * pair.size, 16, 7, 3, exact=False)
    part = slice(4 * pair.rank, 4 * pair.rank + 4)
    for _ in range(2):
        gradients = []
        for head, own in ((pair.one, slice(None)), (pair.own, part)):
            live = features[own].half().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                (65536 * head(live, index[own])).backward()
            assert live.grad is not None and live.grad.dtype == torch.float16
            gradients.append(live.grad[part] * pair.size if own != part else live.grad)
            head.update_(index[own], features[own])
        torch.testing.assert_close(*gradients, rtol=2e-3, atol=1e-3)
    print("as one")


def refusals(n: str) -> None:
    """What differs between processes is one error on all of them, and none of them waits."""
    rank, group = dist.get_rank(), dist.group.WORLD
    head = sk.SNNetHead(int(n), 16, process_group=group)
    features = made_features(int(n), 16, 1, 30, exact=False)
    head.initialize_(features)
    index = torch.arange(4) + rank
    other = sk.SNNetHead(int(n) + 1 - rank, 16, process_group=group)
    strict = sk.SNNetHead(int(n), 16, process_group=group, threshold=0.6 + 0.1 * rank)
    told: list[str] = []

    def tell(call: Callable[[], object]) -> None:
        with pytest.raises((RuntimeError, ValueError, TypeError)) as caught:
            call()
        told.append(f"{type(caught.value).__name__}: {caught.value}")

    tell(lambda: head(features[: 4 + rank], torch.arange(4 + rank)))
    tell(lambda: head(features[:4], index) if rank else head.update_(index, features[:4]))
    tell(lambda: other(features[:4], index))
    tell(lambda: strict(features[:4], index))
    tell(lambda: head(features[:4], index if rank else index - 7))
    tell(lambda: head.initialize_(features[: 3 if rank else int(n)]))
    head.train(rank == 0)
    tell(lambda: head(features[:4], index))
    head.train()
    head.momentum = 0.1 * rank
    tell(lambda: head.update_(index, features[:4]))
    head.momentum = 0.5
    assert copy.deepcopy(head)(features[:4], index) == head(features[:4], index)
    memory, labels = head.memory, head.pseudo_labels
    elsewhere = index.to("meta") if rank else index
    tell(lambda: memory.predict_labels(index, 0.6 + 0.1 * rank))
    tell(lambda: memory.predict_labels(index, min_rank=-rank))
    tell(lambda: memory.nearest(index, 1 + rank))
    tell(lambda: memory.nearest(index, 1 - rank))
    tell(lambda: memory.nearest(elsewhere))
    tell(lambda: labels.rows(elsewhere))
    tell(lambda: memory.update_(index, features[:4], 0.5, similarity=torch.zeros(8, 3) if rank else None))
    floors = sk.ExemplarMemory(int(n), 16, floor=0.1 * rank, process_group=group)
    tell(lambda: floors.nearest(index))
    tell(lambda: memory.mark_written_() if rank else memory.renew_lists_())
    tell(lambda: memory.current_lists(index) if rank else head(features[:4], index))
    if rank:
        memory.drop_lists_()
    memory.renew_lists_()
    memory.mark_written_()
    tell(lambda: head(features[:4] if rank else features[:4].numpy(), index))
    tell(lambda: head.update_(index, None if rank else features[:4]))
    tell(lambda: labels.gather(to=rank))
    tell(lambda: labels.gather(to=2 * rank))
    for wrong in (None, math.nan):
        strict.threshold = wrong if rank else 0.6  # type: ignore[assignment]
        tell(lambda: strict(features[:4], index))
    longer = features.clone()
    longer[1200] *= 3
    tell(lambda: head.initialize_(longer))
    # Last: the wrapper has overwritten the memories of rank 1 when it is made.
    tell(lambda: DistributedDataParallel(Wrapped(head))(features[:4], index))
    print("\n".join(told))


def traffic(n: str, d: str, each: str, source: str) -> None:
    """Bytes and collectives of a step of all processes, and what is held, beside the formulas of docs/scale.md."""
    pair = Pair(int(n), int(d), neighbors=64, min_rank=4, label_source=source)
    exchange = pair.own.exchange
    b, size = int(each), pair.size
    generator = torch.Generator().manual_seed(3)
    index = torch.randperm(int(n), generator=generator)[: b * size]
    features = made_features(b * size, int(d), 3, 3, exact=False)
    part = slice(pair.rank * b, (pair.rank + 1) * b)
    own = index[pair.own.division.owner(index) == pair.rank] - pair.rows.start
    for _ in range(3):  # lists are there in the second, and room for what travels in the third
        sent, rounds = exchange.sent, exchange.rounds
        memory = pair.own.memory.features.clone()
        labels = pair.own.pseudo_labels.tables.lists("column")[2][own].sum()
        live = features[part].clone().requires_grad_()
        loss = pair.own(live, index[part])
        after_forward = exchange.sent
        loss.backward()
        assert exchange.sent == after_forward  # no collective in backward
        pairs = exchange.room_for_pairs
        pair.own.update_(index[part], live.detach())
    all_sent = torch.tensor([exchange.sent - sent])
    rounds = exchange.rounds - rounds
    dist.all_reduce(all_sent)
    dist.all_reduce(labels, dist.ReduceOp.MAX)
    entries = (features @ memory.t() > pair.own.threshold)[pair.own.division.owner(index) != pair.rank]
    candidates = entries.sum() + (~entries.any(1)).sum()  # who has none tells its highest entry
    dist.all_reduce(candidates)
    most = int(torch.bincount(pair.own.division.owner(index)).max())  # samples of the busiest process
    k, negatives = pair.own.memory.lists.capacity, max(1, int(0.01 * int(n)))
    keys = negatives // size + 4 * math.isqrt(negatives) + 8
    formula = (size - 1) * size * (
        192 + b * (4 * int(d) + 8)  # features and index
        + 144 * most  # candidates
        + 36 * b * size + 4 * int(labels)  # verdicts
        + b * 9 * keys  # negatives
        + 32 * most + 8 * b * size  # bars
        + b * (4 * int(d) + 8)  # gradients
        + 192 + most * 4 * (int(d) + k + 2)  # rows that have moved
        + 8 * pairs + 4 * (b * size + 1)  # pairs
    )  # fmt: skip
    if source == "feature":
        formula += 4 * b * size * size * (size - 1) + 8 * int(candidates)
    pair.one(features, index)  # which builds its lists
    held = sum(tensor.nbytes for tensor in pair.own.buffers())
    everything = sum(tensor.nbytes for tensor in pair.one.buffers())
    print(int(all_sent), formula, rounds, held, round(everything * len(pair.rows) / int(n)))


def further(n: str) -> None:
    """How many collectives a forward pass and an update make: as a rule, where the hard negatives lie with one process,
    where the update gets other tensors, and where an image stands two and three times in the batch."""
    rank, size, count, d = dist.get_rank(), dist.get_world_size(), int(n), 64
    features = made_features(count, d, 1, count // 12, exact=False)
    divided = features.clone()  # into two halves, each of which is more similar to itself
    divided[: count // 2, 0] -= 0.5
    divided[count // 2 :, 0] += 0.5
    divided = torch.nn.functional.normalize(divided, dim=1)
    index = torch.arange(4 * size) * 5 + count // 2
    twice, thrice = index.clone(), index.clone()
    twice[1] = thrice[1] = thrice[-1] = index[0]
    for memory, positions, given in (
        (features, index, True), (divided, index, True), (features, index, False), (features, twice, True),
        (features, thrice, True),
    ):  # fmt: skip
        head = sk.SNNetHead(count, d, process_group=dist.group.WORLD, hard_negative_ratio=0.4, min_rank=4)
        head.momentum = 0.5
        head.initialize_(memory)
        mine = positions[4 * rank : 4 * rank + 4]
        for _ in range(3):  # lists are there in the second, and room for what travels in the third
            before = head.exchange.rounds
            live = memory[mine]
            head(live, mine)
            between = head.exchange.rounds
            head.update_(mine, live if given else live.clone())
        print(between - before, head.exchange.rounds - between)


class Wrapped(torch.nn.Module):
    """A head with parameters beside it, as a user's model may be."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head, self.weight = head, torch.nn.Parameter(torch.ones(()))

    def forward(self, features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return self.head(features * self.weight, index)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    words = sys.argv[1:]
    while words:
        end = words.index("--")
        _, case, *given = words[:end]
        globals()[case](*given)
        print("--", flush=True)
        words = words[end + 1 :]
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

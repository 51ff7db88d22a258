"""The loss of one of several processes: the compiled form is the plain one, and both are what a whole memory has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import memory_size
from snnet_kernels.distributed.column_loss import ColumnLoss
from snnet_kernels.ops.operation import OPERATIONS
from snnet_kernels.selection_keys import NO_KEY, columns_of, keys_of, values_of
from snnet_kernels.testing import clustered_features
from tests.kernels.shard_checks import FIRST, D, N, both_forms
from tests.memory import needs_proc, peak_of


def unpacked(negatives: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and the sets of what largest_negatives gives."""
    k = negatives.shape[-1] // 9
    return negatives[..., : 8 * k].clone().view(torch.int64), negatives[..., 8 * k :]


@pytest.mark.parametrize("sets", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 9, 70])
def test_largest_negatives_are_the_first_of_a_sort(sets, k):
    generator = torch.Generator().manual_seed(sets)
    similarity = (torch.randn(7, 60, generator=generator) * 4).round() / 4
    similarity[0, :5], similarity[1, 3] = torch.nan, -0.0
    positive = torch.rand(sets, 7, 60, generator=generator) < 0.3
    positive[:, 3] = True
    labels = [sk.pack_labels(part) for part in positive]
    rows = torch.tensor([2, 0, 1, 6, 5, 3, 4])
    (compiled, _), (plain, _) = both_forms("largest_negatives", similarity, labels, rows, 512, k)
    columns = torch.arange(512, 572).expand(7, -1)
    wanted = keys_of(similarity, columns).masked_fill(positive.all(0), NO_KEY)
    wanted = torch.nn.functional.pad(wanted, (0, 20), value=NO_KEY).sort(dim=1, descending=True).values[:, :k]
    bits = sum((~part).to(torch.uint8) << place for place, part in enumerate(positive))
    for keys, found in (unpacked(compiled), unpacked(plain)):
        ordered, order = keys.sort(dim=1, descending=True, stable=True)
        assert torch.equal(ordered, wanted[rows])
        there = ordered > NO_KEY
        at = (columns_of(ordered) - 512).clamp(0, 59)
        assert torch.equal(found.gather(1, order)[there], bits[rows].gather(1, at)[there])
        assert not found.gather(1, order)[~there].any()


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_last_hard_negative_is_that_of_all_processes(ranks):
    generator = torch.Generator().manual_seed(ranks)
    keys = torch.stack([torch.randperm(400, generator=generator)[: ranks * 9] for _ in range(6)]).view(
        6, ranks, 9
    )
    sets = torch.randint(8, (6, ranks, 9), generator=generator, dtype=torch.uint8)
    keys[1], sets[1] = NO_KEY, 0
    keys[2, :, 4:], sets[2, :, 4:] = NO_KEY, 0
    # Of 50 columns half of the negatives are hard, one at least.
    positives = torch.tensor(
        [
            [48, 46, 44],
            [48, 50, 46],
            [42, 49, 30 - 18 * (ranks - 1) // 2],
            [50, 50, 50],
            [46, 32, 48],
            [47, 48, 49],
        ]
    )
    wanted = ((50 - positives) // 2).clamp_min(1).minimum(50 - positives)
    packed = torch.cat([keys.transpose(0, 1).contiguous().view(torch.uint8), sets.transpose(0, 1)], dim=2)
    (compiled, _), (plain, _) = both_forms("hard_negative_bars", packed, positives, 50, 0.5)
    assert torch.equal(compiled, plain)
    bars, sure = compiled[:, :3], compiled[:, 3]
    for b in range(6):
        flat, bits = keys[b].flatten(), sets[b].flatten()
        kept_back = keys[b].amin(1).max()
        is_sure = True
        for k in range(3):
            negative = flat[(bits >> k & 1).bool()].sort(descending=True).values
            needed = int(wanted[b, k])
            if needed == 0:
                assert bars[b, k] == 2**63 - 1
                continue
            assert bars[b, k] == (negative[needed - 1] if needed <= len(negative) else NO_KEY)
            is_sure &= bool(kept_back <= bars[b, k])
        assert sure[b] == is_sure
    assert sure[1] and sure[3]


def test_a_product_that_is_nan_is_a_hard_negative():
    memory, features = clustered_features(N, D), clustered_features(3, D, seed=1)
    memory[FIRST + 5] = torch.nan
    similarity = sk.memory_similarity(features, memory[FIRST:])
    labels = [sk.pack_labels(torch.zeros(3, N - FIRST, dtype=torch.bool))]
    keys = (
        keys_of(similarity, torch.arange(FIRST, N).expand_as(similarity)).sort(dim=1, descending=True).values
    )
    positives, rows = torch.zeros(3, 1, dtype=torch.int64), torch.arange(3)
    negatives = OPERATIONS["largest_negatives"].plain(similarity, labels, rows, FIRST, 5)
    for bar in (keys[:, 3:4].contiguous(), keys[:, :1].contiguous()):
        for (losses, _), _ in both_forms(
            "own_columns_loss", similarity, memory[FIRST:], labels, rows, negatives, FIRST, bar, positives, [1.0],
            1.0, N, 0.02,
        ):  # fmt: skip
            assert losses.isnan().all()


def test_keys_tell_their_values():
    values = torch.tensor([torch.inf, 1.5, 0.0, -0.25, -3.0, -torch.inf])
    keys = keys_of(values, torch.tensor([5, 4, 3, 2, 1, 0]))
    assert torch.equal(values_of(keys), values) and columns_of(keys).tolist() == [5, 4, 3, 2, 1, 0]
    assert torch.equal(keys.sort(descending=True).values, keys)
    assert values_of(keys_of(torch.tensor([torch.nan]), torch.tensor([0]))).isnan()


@pytest.mark.parametrize("sets", [1, 3])
def test_the_loss_of_own_columns_is_a_part_of_the_whole(sets):
    generator = torch.Generator().manual_seed(sets)
    memory, features = clustered_features(N, D), clustered_features(6, D, seed=1)
    similarity = sk.memory_similarity(features, memory)
    positive = torch.rand(sets, 6, N, generator=generator) < 0.1
    weights = [1.0, 0.8, 0.6][:sets]
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    positives = positive.sum(2).t().contiguous()
    hard = (0.1 * (N - positives).double()).floor().long().clamp_min(1)
    keys = keys_of(similarity, torch.arange(N).expand_as(similarity))
    bars = torch.stack(
        [
            keys.masked_fill(part, NO_KEY)
            .sort(dim=1, descending=True)
            .values.gather(1, hard[:, k, None] - 1)[:, 0]
            for k, part in enumerate(positive)
        ],
        dim=1,
    )
    total, gradient, rows = (
        torch.zeros((), dtype=torch.float64),
        torch.zeros(6, D),
        torch.tensor([3, 1, 0, 2, 5, 4]),
    )
    for own in (slice(0, FIRST), slice(FIRST, N)):
        labels = [sk.pack_labels(part[:, own]) for part in positive]
        mine = similarity[:, own].contiguous()
        negatives = OPERATIONS["largest_negatives"].plain(mine, labels, rows, own.start, 40)
        (compiled, _), (plain, _) = both_forms(
            "own_columns_loss", mine, memory[own], labels, rows, negatives, own.start, bars, positives,
            [share / 6 for share in shares.tolist()], 5.0, N, 0.1,
        )  # fmt: skip
        torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=1e-6)
        total, gradient = total + compiled[0].sum(), gradient + compiled[1]
    live = features.clone().requires_grad_()
    loss = sk.fused_mutual_label_loss(
        live, memory, [sk.pack_labels(part) for part in positive], weights, hard_negative_ratio=0.1
    )
    loss.backward()
    torch.testing.assert_close(total.float(), loss.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, live.grad, rtol=1e-5, atol=1e-6)


def plain_losses(batch_size: int) -> dict[str, Callable[[], object]]:
    """The plain forms of the loss of a batch with 2^12 own rows."""
    n, generator = 2**12, torch.Generator().manual_seed(0)
    similarity = torch.rand(batch_size, n, generator=generator) * 2 - 1
    labels = [sk.pack_labels(torch.rand(batch_size, n, generator=generator) < 0.1) for _ in range(3)]
    memory, order = torch.randn(n, 4, generator=generator), torch.randperm(batch_size, generator=generator)
    negatives = OPERATIONS["largest_negatives"].plain(similarity, labels, order, 0, 9)
    bars = keys_of(torch.full((batch_size, 3), 0.9), torch.zeros((), dtype=torch.int64))
    positives, shares = torch.full((batch_size, 3), 400), [0.5, 0.3, 0.2]
    loss = ColumnLoss.__new__(ColumnLoss)
    return {
        "largest_negatives": lambda: OPERATIONS["largest_negatives"].plain(similarity, labels, order, 0, 9),
        "own_columns_loss": lambda: OPERATIONS["own_columns_loss"].plain(
            similarity, memory, labels, order, negatives, 0, bars, positives, shares, 5.0, n, 0.01
        ),
        "l2": lambda: loss._l2(similarity, memory, labels, shares),
    }


@needs_proc
@pytest.mark.parametrize("name", ["largest_negatives", "own_columns_loss", "l2"])
def test_the_memory_of_plain_losses_hardly_grows_with_the_batch(name, monkeypatch):
    monkeypatch.setattr(memory_size, "ENTRIES_AT_ONCE", 2**16)
    few, many = plain_losses(64)[name], plain_losses(1088)[name]
    few()
    assert peak_of(many) - peak_of(few) < 6 * 1024 * 2**12  # the slope takes 4 bytes an entry


@pytest.mark.parametrize("name", ["largest_negatives", "own_columns_loss", "l2"])
def test_parts_of_the_batch_give_the_same_bits(name, monkeypatch):
    call = plain_losses(37)[name]
    whole = call()
    for entries in (1, 5 * 2**12):
        monkeypatch.setattr(memory_size, "ENTRIES_AT_ONCE", entries)
        parts = call()
        for one, other in zip(
            *((found,) if isinstance(found, Tensor) else found for found in (whole, parts)), strict=True
        ):
            assert torch.equal(one, other)

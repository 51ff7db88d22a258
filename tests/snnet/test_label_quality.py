"""Precision and recall of the pseudo label memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snnet.training import label_quality as module
from snnet.training.label_quality import label_quality, label_symmetry
from snnet_kernels import PseudoLabelMemory, pack_labels
from tests.memory import needs_proc, peak_of


def memory(labels: torch.Tensor, storage: str = "auto") -> PseudoLabelMemory:
    filled = PseudoLabelMemory(len(labels), storage=storage)
    filled.write_(torch.arange(len(labels)), pack_labels(labels))
    return filled


def test_a_case_counted_by_hand() -> None:
    pids = np.array([5, 5, 5, 9, 9])
    labels = torch.eye(5, dtype=torch.bool)
    labels[0, 1] = labels[1, 0] = labels[3, 4] = True  # right
    labels[2, 3] = True  # wrong
    # 4 pairs predicted, 3 of them right, of 3*2 + 2*1 = 8 true ordered pairs.
    assert label_quality(memory(labels), pids) == {"label_precision": 3 / 4, "label_recall": 3 / 8}


def test_what_has_no_denominator_is_absent() -> None:
    identity = memory(torch.eye(4, dtype=torch.bool))
    assert label_quality(identity, np.array([1, 1, 2, 3])) == {"label_recall": 0.0}
    assert label_quality(identity, np.array([1, 2, 3, 4])) == {}


def test_equals_the_dense_count_over_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_AT_A_TIME", 7)
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(150, 150, generator=generator) < 0.1
    pids = torch.randint(0, 20, (150,), generator=generator)
    others = ~torch.eye(150, dtype=torch.bool)
    true = (pids[:, None] == pids) & others
    hits = int((labels & true).sum())
    expected = {
        "label_precision": hits / int((labels & others).sum()),
        "label_recall": hits / int(true.sum()),
    }
    assert label_quality(memory(labels), pids.numpy()) == expected


@pytest.mark.parametrize("storage", ["bits", "lists"])
def test_symmetry_is_the_share_of_mutual_pairs(monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    labels = torch.eye(5, dtype=torch.bool)
    labels[0, 1] = labels[1, 0] = labels[3, 4] = True
    assert label_symmetry(memory(labels, storage)) == {"label_symmetry": 2 / 3}
    labels[2, 2] = False  # an image's own label counts neither way
    assert label_symmetry(memory(labels, storage)) == {"label_symmetry": 2 / 3}
    assert label_symmetry(memory(torch.eye(5, dtype=torch.bool), storage)) == {}

    monkeypatch.setattr(module, "ROWS_AT_A_TIME", 7)
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(150, 150, generator=generator) < 0.2) | torch.eye(150, dtype=torch.bool)
    others = labels & ~torch.eye(150, dtype=torch.bool)
    expected = int((others & others.t()).sum()) / int(others.sum())
    assert label_symmetry(memory(labels, storage)) == {"label_symmetry": expected} and 0.1 < expected < 0.3


@needs_proc
def test_labels_that_grow_to_all_images_are_measured_in_little_memory() -> None:
    n = 3000
    labels = memory(torch.ones(n, n, dtype=torch.bool))
    measured: list[dict[str, float]] = []
    peaks = [
        peak_of(lambda: measured.append(label_symmetry(labels))),
        peak_of(lambda: measured.append(label_quality(labels, np.zeros(n, np.int64)))),
    ]
    assert max(peaks) < 100e6
    assert measured == [{"label_symmetry": 1.0}, {"label_precision": 1.0, "label_recall": 1.0}]

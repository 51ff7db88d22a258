"""``snnet.label``: sparse pseudo labels equal the reference's dense ones."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import snnet_kernels as sk
from snnet import label as command
from snnet.config.commands import LabelCommand
from snnet.errors import UserError
from snnet.label import label_table
from snnet.retrieval import candidates
from snnet.retrieval import sparse_labels as module
from snnet.retrieval.feature_files import FeatureSet, load_features, save_features
from snnet.retrieval.sparse_labels import SparseMatrix, load_labels, predict_sparse_labels
from snnet.system.processes import ALONE
from snnet_kernels.testing import clustered_features
from tests.snnet.label_checks import D, N, dense, labelled, reference_labels, similarities


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return clustered_features(N, D)


OPTIONS: list[dict[str, object]] = [
    {}, {"threshold": 0.7, "min_rank": 2}, {"threshold": 0.2, "min_rank": 0},
]  # fmt: skip


def check_against_reference(features: torch.Tensor, options: dict[str, object]) -> np.ndarray:
    found = predict_sparse_labels(features, **options)  # type: ignore[arg-type]
    p = reference_labels(features, **options)
    neighbor = similarities(features).fill_diagonal_(-torch.inf).numpy().argmax(axis=1)
    np.testing.assert_array_equal(dense(found.y), p)
    np.testing.assert_array_equal(dense(found.y_sym), p.T)
    np.testing.assert_array_equal(found.neighbors, neighbor)
    np.testing.assert_array_equal(dense(found.y_nh), p[neighbor])
    return p


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("rows", "columns", "entries"), [(1, N, 1), (7, 128, 500), (N, N, 2**20)])
def test_all_three_label_sets_equal_the_references(
    features: torch.Tensor,
    options: dict[str, object],
    rows: int,
    columns: int,
    entries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidates, "TILE_ENTRIES", rows * columns)  # 7: 43 tiles, the last of 6 rows
    monkeypatch.setattr(candidates, "BLOCK_ROWS", columns)
    for part in (candidates, module):
        monkeypatch.setattr(part, "ENTRIES_AT_ONCE", entries)
    p = check_against_reference(features, options)
    # The three differ, and plain thresholding gives something else again.
    assert (p != p.T).any() and (p != (similarities(features).numpy() > options.get("threshold", 0.6))).any()


@pytest.mark.parametrize("options", OPTIONS)
def test_ties_and_duplicates_everywhere(options: dict[str, object]) -> None:
    # Sums of 16 terms of ±1/16 are exact in any order: similarities are 17 numbers, the threshold none of them.
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (40, 16), generator=generator).float() * 2 - 1
    flipped = signs[torch.randint(0, 40, (N,), generator=generator)]
    flip = torch.rand(N, 16, generator=generator) < 0.08
    features = torch.where(flip, -flipped, flipped) / 4
    assert len(features.unique(dim=0)) < N  # duplicates, whose anchor is the first of them
    check_against_reference(features, options)


def test_ranks_of_anchors_that_are_no_candidates_are_counted_in_whole_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Row 1 is longer: it is more similar to row 0 than row 0 is to itself, and not above the threshold for row 2.
    angles = torch.tensor([0.0, 0.04, -0.9265, -0.92, -0.91])
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    features[1] *= 1.0009
    asked: list[list[int]] = []
    by_products = candidates._are_behind

    def watched(rows: Any, candidate: np.ndarray, image: np.ndarray, checks: Any) -> np.ndarray:
        asked.extend([candidate.tolist(), image.tolist()])
        return by_products(rows, candidate, image, checks)

    monkeypatch.setattr(candidates, "_are_behind", watched)
    check_against_reference(features, {})
    assert asked == [[2, 3, 4], [0, 0, 0]]
    monkeypatch.setattr(candidates, "TILE_ENTRIES", 5)  # a row of products at a time
    check_against_reference(features, {})
    check_against_reference(features, {"min_rank": 4})


def test_the_first_inconsistent_candidate_is_no_positive_where_products_are_not_symmetric(
    features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the similarity of p in i's row is another float than that of i in p's row.

    Here no two inconsistent candidates of an image are as similar but for rounding: so none is a positive.
    """
    generator, by_products = torch.Generator().manual_seed(0), candidates.memory_similarity

    def rounded_anew(rows: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        product = by_products(rows, block)
        return product * (1 + torch.randint(-1, 2, product.shape, generator=generator) * 2.0**-23)

    monkeypatch.setattr(candidates, "memory_similarity", rounded_anew)
    labels = predict_sparse_labels(features)
    exact = (features.double() @ features.double().t()).numpy()
    positives = 0
    for i in range(N):
        nearer = labels.y.row(i)
        nearer = nearer[np.argsort(-exact[i, nearer])]
        for p in nearer[2:]:
            ahead = (exact[p] > exact[p, exact[i].argmax()] + 2e-6).sum()
            assert p == i or ahead <= max((exact[i] > 0.6 - 2e-6).sum(), 10), (i, p)
        positives += len(nearer)
    assert positives > 4 * N


def collapsed(n: int, exact: bool) -> torch.Tensor:
    """Features that hardly tell images apart: cosines above 0.9, where ``exact`` of few values, with duplicates."""
    generator = torch.Generator().manual_seed(3)
    if exact:  # 64 terms of ±1/64, of which one or two have another sign
        signs = torch.ones(n, 64)
        flipped = torch.randint(0, 64, (n, 2), generator=generator)
        return signs.scatter_(1, flipped, -1.0) / 8
    noise = torch.randn(n, 64, generator=generator) * torch.rand(n, 1, generator=generator)
    return torch.nn.functional.normalize(1 + 0.25 * noise, dim=1)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_collapsed_features(exact: bool, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all pairs are above the threshold, or a share of them is not: the walks of most images are long."""
    monkeypatch.setattr(candidates, "ENTRIES_AT_ONCE", 3000)
    features = collapsed(N, exact)
    similarity = similarities(features)
    assert similarity.min() > (0.87 if exact else 0.85)
    threshold = float(similarity.quantile(share))
    p = check_against_reference(features, {"threshold": threshold, "min_rank": 3})
    assert 2 * N < p.sum() <= N * N


def test_collapsed_features_take_little_beside_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 1000
    for part in (candidates, module):
        monkeypatch.setattr(part, "ENTRIES_AT_ONCE", 1 << 14)
    monkeypatch.setattr(candidates, "TILE_ENTRIES", 1 << 14)
    features = collapsed(n, exact=False)
    predict_sparse_labels(features[:8])
    tracemalloc.start()
    try:
        found = predict_sparse_labels(features)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.y.counts().tolist() == [n] * n
    assert peak < (module.BYTES_PER_ENTRY - 8) * n * n  # 8 of a candidate are tensors, which are not traced


def test_labels_are_those_of_a_head_after_an_epoch_on_features_that_do_not_change(
    features: torch.Tensor,
) -> None:
    head = sk.SNNetHead(N, D)
    head.initialize_(features)
    head.momentum = 1.0  # the memory stays
    for start in range(0, N, 50):
        index = torch.arange(start, start + 50)
        head(features[index], index)
        head.update_(index, features[index])
    index = torch.arange(N)
    found = predict_sparse_labels(features)
    p = head.pseudo_labels
    neighbor = head.memory.nearest(index)[0].squeeze(1)
    for matrix, packed in (
        (found.y, p.rows(index)), (found.y_sym, p.columns(index)), (found.y_nh, p.rows(neighbor)),
    ):  # fmt: skip
        np.testing.assert_array_equal(dense(matrix), sk.unpack_labels(packed, N).numpy())


@pytest.mark.parametrize("n", [1, 2, 9])
def test_few_images_and_zero_rows(n: int) -> None:
    features = torch.nn.functional.normalize(torch.ones(n, 3), dim=1)
    features[0] = 0
    found = predict_sparse_labels(features)
    np.testing.assert_array_equal(dense(found.y), reference_labels(features))
    assert found.neighbors[0] == (-1 if n == 1 else 1)
    assert found.y_nh.counts()[0] == (0 if n == 1 else n - 1)


def test_features_of_another_type_and_layout_are_taken_to_float32(features: torch.Tensor) -> None:
    wanted = predict_sparse_labels(features)
    for given in (features.double(), features.t().contiguous().t(), features.clone().requires_grad_()):
        found = predict_sparse_labels(given)
        np.testing.assert_array_equal(dense(found.y), dense(wanted.y))
        np.testing.assert_array_equal(found.neighbors, wanted.neighbors)


@pytest.mark.parametrize(("dtype", "device"), [(torch.float64, "cpu"), (torch.float32, "meta")])
def test_defaults_of_torch_change_nothing(features: torch.Tensor, dtype: torch.dtype, device: str) -> None:
    wanted = predict_sparse_labels(features)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            found = predict_sparse_labels(features)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(dense(found.y), dense(wanted.y))
    np.testing.assert_array_equal(found.neighbors, wanted.neighbors)


def test_arguments_that_cannot_be_labelled_are_named(features: torch.Tensor) -> None:
    nan, long = features.clone(), features.clone()
    nan[7, 3], long[5] = torch.nan, 2 * long[5]
    for change, error, message in (
        ({"features": features.numpy()}, TypeError, r"features must be a tensor \[n, d\], got ndarray"),
        ({"features": features[0]}, ValueError, r"features must have 2 dimensions \[n, d\]"),
        (
            {"features": features.int()},
            TypeError,
            "features must be a floating point tensor, got torch.int32",
        ),
        ({"features": features[:0]}, UserError, "features must have at least one row"),
        ({"features": nan}, UserError, "features must have rows of norm 1, row 7 has nan"),
        ({"features": long}, UserError, "features must have rows of norm 1, row 5 has 2: labels compare"),
        ({"threshold": "0.6"}, TypeError, "threshold must be a number, got str"),
        ({"threshold": float("nan")}, ValueError, "threshold must be finite, got nan"),
        ({"min_rank": -1}, ValueError, "min_rank must be an integer of at least 0, got -1"),
    ):
        with pytest.raises(error, match=message):
            predict_sparse_labels(**{"features": features, **change})  # type: ignore[arg-type]


def test_a_row_outside_of_the_matrix_is_an_error(features: torch.Tensor) -> None:
    y = predict_sparse_labels(features).y
    assert 0 in y.row(0) and N - 1 in y.row(N - 1)
    for index in (-1, N):
        with pytest.raises(IndexError, match=rf"index must lie in \[0, {N}\), got {index}"):
            y.row(index)


def test_the_file_is_plain_arrays_that_scipy_takes(features: torch.Tensor, tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", features=features.numpy(), names=np.array([f"{i}.jpg" for i in range(N)]))
    written, pids = labelled(tmp_path / "f.npz", "--output", tmp_path / "y.npz")
    assert pids is None
    read = load_labels(str(tmp_path / "y.npz"))
    module.save_labels(str(tmp_path / "again.npz"), read)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
    for name in ("y", "y_sym", "y_nh"):
        np.testing.assert_array_equal(dense(getattr(read, name)), dense(getattr(written, name)))
    np.testing.assert_array_equal(read.neighbors, written.neighbors)
    assert read.names is not None and read.names[7] == "7.jpg"
    assert read.metadata["threshold"] == 0.6 and read.metadata["min_rank"] == 10
    sparse = pytest.importorskip("scipy.sparse")
    with np.load(tmp_path / "y.npz", allow_pickle=False) as arrays:
        indices, indptr = arrays["y_indices"], arrays["y_indptr"]
    matrix = sparse.csr_array((np.ones(len(indices), bool), indices, indptr), shape=(N, N))
    np.testing.assert_array_equal(matrix.toarray(), reference_labels(features))


def test_features_of_others_are_normalised_and_ours_left_to_the_bit(
    features: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "ours.npy", features.numpy())
    np.save(tmp_path / "theirs.npy", 3.0 * features.double().numpy())
    exact, _ = labelled(tmp_path / "ours.npy", "--output", tmp_path / "a.npz")
    assert "normalised" not in capsys.readouterr().out
    np.testing.assert_array_equal(dense(exact.y), reference_labels(features))
    scaled, _ = labelled(tmp_path / "theirs.npy", "--output", tmp_path / "b.npz")
    assert "300 of 300 features are not of length 1: all are normalised" in capsys.readouterr().out
    tripled = (3.0 * features.double()).float().numpy()
    lengths = np.linalg.norm(tripled.astype(np.float64), axis=1, keepdims=True)
    again = torch.from_numpy((tripled / lengths).astype(np.float32))
    np.testing.assert_array_equal(dense(scaled.y), reference_labels(again))


def test_files_stay_as_they_are_while_their_features_are_normalised_in_place(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 24)).astype(np.float32)
    rows[7] = 0
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))[:, None]
    wanted = (rows / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    for name in ("f.npz", "f.safetensors"):
        save_features(tmp_path / name, FeatureSet(rows))
    for name, array in (
        ("f", rows),
        ("columns", np.asfortranarray(rows)),
        ("double", rows.astype(np.float64)),
    ):
        np.save(tmp_path / f"{name}.npy", array)
    torch.save(torch.from_numpy(rows), tmp_path / "f.pt")
    torch.save({f"{i}.jpg": torch.from_numpy(row) for i, row in enumerate(rows)}, tmp_path / "images.pt")
    for path in sorted(tmp_path.iterdir()):
        written = path.read_bytes()
        for kept in (None, lambda images: range(images)):
            found = command._of_length_one(load_features(path, rows=kept), ALONE)
            np.testing.assert_array_equal(found, wanted)
        assert path.read_bytes() == written


@pytest.mark.parametrize("power", [-100, 100])
def test_a_feature_of_any_finite_length_is_a_direction(
    features: torch.Tensor, power: int, tmp_path: Path
) -> None:
    """The square of such a length is no float32; a factor that is a power of two changes no bit of a direction."""
    rows = 2 * np.where(features.abs() < 2.0**-20, 0, features)
    np.save(tmp_path / "plain.npy", rows)
    np.save(tmp_path / "scaled.npy", np.ldexp(rows, power))
    plain, scaled = (
        labelled(tmp_path / f"{name}.npy", "--output", tmp_path / "y.npz")[0] for name in ("plain", "scaled")
    )
    np.testing.assert_array_equal(dense(scaled.y), dense(plain.y))
    assert plain.y.counts().mean() > 2


def test_labels_that_tell_nobody_apart_are_a_warning(
    features: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "f.npy", features.numpy())
    labelled(tmp_path / "f.npy", "--output", tmp_path / "a.npz")
    assert capsys.readouterr().err == ""
    labelled(tmp_path / "f.npy", "--output", tmp_path / "b.npz", "--threshold", -0.5, "--min-rank", N)
    warned = capsys.readouterr().err
    unless = "for these features, unless the images show very few persons\n"
    told = "images have more than 10% of all as positives: --threshold"
    assert warned == f"warning: 300 of 300 {told} -0.5 is low {unless}"
    # As of eight persons, whose labels are right.
    np.save(tmp_path / "few.npy", np.repeat(np.eye(8), 10, axis=0))
    found, _ = labelled(tmp_path / "few.npy", "--output", tmp_path / "c.npz")
    assert found.y.counts().tolist() == [10] * 80
    assert capsys.readouterr().err == f"warning: 80 of 80 {told} 0.6 is low {unless}"


def test_features_from_before_the_neck_are_a_warning(
    features: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "f.safetensors"
    for metadata, warned in (
        ({"retrieval_feature": "before"}, True),
        ({"retrieval_feature": "after"}, False),
        ({}, False),
    ):
        save_features(path, FeatureSet(features.numpy(), metadata=metadata))
        labelled(path, "--output", tmp_path / "y.npz")
        told = (
            f"warning: {path} has features from before the neck, and training compares those after it: "
            "for labels like those of training, use snnet.extract --retrieval-feature after\n"
        )
        assert capsys.readouterr().err == (told if warned else "")


def test_an_image_by_itself_is_no_sign_of_a_low_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of up to nine images, each alone is more than a tenth."""
    np.save(tmp_path / "apart.npy", np.eye(5))
    found, _ = labelled(tmp_path / "apart.npy", "--output", tmp_path / "a.npz")
    assert found.y.counts().tolist() == [1] * 5 and capsys.readouterr().err == ""
    np.save(tmp_path / "alike.npy", np.ones((5, 3)))
    found, _ = labelled(tmp_path / "alike.npy", "--output", tmp_path / "b.npz")
    assert found.y.counts().tolist() == [5] * 5
    assert capsys.readouterr().err.startswith("warning: 5 of 5 images have more than 10% of all as positives")


def test_the_table_counts_pairs_against_identities(tmp_path: Path) -> None:
    pids = np.array([5, 5, 6, 6, -1])
    y = SparseMatrix(np.array([0, 2, 4, 6, 7, 9]), np.array([0, 1, 0, 1, 1, 2, 3, 2, 4], np.int32))
    labels = module.SparseLabels(y, y.transpose(), y.gather(np.array([1, 0, 3, 2, -1])), np.arange(5))
    np.testing.assert_array_equal(dense(labels.y_sym), dense(y).T)
    np.testing.assert_array_equal(dense(labels.y_nh)[:4], dense(y)[[1, 0, 3, 2]])
    assert labels.y_nh.counts().tolist() == [2, 2, 1, 2, 0]
    lines = label_table(labels, pids).splitlines()
    assert lines[1].split() == ["mean", "most", "with", "y", "in", "%", "in", "%"]
    # y has the pairs 01, 10, 21, 42: two right; there are four true pairs.
    assert lines[2].split() == ["y", "1.80", "2", "1.000", "50.0", "50.0"]
    # Rows of y and of its transpose share 2, 2, 1, 1 and 1 ones of 2, 3, 3, 1 and 2.
    agreement = np.mean([1, 2 / 3, 1 / 3, 1, 1 / 2])
    assert lines[3].split() == ["y_sym", "1.80", "3", f"{agreement:.3f}", "50.0", "50.0"]
    assert label_table(labels, None).splitlines()[2].split() == ["y", "1.80", "2", "1.000"]


def test_labels_that_do_not_fit_are_refused_as_soon_as_that_is_known(
    features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_memory", lambda device: 3000 * module.BYTES_PER_ENTRY)
    with pytest.raises(UserError, match=r"of 300 images have .* pairs .* --threshold is too low"):
        predict_sparse_labels(features, threshold=-1.0)


def test_what_cannot_be_labelled_is_named(features: torch.Tensor, tmp_path: Path) -> None:
    save_features(tmp_path / "f.npz", FeatureSet(features.numpy()))
    file, output = tmp_path / "f.npz", ("--output", tmp_path / "y.npz")
    for words, message in (
        ((file, "--output", tmp_path / "y.txt"), "the name must end in .npz"),
        ((file,), "^--output FILE.npz is missing: what to write$"),
        (output, "^FEATURES is missing: a .npz, .npy, "),
        ((tmp_path / "gone.npz", *output), "there is no feature file"),
        ((file, *output, "--threshold", 2), "--threshold: must be a number >= -1 and <= 1, got '2.0'"),
        ((file, *output, "--key", "logits"), "has no array 'logits'"),
        ((file, *output, "--treshold", 0.5), "unknown flag '--treshold'; did you mean '--threshold'"),
    ):
        with pytest.raises(UserError, match=message):
            labelled(*words)
    np.savez(tmp_path / "other.npz", y=np.zeros(3))
    with pytest.raises(UserError, match=r"other.npz is no label file"):
        load_labels(tmp_path / "other.npz")
    with pytest.raises(UserError, match=r"gone.npz is no label file"):
        load_labels(tmp_path / "gone.npz")
    assert not (tmp_path / "y.npz").exists()


def test_the_command_prints_its_table(
    features: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pids = np.arange(N) % 20
    save_features(tmp_path / "f.safetensors", FeatureSet(features.numpy(), pids=pids))
    words = [str(tmp_path / "f.safetensors"), "--output", str(tmp_path / "y.npz"), "--quiet"]
    command.main(LabelCommand.parse([*words, "--device", "cpu"]))
    printed = capsys.readouterr().out
    assert (
        printed
        == f"{tmp_path / 'y.npz'}: labels of 300 images\n"
        + label_table(load_labels(tmp_path / "y.npz"), pids)
        + "\n"
    )
    p = reference_labels(features)
    assert printed.splitlines()[3].split()[:3] == ["y", f"{p.sum() / N:.2f}", str(p.sum(1).max())]

"""``snnet.label``: classes of images by their labels, and groups of images that are not each other's neighbours."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet.errors import UserError
from snnet.retrieval.classes import class_summary, component_classes, dbscan_classes
from snnet.retrieval.feature_files import FeatureSet, save_features
from snnet.retrieval.sparse_labels import load_labels, predict_sparse_labels, save_labels
from snnet_kernels.testing import clustered_features
from tests.snnet.label_checks import D, N, dense, labelled, reference_labels, similarities


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return clustered_features(N, D)


def by_definition(y: np.ndarray) -> np.ndarray:
    """Classes of mutual positives of a dense y, by reaching out from each image in turn."""
    mutual = y & y.T
    classes = np.full(len(y), -1)
    for i in range(len(y)):
        if classes[i] == -1 and mutual[i].sum() > 1:
            reached = {i}
            while (more := {int(k) for j in reached for k in np.flatnonzero(mutual[j])} | reached) != reached:
                reached = more
            classes[sorted(reached)] = classes.max() + 1
    return classes


def test_components_are_images_joined_by_mutual_positives(
    features: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy")
    np.save(tmp_path / "f.npy", features.numpy())
    output = ("--output", tmp_path / "y.npz", "--threshold", 0.75)
    found, _ = labelled(tmp_path / "f.npy", *output, "--classes", "components")
    expected = by_definition(dense(found.y))
    assert expected.max() > 5 and (expected == -1).any()
    read = load_labels(tmp_path / "y.npz")
    np.testing.assert_array_equal(read.classes, expected)
    assert read.classes is not None and read.classes.dtype == np.int64
    assert read.metadata["classes"] == "components" and "k1" not in read.metadata
    plain, _ = labelled(tmp_path / "f.npy", *output)
    np.testing.assert_array_equal(dense(plain.y), dense(found.y))
    assert load_labels(tmp_path / "y.npz").classes is None


def test_components_get_indices_of_32_bits(features: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    kinds = []

    def watched(graph: Any, **options: Any) -> Any:
        kinds.extend([graph.indices.dtype, graph.indptr.dtype])
        return by_scipy(graph, **options)

    by_scipy = csgraph.connected_components
    monkeypatch.setattr(csgraph, "connected_components", watched)
    assert component_classes(predict_sparse_labels(features, threshold=0.75).y).max() > 5
    assert kinds == [np.int32, np.int32]


def test_dbscan_classes_are_those_of_the_dense_distances(tmp_path: Path) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    features = clustered_features(240, 16)
    save_features(tmp_path / "f.npz", FeatureSet(features.numpy()))
    words = ("--classes", "dbscan", "--k1", 10, "--k2", 3, "--eps", 0.5, "--min-samples", 5)
    found, _ = labelled(tmp_path / "f.npz", "--output", tmp_path / "y.npz", *words)
    graph = sk.jaccard_graph(features, 10, 3, max_distance=1).to_scipy().tocoo()
    distances = np.ones((240, 240))
    distances[graph.row, graph.col] = graph.data
    expected = cluster.DBSCAN(eps=0.5, min_samples=5, metric="precomputed").fit_predict(distances)
    assert expected.max() >= 2 and (expected == -1).any()
    np.testing.assert_array_equal(found.classes, expected)
    metadata = load_labels(tmp_path / "y.npz").metadata
    assert [metadata[name] for name in ("k1", "k2", "eps", "min_samples")] == [10, 3, 0.5, 5]


@pytest.mark.parametrize("zeros", [[3, 100, 101, 102, 239], range(240), []])
def test_images_without_a_feature_are_in_no_class(zeros: list[int], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    features = clustered_features(240, 16)
    known = np.setdiff1d(np.arange(240), zeros)
    features[list(zeros)] = 0
    options = {"k1": 10, "k2": 3, "eps": 0.5, "min_samples": 4}
    found = dbscan_classes(features, **options)
    assert found.dtype == np.int64 and (found[list(zeros)] == -1).all()
    if len(known):
        assert found.max() >= 2
        np.testing.assert_array_equal(found[known], dbscan_classes(features[known], **options))


@pytest.mark.parametrize("zeros", [0, 1])
def test_features_are_copied_only_where_some_are_left_out(
    zeros: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    features = clustered_features(60, 16)
    features[:zeros] = 0
    taken = []

    def watched(rows: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        taken.append((len(rows), rows.data_ptr() == features.data_ptr()))
        return sk.jaccard_graph(rows, *arguments, **options)

    monkeypatch.setattr("snnet.retrieval.classes.jaccard_graph", watched)
    dbscan_classes(features, k1=5, k2=2, eps=0.5, min_samples=2)
    assert taken == [(60 - zeros, not zeros)]


def test_a_class_with_most_of_the_images_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn.cluster")
    centres = normalize(torch.randn(20, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    noise = torch.randn(200, 32, generator=torch.Generator().manual_seed(1)) / 32**0.5
    save_features(tmp_path / "f.npz", FeatureSet(normalize(centres.repeat(10, 1) + noise, dim=1).numpy()))
    output = ("--output", tmp_path / "y.npz", "--classes")
    told = []
    for words in (("dbscan",), ("dbscan", "--k1", 10), ("components", "--threshold", -0.5), ("components",)):
        found, _ = labelled(tmp_path / "f.npz", *output, *words)
        assert found.classes is not None
        largest = np.bincount(found.classes[found.classes >= 0]).max()
        lines = [line for line in capsys.readouterr().err.splitlines() if "one class" in line]
        assert len(lines) == (largest > 200 / 3)
        told += [line.replace(str(largest), "MANY", 1) for line in lines]
    end = "for these features, unless the images show very few persons"
    assert told == [
        f"warning: one class has MANY of 200 images: --k1 30 or --eps 0.6 is high {end}",
        f"warning: one class has MANY of 200 images: --threshold -0.5 is low {end}",
    ]


def test_images_of_one_group_are_not_each_others_neighbours(features: torch.Tensor, tmp_path: Path) -> None:
    """Tracks of 5 images, by the names of their folders."""
    track = np.arange(N) // 5
    names = tuple(f"t{number}/{i}.jpg" for i, number in enumerate(track))
    save_features(tmp_path / "f.npz", FeatureSet(features.numpy(), names=names))
    similarity = similarities(features).numpy()
    similarity[track[:, None] == track] = -np.inf
    for pattern in (r"^t\d+/", r"(t\d+)/(\d)", "(?P<track>[^/]+)"):
        found, _ = labelled(tmp_path / "f.npz", "--output", tmp_path / "y.npz", "--group-pattern", pattern)
        np.testing.assert_array_equal(found.neighbors, similarity.argmax(axis=1))
        p = reference_labels(features)  # the labels of the images are as ever
        np.testing.assert_array_equal(dense(found.y), p)
        np.testing.assert_array_equal(dense(found.y_nh), p[similarity.argmax(axis=1)])
        assert load_labels(tmp_path / "y.npz").metadata["group_pattern"] == pattern
    with pytest.warns(UserWarning, match="--group-pattern 'jpg' puts all images into one group, 'jpg'"):
        one, _ = labelled(tmp_path / "f.npz", "--output", tmp_path / "y.npz", "--group-pattern", "jpg")
    assert (one.neighbors == -1).all() and len(one.y_nh.indices) == 0


def test_the_summary_of_classes_counts_pairs() -> None:
    classes, pids = np.array([0, 0, 0, 1, 1, -1, -1]), np.array([4, 4, 5, 5, -1, 5, 4])
    # Four pairs of one class, one of them right; three pairs of identity 4, three of 5.
    found = class_summary(classes, pids)
    assert found == "2 classes of 5 images, 2 in none; pairs: precision 25.0, recall 16.7 (in percent)"
    assert class_summary(classes, None) == "2 classes of 5 images, 2 in none"
    nothing = class_summary(np.full(3, -1), np.arange(3))
    assert nothing == "0 classes of 0 images, 3 in none; pairs: precision -, recall - (in percent)"


def test_classes_and_groups_that_cannot_be_had_are_named(
    features: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_features(tmp_path / "f.npz", FeatureSet(features.numpy(), names=tuple(f"{i}.jpg" for i in range(N))))
    save_features(tmp_path / "g.npz", FeatureSet(features.numpy()))
    output = ("--output", tmp_path / "y.npz")
    for words, message in (
        (
            ("f.npz", "--classes", "kmeans"),
            "^--classes: must be one of components, dbscan, or none, got 'kmeans'$",
        ),
        (("f.npz", "--eps", 0.5), "--eps is for --classes dbscan"),
        (("f.npz", "--classes", "components", "--min-samples", 3), "--min-samples is for --classes dbscan"),
        (
            ("f.npz", "--classes", "dbscan", "--eps", 1),
            "--eps: must be a number > 0 and < 1, or none, got '1.0'",
        ),
        (
            ("f.npz", "--classes", "dbscan", "--k1", 0),
            "^--k1: must be a whole number >= 1 and < 1000000000, or none, got '0'$",
        ),
        (
            ("f.npz", "--classes", "dbscan", "--k2", 10**9),
            "^--k2: must be a whole number >= 1 and < 1000000000, or none, got '1000000000'$",
        ),
        (("f.npz", "--group-pattern", "("), "--group-pattern '\\(' is not a regular expression: "),
        (("f.npz", "--group-pattern", "^[1-9]+"), "finds no group in the name '0.jpg'"),
        (("f.npz", "--group-pattern", "[1-9]*"), "finds no group in the name '0.jpg'"),
        (("g.npz", "--group-pattern", "."), "g.npz has no names of images for --group-pattern"),
    ):
        with pytest.raises(UserError, match=message):
            labelled(tmp_path / words[0], *output, *words[1:])
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(
        UserError,
        match=r"--classes needs scipy and scikit-learn: pip install '\.\[cluster\]' in the checkout$",
    ):
        labelled(tmp_path / "f.npz", *output, "--classes", "dbscan")
    with pytest.raises(ValueError, match=r"groups must be int64 \[300\], got int64 \[3\]"):
        predict_sparse_labels(features, groups=np.arange(3))
    assert not (tmp_path / "y.npz").exists()


def test_a_label_file_with_other_classes_is_refused(features: torch.Tensor, tmp_path: Path) -> None:
    labels = predict_sparse_labels(features)
    for classes in (np.zeros(N, np.int32), np.zeros(N - 1, np.int64), np.full(N, -2)):
        save_labels(tmp_path / "y.npz", dataclasses.replace(labels, classes=classes))
        with pytest.raises(UserError, match="its arrays do not fit together"):
            load_labels(tmp_path / "y.npz")

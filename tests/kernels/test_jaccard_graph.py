"""The Jaccard graph against numbers of public code, and against its definition taken literally.

``tests/data/cluster_reference.npz`` holds what public code gives on the CPU (torch 2.14, faiss-cpu 1.15) for small
features with ties, copies of images, outliers, features that are nearly equal, a camera of three images and one camera
alone: ``compute_jaccard_distance`` of alibaba/cluster-contrast-reid (57b62e9; SpCL's is the same) with its CPU search,
as ``cluster_contrast/FEATURES/k1/k2``; the same with k1 + 1 columns searched, as 3C does, as ``one_more/...``;
its ``re_ranking`` with λ = 0, 20 queries and float64 distances, of the features without the copies, as
``re_ranking/...``; ``compute_jaccard_distance`` of chenyiyuu/CA-Jaccard (979a1f0) with k1 10, k2 4, k1_intra 5,
k1_inter 9, k2_intra 2, k2_inter 3, past its warm-up, as ``ca_jaccard/CAMERAS/`` with 0 or 1 for ckrnns and clqe.
"""

import itertools
import sys
import warnings

import numpy as np
import pytest
import torch

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.sparse_graph import SparseGraph
from snnet_kernels.testing import clustered_features
from tests import jaccard_definition
from tests.paths import DATA

pytest.importorskip("scipy")

MODULE = sys.modules["snnet_kernels.ops.jaccard_graph"]
GOLDEN = dict(np.load(DATA / "cluster_reference.npz"))
GRAPHS = [name for name in GOLDEN if name.split("/")[0] in ("cluster_contrast", "one_more", "re_ranking")]
CAMERAS = [name for name in GOLDEN if name.startswith("ca_jaccard/")]
TOLERANCE = 1e-6  # of distances in 0..1: a few roundings of float32


@pytest.fixture(params=["compiled", "reference"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the test with either form of the operation, over several tiles of the products and of the rows."""
    monkeypatch.setattr(sys.modules["snnet_kernels.ops.camera_lists"], "TILE_ENTRIES", 2000)
    if request.param == "reference":
        monkeypatch.setattr(sys.modules["snnet_kernels.reference.jaccard_graph"], "TILE", 32)
        monkeypatch.setattr(MODULE, "jaccard_pairs", reference.jaccard_pairs)


def distances(graph: SparseGraph) -> np.ndarray:
    """[n, n], 1 where nothing is listed."""
    listed = graph.to_scipy().tocoo()
    dense = np.ones(listed.shape, np.float32)
    dense[listed.row, listed.col] = listed.data
    return dense


def golden_features(name: str) -> torch.Tensor:
    features = torch.from_numpy(GOLDEN[f"features_{name.split('/')[1]}"])
    return torch.cat([features[:40], features[44:]]) if name.startswith("re_ranking") else features


@pytest.mark.parametrize("name", GRAPHS)
def test_equals_public_code(form, name):
    kind, _, k1, k2 = name.split("/")
    options = {} if kind == "cluster_contrast" else {"searched": int(k1) + 1}
    options |= {"weights": "relative"} if kind == "re_ranking" else {}
    got = distances(sk.jaccard_graph(golden_features(name), int(k1), int(k2), max_distance=1, **options))
    got = got[:20, 20:] if kind == "re_ranking" else got
    np.testing.assert_allclose(got, GOLDEN[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CAMERAS)
def test_equals_public_code_with_cameras(form, name):
    _, cameras, (neighbors, means) = name.split("/")
    got = sk.jaccard_graph(
        torch.from_numpy(GOLDEN["features_clustered"]),
        10,
        4,
        max_distance=1,
        cameras=torch.from_numpy(GOLDEN[f"cameras_{cameras}"]),
        camera_k1=(5, 9) if neighbors == "1" else None,
        camera_k2=(2, 3) if means == "1" else None,
    )
    np.testing.assert_allclose(distances(got), GOLDEN[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("pairs", [{}, {"camera_k1": (4, 6)}, {"camera_k1": (4, 6), "camera_k2": (2, 3)}])
def test_relative_weights_divide_by_the_largest_distance(form, monkeypatch, pairs):
    """Whichever lists were searched."""
    given = []

    def pairs_of(features, nearest, more, half, largest, *others):
        given.append(largest)
        return reference.jaccard_pairs(features, nearest, more, half, largest, *others)

    monkeypatch.setattr(MODULE, "jaccard_pairs", pairs_of)
    features = features_of("exact", 50)
    cameras = torch.arange(50) % 3
    sk.jaccard_graph(features, 8, 3, cameras=cameras, weights="relative", **pairs)
    assert torch.equal(given[0], (2 - 2 * features @ features.t()).amax(1))


def features_of(kind: str, n: int) -> torch.Tensor:
    if kind == "exact":  # products take 17 values: most neighbours tie
        return torch.from_numpy(np.random.default_rng(n).choice([-0.25, 0.25], (n, 16)).astype(np.float32))
    features = clustered_features(n, 16, seed=n)
    if kind == "zero rows":
        features[::5] = 0
    return features[:1].expand(n, 16) if kind == "same" else features


@pytest.mark.parametrize("kind", ["clustered", "exact", "zero rows", "same"])
@pytest.mark.parametrize(
    ("n", "k1", "k2", "searched"),
    [
        (50, 12, 4, None),
        (50, 7, 1, 8),  # an odd k1, no expansion of the query
        (40, 4, 9, None),  # more images averaged over than are searched
        (40, 4, 9, 30),
        (30, 100, 3, None),  # more neighbours than images
        (20, 1, 2, None),  # each its own neighbour alone
        (3, 6, 2, 1),
        (1, 30, 6, None),
    ],
)
def test_equals_the_definition(form, kind, n, k1, k2, searched):
    features = features_of(kind, n)
    for relative in (False, True):
        weights = "relative" if relative else "softmax"
        got = sk.jaccard_graph(features, k1, k2, max_distance=1, searched=searched, weights=weights)
        expected = jaccard_definition.distances((features @ features.t()).numpy(), k1, k2, searched, relative)
        np.testing.assert_allclose(distances(got), expected, rtol=0, atol=TOLERANCE)


def test_equal_features_go_by_index(form):
    """40 copies of one image: the first 10 are everyone's neighbours, and have each other alone."""
    graph = sk.jaccard_graph(features_of("same", 40), 10, 1, max_distance=1)
    expected = np.ones((40, 40))
    expected[:10, :10] = 0
    np.testing.assert_allclose(distances(graph), expected, atol=TOLERANCE)
    assert graph.indptr.diff().tolist() == [10] * 10 + [0] * 30


@pytest.mark.parametrize("kind", ["clustered", "exact", "same"])
def test_a_bound_lists_what_is_within_it(form, kind):
    """To the bit, from a bound that few pairs are within, for which columns are left out, to one that most are."""
    features = features_of(kind, 150)
    every = distances(sk.jaccard_graph(features, 12, 4, max_distance=1))
    shared = np.sort(every[every < 1])
    for share in (0, 0.1, 0.3, 0.6, 0.9, 1):
        bound = float(shared[int(share * (len(shared) - 1))])  # a distance that is there: it is listed
        graph = sk.jaccard_graph(features, 12, 4, max_distance=bound)
        assert int(graph.indptr[-1]) == (every <= np.float32(bound)).sum() >= share * len(shared)
        np.testing.assert_array_equal(distances(graph), np.where(every <= np.float32(bound), every, 1))


def test_what_the_docstring_says_of_equal_rows_and_of_rows_of_zeros(form):
    """Each image is listed with itself, equal images with each other, and rows of zeros are near one another."""
    features = torch.cat([features_of("clustered", 150), features_of("same", 40), torch.zeros(5, 16)])
    near = distances(sk.jaccard_graph(features, 12, 4, max_distance=1e-5)) <= 1e-5
    assert near.diagonal()[:150].all() and near[150:190, 150:190].all()
    assert (distances(sk.jaccard_graph(features, 12, 4))[190:, 190:] < 0.6).all()


def test_forms_of_a_graph():
    graph = sk.jaccard_graph(features_of("exact", 60), 10, 3)
    assert [part.dtype for part in graph] == [torch.int64, torch.int32, torch.float32]
    matrix = graph.to_scipy()
    assert matrix.has_canonical_format and (matrix.diagonal() < TOLERANCE).all()
    assert (matrix.data == 0).sum() > 10  # listed though they are 0
    assert (abs(matrix - matrix.T) > 0).nnz == 0  # symmetric to the bit
    np.testing.assert_array_equal(graph.to_torch().to_dense().numpy(), matrix.toarray())
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            empty = sk.jaccard_graph(torch.zeros(0, 8, dtype=torch.float32, device="cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {part.device.type for part in empty} == {"cpu"} and empty.values.dtype == torch.float32
    assert empty.to_scipy().shape == (0, 0) and empty.to_torch().shape == (0, 0)


def test_threads_change_no_bit():
    features = features_of("clustered", 700)
    before = torch.get_num_threads()
    try:
        graphs = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            graphs.append(sk.jaccard_graph(features, 20, 6))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*graphs, strict=True))
    assert len(graphs[0].values) > 5000


def test_many_images_in_any_order(monkeypatch):
    """Rows are computed in an order of their own, in several parts."""
    features = features_of("clustered", 700)
    features = features[torch.randperm(700, generator=torch.Generator().manual_seed(0))]
    got = sk.jaccard_graph(features, 20, 6, max_distance=1)
    monkeypatch.setattr(MODULE, "jaccard_pairs", reference.jaccard_pairs)
    expected = sk.jaccard_graph(features, 20, 6, max_distance=1)
    assert torch.equal(got.indptr, expected.indptr) and torch.equal(got.indices, expected.indices)
    torch.testing.assert_close(got.values, expected.values, rtol=0, atol=TOLERANCE)


def test_any_type_and_strides_of_features():
    features = features_of("exact", 40)
    expected = sk.jaccard_graph(features, 8, 3)
    strided = torch.stack([features, features], dim=2)[:, :, 1].requires_grad_()
    for form in (strided, features.double(), features.bfloat16()):
        assert all(torch.equal(a, b) for a, b in zip(sk.jaccard_graph(form, 8, 3), expected, strict=True))


def test_numbers_of_numpy():
    features = features_of("exact", 40)
    got = sk.jaccard_graph(
        features, np.int64(8), np.int64(3), max_distance=np.float32(0.5), searched=np.int32(9)
    )
    expected = sk.jaccard_graph(features, 8, 3, max_distance=0.5, searched=9)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", [name for name in GRAPHS if name.startswith("cluster_contrast")])
def test_dbscan_labels_are_those_of_public_code(name):
    DBSCAN = pytest.importorskip("sklearn.cluster").DBSCAN
    _, _, k1, k2 = name.split("/")
    for eps in (0.3, 0.6):
        cluster = DBSCAN(eps=eps, min_samples=4, metric="precomputed")
        graph = sk.jaccard_graph(golden_features(name), int(k1), int(k2), max_distance=eps)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            labels = cluster.fit_predict(graph.to_scipy())
        np.testing.assert_array_equal(labels, cluster.fit_predict(GOLDEN[name]))


FEATURES, CAMERA = features_of("clustered", 20), torch.arange(20) % 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": FEATURES.numpy()}, TypeError, r"features must be a tensor \[n, d\], got ndarray"),
        ({"features": FEATURES[0]}, ValueError, r"features must have 2 dimensions \[n, d\]"),
        ({"features": FEATURES.int()}, TypeError, "features must be a floating point tensor"),
        (
            {"features": 2 * FEATURES},
            ValueError,
            "features must have rows of length 1 .*: row 0 has length 2",
        ),
        ({"features": FEATURES * torch.nan}, ValueError, "row 0 has length nan"),
        ({"k1": 0}, ValueError, "k1 must be an integer of at least 1, got 0"),
        ({"k2": 2.5}, TypeError, "k2 must be an integer, got float"),
        ({"max_distance": 1.5}, ValueError, r"max_distance must lie in \[0, 1\], got 1.5"),
        ({"max_distance": float("nan")}, ValueError, r"max_distance must lie in \[0, 1\], got nan"),
        ({"searched": 0}, ValueError, "searched must be an integer of at least 1, got 0"),
        ({"weights": "gauss"}, ValueError, "weights must be 'softmax' or 'relative', got 'gauss'"),
        ({"cameras": CAMERA[:5]}, ValueError, "cameras must have 20 entries, got 5"),
        ({"cameras": CAMERA.float()}, TypeError, "cameras must be torch.int64, got torch.float32"),
        ({"cameras": CAMERA, "camera_k1": 5}, TypeError, r"camera_k1 must be two numbers .* or None, got 5"),
        (
            {"cameras": CAMERA, "camera_k1": (5, -1)},
            ValueError,
            r"camera_k1\[1\] must be .* at least 0, got -1",
        ),
        ({"cameras": CAMERA, "camera_k2": (0, 0)}, ValueError, r"camera_k2 must not be \(0, 0\)"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        sk.jaccard_graph(**{"features": FEATURES, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nearest": 20}, r"nearest must lie in \[0, 20\)"),
        ({"nearest": -1}, r"nearest must lie in \[0, 20\)"),
        ({"more": 20}, r"more must lie in \[0, 20\)"),
        ({"averaged": -1}, r"averaged must lie in \[0, 20\)"),
        ({"half": 4}, r"half must lie in \[0, 3\], got 4"),
        ({"averaged": torch.zeros(20, 0, dtype=torch.int32)}, "averaged must have a column"),
        ({"features": FEATURES[:19]}, "features must have shape"),
        ({"largest": torch.ones(19)}, "largest must have"),
    ],
)
def test_direct_calls_check_what_would_lead_outside(change, message):
    def lists(value: object) -> object:
        if not isinstance(value, int):
            return value
        bad = torch.zeros(20, 3, dtype=torch.int32)
        bad[7, 1] = value
        return bad

    given = {"features": FEATURES, "nearest": 0, "more": None, "half": 2, "largest": torch.ones(20)}
    given |= {"averaged": 0} | change
    tables = {name: lists(value) for name, value in given.items() if name in ("nearest", "more", "averaged")}
    with pytest.raises((ValueError, RuntimeError), match=message):
        torch.ops.snnet.jaccard_pairs(*(given | tables).values(), 0.5)


def test_re_ranking_checks_its_similarities():
    nearest = torch.zeros(20, 3, dtype=torch.int32)
    for shape, message in (((4, 17), "similarity must have shape"), ((21, 3), "at most 20 rows, got 21")):
        with pytest.raises((ValueError, RuntimeError), match=message):
            torch.ops.snnet.blend_jaccard_(
                torch.zeros(shape), FEATURES, nearest, 2, torch.ones(20), None, 0.3
            )


def test_camera_lists_hold_own_and_others_in_order():
    """Where a camera has too few images, the other kind follows."""
    similarity = (FEATURES @ FEATURES.t()).numpy()
    cameras = np.array([0] * 12 + [1] * 7 + [2])
    within, across, lowest = sys.modules["snnet_kernels.ops.camera_lists"].camera_lists(
        FEATURES, torch.from_numpy(cameras), 9, 14
    )
    np.testing.assert_allclose(lowest, similarity.min(axis=1), rtol=0, atol=1e-6)
    for i, (lists, same) in itertools.product(range(20), ((within, True), (across, False))):
        expected = sorted(
            range(20), key=lambda j, i=i, same=same: ((cameras[j] == cameras[i]) != same, -similarity[i, j])
        )
        assert lists[i].tolist() == expected[: lists.shape[1]]

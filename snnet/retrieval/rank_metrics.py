"""Retrieval metrics: CMC, mAP and mINP of a similarity matrix between queries and a gallery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from snnet.checks import positive
from snnet.config.options import AveragePrecision
from snnet.errors import UserError
from snnet.retrieval.compiled import native as _native
from snnet.retrieval.single_shot import shot_generator, single_shot_ranks
from snnet.system.cpus import available_cpus

AVERAGE_PRECISIONS: tuple[str, ...] = get_args(AveragePrecision)

# Similarities taken at a time: 4 MB as float32. Bounds what conversion and the lists of matches hold.
_BLOCK_ENTRIES = 1 << 20
# One pass over the matrix: the memory bus is busy with fewer threads than a large machine has cores.
_MOST_THREADS = 16


@dataclass(frozen=True, eq=False)
class RankMetrics:
    """What :func:`rank_metrics` measured; fractions lie in 0..1 and are means over the queries that count."""

    cmc: np.ndarray  # float64 [max_rank]: share of queries whose first match is at rank 1, 2, ... or better
    mAP: float
    mINP: float  # matches of a query / rank of the last of them
    num_queries: int  # queries that count: those with a match in the gallery
    num_without_match: int  # queries left out
    average_precision: str  # the definition mAP follows: "step" or "trapezoid"
    single_gallery_shot: bool = False  # whether CMC is of galleries with one image an identity

    def _cmc_at(self, rank: int) -> float:
        if rank > len(self.cmc):
            raise UserError(f"rank{rank} needs max_rank of at least {rank}, got {len(self.cmc)}")
        return float(self.cmc[rank - 1])

    @property
    def rank1(self) -> float:
        return self._cmc_at(1)

    @property
    def rank5(self) -> float:
        return self._cmc_at(5)

    @property
    def rank10(self) -> float:
        return self._cmc_at(10)


def rank_metrics(
    similarity: Any,  # [queries, gallery], larger is more alike
    query_pids: Any,  # [queries]
    gallery_pids: Any,  # [gallery]
    query_cams: Any | None,  # [queries]
    gallery_cams: Any | None,  # [gallery]
    average_precision: Literal["step", "trapezoid"] = "step",
    max_rank: int = 50,
    *,
    threads: int | None = None,
    single_gallery_shot: int | np.random.Generator | None = None,
) -> RankMetrics:
    """Rank the gallery for each query by falling similarity and measure where the matches come.

    Equal similarities rank in gallery order. Gallery images of pid -1 are dropped; those that share a query's
    pid *and* camera are ignored for that query; the others of its pid are its matches. Any other pid, 0 too,
    is an ordinary identity. Queries without a match are left out of all means and counted in
    ``num_without_match``.

    With a query's matches at ranks r_1 < ... < r_m of the list that remains and precision p(r) = (matches up
    to r) / r, its average precision is

    - ``"step"``: the mean of p(r_i);
    - ``"trapezoid"``: the mean of (p(r_i - 1) + p(r_i)) / 2 with p(0) = 1: the area under the
      precision-recall curve by the trapezoid rule, as in the official Market-1501 code.

    The compiled form sorts no row: a match's rank is the number of entries ahead of it. Where it is not built, numpy
    computes the same. Both take some tens of MB beyond the input.

    Args:
        similarity: anything ``numpy.asarray`` takes, of a real dtype and any strides; compared as float32.
            Infinities are ordered as such. A gallery of fewer than ``max_rank`` images is legal: CMC then
            stays at its last value.
        query_pids, gallery_pids: integers.
        query_cams, gallery_cams: integers; where either is None, cameras are unknown and nothing is ignored.
        threads: at most this many threads; None: the CPUs this process may use, up to 16. The result does not
            depend on it.
        single_gallery_shot: a seed (at least 0), or a generator: CMC is the mean of 10 repeats for each query, in
            which the gallery holds one image of each identity, drawn anew; those of the query's own camera cannot
            be its match. That is the protocol of CUHK03's 100 test identities. mAP and mINP are as without it.
            None or False: CMC is of the whole gallery.

    Raises:
        UserError: an argument of a wrong shape, dtype or value; NaN in ``similarity``; no query has a match.
    """
    max_rank = positive(max_rank, "max_rank")
    generator = shot_generator(single_gallery_shot)
    scores = score_queries(
        similarity, query_pids, gallery_pids, query_cams, gallery_cams, average_precision, threads=threads
    )
    counts = scores.matches > 0
    identities = checked_identities(query_pids, gallery_pids, query_cams, gallery_cams, *np.shape(similarity))
    if not counts.any():
        raise UserError(why_no_match(*identities))
    ranks = scores.first_rank[counts]
    if generator is not None:
        ranks = single_shot_ranks(np.asarray(similarity), *identities, generator)[counts].ravel()
    first_at = np.bincount(np.minimum(ranks, max_rank + 1), minlength=max_rank + 2)
    num_queries = int(counts.sum())
    return RankMetrics(
        cmc=np.cumsum(first_at[1 : max_rank + 1]) / len(ranks),
        mAP=float(scores.average_precision[counts].mean()),
        mINP=float((scores.matches[counts] / scores.last_rank[counts]).mean()),
        num_queries=num_queries,
        num_without_match=len(counts) - num_queries,
        average_precision=average_precision,
        single_gallery_shot=generator is not None,
    )


def have_match(
    query_pids: np.ndarray, gallery_pids: np.ndarray, query_cams: np.ndarray, gallery_cams: np.ndarray
) -> np.ndarray:
    """Whether the gallery has a match of each query, by the rules of :func:`rank_metrics`: bool [queries]."""
    ranked = gallery_pids != -1
    pids, cams = np.concatenate([query_pids, gallery_pids]), np.concatenate([query_cams, gallery_cams])
    identity, camera = (np.unique(values, return_inverse=True)[1].reshape(-1) for values in (pids, cams))
    both = np.unique(identity * (camera.max(initial=0) + 1) + camera, return_inverse=True)[1].reshape(-1)
    queries = len(query_pids)

    def counted(key: np.ndarray) -> np.ndarray:
        return np.bincount(key[queries:][ranked], minlength=key.max(initial=0) + 1)[key[:queries]]

    return counted(identity) > counted(both)


class QueryScores(NamedTuple):
    """The scores of each query, 0 where it has no match."""

    matches: np.ndarray  # int64 [queries]
    first_rank: np.ndarray  # int64 [queries]
    last_rank: np.ndarray  # int64 [queries]
    average_precision: np.ndarray  # float64 [queries]


def score_queries(
    similarity: Any,  # [queries, gallery], larger is more alike
    query_pids: Any,  # [queries]
    gallery_pids: Any,  # [gallery]
    query_cams: Any | None,  # [queries]
    gallery_cams: Any | None,  # [gallery]
    average_precision: Literal["step", "trapezoid"] = "step",
    *,
    threads: int | None = None,
) -> QueryScores:
    """The scores of each query, of which :func:`rank_metrics` takes the means; arguments and rules are the same.

    Raises :class:`~snnet.errors.UserError` as it does, but not where no query has a match.
    """
    if average_precision not in AVERAGE_PRECISIONS:
        raise UserError(f"average_precision must be one of {AVERAGE_PRECISIONS}, got {average_precision!r}")
    threads = default_threads() if threads is None else positive(threads, "threads")
    matrix = _similarity_matrix(similarity)
    queries, gallery = matrix.shape
    query_ids, gallery_ids, query_cameras, gallery_cameras = checked_identities(
        query_pids, gallery_pids, query_cams, gallery_cams, queries, gallery
    )
    index = _IdentityIndex(gallery_ids, gallery_cameras)
    return _score_queries(matrix, query_ids, query_cameras, index, average_precision, threads)


class _Lists(NamedTuple):
    """Gallery columns of each query: query q has ``columns[starts[q] : starts[q + 1]]``, rising."""

    starts: np.ndarray  # int64 [queries + 1]
    columns: np.ndarray  # int64


class _IdentityIndex:
    """The gallery's columns by identity, those of pid -1 left out."""

    def __init__(self, pids: np.ndarray, cams: np.ndarray) -> None:
        by_pid = np.argsort(pids, kind="stable").astype(np.int64, copy=False)
        self._columns = by_pid[pids[by_pid] != -1]
        self._cams = cams
        self.sorted_pids = pids[self._columns]
        self.dropped = np.flatnonzero(pids == -1).astype(np.int64, copy=False)

    def split(self, query_pids: np.ndarray, query_cams: np.ndarray) -> tuple[_Lists, _Lists]:
        """The gallery images of each query's identity: (matches, those of its own camera)."""
        begin = np.searchsorted(self.sorted_pids, query_pids, side="left")
        sizes = np.searchsorted(self.sorted_pids, query_pids, side="right") - begin
        query = np.repeat(np.arange(len(query_pids)), sizes)
        within = np.arange(len(query)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        columns = self._columns[begin[query] + within]
        own_camera = self._cams[columns] == query_cams[query]

        def lists(keep: np.ndarray) -> _Lists:
            per_query = np.bincount(query[keep], minlength=len(query_pids))
            return _Lists(np.concatenate([[0], np.cumsum(per_query)]).astype(np.int64), columns[keep])

        return lists(~own_camera), lists(own_camera)


def _score_queries(
    similarity: np.ndarray,  # [queries, gallery], any real dtype
    query_pids: np.ndarray,
    query_cams: np.ndarray,
    index: _IdentityIndex,
    average_precision: str,
    threads: int,
) -> QueryScores:
    count_ranks = _count_ranks_numpy if _native is None else _native.count_ranks
    queries, gallery = similarity.shape
    matched, first_rank, last_rank = np.zeros((3, queries), dtype=np.int64)
    scores = QueryScores(matched, first_rank, last_rank, np.zeros(queries))
    step = max(1, _BLOCK_ENTRIES // gallery)
    for start in range(0, queries, step):
        part = slice(start, start + step)
        block = np.ascontiguousarray(similarity[part], dtype=np.float32)
        matches, junk = index.split(query_pids[part], query_cams[part])
        ranks, has_nan = count_ranks(block, *matches, *junk, index.dropped, threads)
        if has_nan:
            row, column = np.argwhere(np.isnan(block))[0]
            raise UserError(f"similarity has NaN, first at query {start + row}, gallery image {column}")
        found = np.diff(matches.starts)
        some = found > 0
        scores.matches[part] = found
        scores.first_rank[part][some] = ranks[matches.starts[:-1][some]]
        scores.last_rank[part][some] = ranks[matches.starts[1:][some] - 1]
        scores.average_precision[part] = _average_precision(ranks, matches.starts, average_precision)
    return scores


def _count_ranks_numpy(
    similarity: np.ndarray,  # float32 [queries, gallery]
    match_starts: np.ndarray,
    matches: np.ndarray,
    junk_starts: np.ndarray,
    junk: np.ndarray,
    dropped: np.ndarray,
    threads: int,
) -> tuple[np.ndarray, bool]:
    """``_rank_metrics.count_ranks`` in numpy: ranks, rising within a query, and whether there is a NaN."""
    ranks = np.zeros(len(matches), dtype=np.int64)
    if np.isnan(similarity).any():
        return ranks, True
    listed = np.ones(similarity.shape[1], dtype=bool)
    listed[dropped] = False
    for query, row in enumerate(similarity):
        own = slice(match_starts[query], match_starts[query + 1])
        ignored = junk[junk_starts[query] : junk_starts[query + 1]]
        if own.start == own.stop:
            continue
        listed[ignored] = False
        candidates = row[listed]
        # Sorting values is several times faster than argsort; only ties need to know who is where.
        rising = np.sort(candidates)
        ends = np.searchsorted(rising, row[matches[own]], side="right")
        if (ends - np.searchsorted(rising, row[matches[own]], side="left") > 1).any():
            position = np.cumsum(listed)[matches[own]] - 1
            rank_at = np.empty(len(candidates), dtype=np.int64)
            rank_at[np.argsort(-candidates, kind="stable")] = np.arange(1, len(candidates) + 1)
            ranks[own] = np.sort(rank_at[position])
        else:
            ranks[own] = np.sort(len(candidates) - ends + 1)
        listed[ignored] = True
    return ranks, False


def _average_precision(ranks: np.ndarray, starts: np.ndarray, definition: str) -> np.ndarray:
    """Average precision of each query (0 without matches) from the rising ranks of its matches."""
    sizes = np.diff(starts)
    query = np.repeat(np.arange(len(sizes)), sizes)
    nth = np.arange(1, len(ranks) + 1) - starts[query]
    value = nth / ranks
    if definition == "trapezoid":
        before = np.where(ranks > 1, (nth - 1) / np.maximum(ranks - 1, 1), 1.0)
        value = (before + value) / 2
    return np.bincount(query, weights=value, minlength=len(sizes)) / np.maximum(sizes, 1)


def why_no_match(
    query_pids: np.ndarray, gallery_pids: np.ndarray, query_cams: np.ndarray, gallery_cams: np.ndarray
) -> str:
    """What to say where no query has a match."""
    cameras = np.union1d(query_cams, gallery_cams)
    way_out = (
        "; to score without cameras give query_cams=None, on the command line --dataset custom with a "
        "--name-pattern without (?P<cam>...)"
    )
    ranked_pids = gallery_pids[gallery_pids != -1]
    if not len(ranked_pids):
        why = "every gallery image has pid -1 and is dropped"
    elif not np.isin(query_pids, ranked_pids).any():
        why = "no identity of query_pids is in gallery_pids"
    elif len(cameras) == 1:
        why = (
            f"all images are of one camera ({cameras[0]}), and gallery images of a query's own identity and "
            f"camera are ignored; at least two cameras are needed{way_out}"
        )
    else:
        why = (
            "every gallery image of a query's identity is of that query's own camera, and those are ignored"
            f"{way_out}"
        )
    return f"none of the {len(query_pids)} queries has a match in the gallery: {why}"


def checked_identities(
    query_pids: Any,  # [queries]
    gallery_pids: Any,  # [gallery]
    query_cams: Any | None,  # [queries]
    gallery_cams: Any | None,  # [gallery]
    queries: int,
    gallery: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The four as int64 arrays, unknown cameras too.

    Raises :class:`~snnet.errors.UserError` where one does not hold an integer for each of the ``queries`` or the
    ``gallery`` images.
    """
    return (
        _numbers(query_pids, "query_pids", queries, "query"),
        _numbers(gallery_pids, "gallery_pids", gallery, "gallery image"),
        *_cameras(query_cams, gallery_cams, queries, gallery),
    )


def _similarity_matrix(similarity: Any) -> np.ndarray:
    matrix = _as_array(similarity, "similarity")
    if matrix.ndim != 2:
        raise UserError(f"similarity must be [queries, gallery], got shape {matrix.shape}")
    if not matrix.shape[0]:
        raise UserError("similarity has no rows: at least one query is needed")
    if not matrix.shape[1]:
        raise UserError("similarity has no columns: at least one gallery image is needed")
    if matrix.dtype.kind not in "fiu":
        raise UserError(f"similarity must be of real numbers, got dtype {matrix.dtype}")
    return matrix


def _cameras(
    query_cams: Any | None, gallery_cams: Any | None, queries: int, gallery: int
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [queries] and [gallery]; where they are unknown, numbers that no query shares with the gallery."""
    if query_cams is None or gallery_cams is None:
        return np.zeros(queries, np.int64), np.ones(gallery, np.int64)
    return (
        _numbers(query_cams, "query_cams", queries, "query"),
        _numbers(gallery_cams, "gallery_cams", gallery, "gallery image"),
    )


def _numbers(values: Any, name: str, size: int, per: str) -> np.ndarray:
    array = _as_array(values, name)
    if array.shape != (size,):
        raise UserError(f"{name} must hold one number per {per}, shape ({size},), got shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise UserError(f"{name} must be integers, got dtype {array.dtype}")
    return array.astype(np.int64)


def _as_array(values: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # a ragged list, a tensor on a GPU, bfloat16
        raise UserError(f"{name} cannot be read as a numpy array: {error}") from error


def default_threads() -> int:
    """The CPUs this process may use, up to 16."""
    return min(available_cpus(), _MOST_THREADS)

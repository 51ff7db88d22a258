"""MPLP of all images of a set at once: the candidates of each, and which of them are positives.

Each similarity is needed once, and the matrix at no time. If the anchor is above the threshold in p's row, so is
everything more similar to p. So the anchor's rank in the whole row is its rank among p's candidates. Image i has p as a
candidate exactly if p has i. So the process with p's row can tell, for every i, whether p is inconsistent. Only the
first inconsistent candidate of each i counts: one key per image, which is all that processes exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from snnet.system.processes import ALONE, Processes
from snnet.system.progress import progress
from snnet.system.row_exchange import rows_in_turn
from snnet_kernels import memory_similarity
from snnet_kernels.selection_keys import NO_KEY, columns_of, keys_of

TILE_ENTRIES = 1 << 22  # similarities that are held at a time
BLOCK_ROWS = 1 << 14  # images that the own ones are compared with at a time; of several processes an eighth
ENTRIES_AT_ONCE = 1 << 20  # candidates that are ranked at a time
# Candidates this far below the threshold are ranked too: where products are rounded one by one (on a GPU), an image may
# have another as candidate that has not it.
MARGIN = 1e-5


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive rows: their images from ``first`` on, and what each lists, by rising column.

    A row lists every image with a similarity above ``low``, and itself.
    """

    first: int
    indptr: np.ndarray  # int64 [rows + 1]
    columns: np.ndarray  # int32
    values: np.ndarray  # float32

    def rows(self) -> np.ndarray:
        """The row of each entry, counted from 0: int64."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))

    def slices(self) -> Iterator[Part]:
        """The same in parts of no more than ENTRIES_AT_ONCE, or of one row."""
        for rows, entries in slices_of(self.indptr):
            indptr = self.indptr[rows.start : rows.stop + 1] - self.indptr[rows.start]
            yield Part(self.first + rows.start, indptr, self.columns[entries], self.values[entries])


@dataclass(frozen=True, eq=False)
class Candidates:
    """What the own rows list; and of the own images the anchor, the nearest other image (-1: none) and the count.

    The last three int64; the anchor is the most similar image of all, also the image itself.
    """

    parts: list[Part]
    anchors: np.ndarray
    neighbors: np.ndarray
    counts: np.ndarray


class FeatureRows:
    """The features of all images: the own rows [m, d], and those of the other processes as they come by."""

    def __init__(
        self,
        features: Tensor,
        shares: list[range],
        processes: Processes = ALONE,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.features, self.shares, self.processes, self.group = features, shares, processes, group
        self.own = shares[processes.rank]
        self.count = shares[-1].stop
        self.block = BLOCK_ROWS // 8 if processes.are_several else BLOCK_ROWS

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """All of them, some at a time: the position of the first, and the rows. Every process calls it."""
        return rows_in_turn(self.features, self.shares, self.block, self.processes.rank, self.group)

    def number_of_blocks(self) -> int:
        return sum(-(-len(share) // self.block) for share in self.shares)


def collect_candidates(
    rows: FeatureRows, threshold: float, groups: np.ndarray | None, check_room: Callable[[int, int], None]
) -> Candidates:
    """The candidates of the own images, by products tile by tile.

    ``groups`` int64 [n]: images of one group are not each other's nearest. ``check_room`` is told how many candidates
    were found so far, and of how many own images.
    """
    own, device = len(rows.own), rows.features.device
    group = None if groups is None else torch.from_numpy(groups).to(device)
    bar, low = (
        np.float32(threshold),
        np.float32(threshold - MARGIN),
    )  # in float32 0.6 is a little more than 0.6
    step = max(1, TILE_ENTRIES // min(rows.block, rows.count))
    tiles = [range(first, min(first + step, own)) for first in range(0, own, step)]
    found: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in tiles]
    anchors, neighbors = _Largest(own, device), _Largest(own, device)
    counts, entries = np.zeros(own, np.int64), 0
    with progress(None, "labelling", total=rows.number_of_blocks() * len(tiles), unit="tile") as shown:
        for first, block in rows.blocks():
            for place, tile in enumerate(tiles):
                part = slice(tile.start, tile.stop)
                similarity = memory_similarity(rows.features[part], block)
                images = range(rows.own.start + tile.start, rows.own.start + tile.stop)
                themselves = _diagonal(images, range(first, first + len(block)), device)
                listed, columns, values = _above(similarity, themselves, float(low))
                row = np.repeat(np.arange(len(tile)), listed)
                counts[part] += np.bincount(row[values > bar], minlength=len(tile))
                found[place].append((listed, columns + np.int32(first), values))
                entries += len(columns)
                anchors.take(part, similarity, first)
                similarity[themselves] = -torch.inf
                if group is not None:
                    own_group = group[images.start : images.stop, None]
                    similarity.masked_fill_(own_group == group[first : first + len(block)], -torch.inf)
                neighbors.take(part, similarity, first)
                check_room(entries, tile.stop if len(block) == rows.count else own)
                shown.update()
    parts = [_joined(rows.own.start + tile.start, pieces) for tile, pieces in zip(tiles, found, strict=True)]
    return Candidates(parts, anchors.columns.cpu().numpy(), neighbors.columns.cpu().numpy(), counts)


class _Largest:
    """The column of the largest value of each row, the lowest of equals; -1 until one is above -inf."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.values = torch.full((rows,), -torch.inf, dtype=torch.float32, device=device)
        self.columns = torch.full((rows,), -1, dtype=torch.int64, device=device)

    def take(self, rows: slice, block: Tensor, first: int) -> None:
        values, columns = block.max(dim=1)  # the first of equals
        better = values > self.values[rows]
        self.values[rows] = torch.where(better, values, self.values[rows])
        self.columns[rows] = torch.where(better, columns + first, self.columns[rows])


def _diagonal(rows: range, columns: range, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the images ``rows`` meet themselves among ``columns``: places of the rows, and of the columns."""
    first = max(rows.start, columns.start)
    both = torch.arange(first, max(first, min(rows.stop, columns.stop)), device=device)
    return both - rows.start, both - columns.start


def _above(
    similarity: Tensor, themselves: tuple[Tensor, Tensor], low: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries of a tile above ``low``, and the images' own: counts int64 [rows], columns int32, values float32."""
    is_listed = similarity > low
    is_listed[themselves] = True
    row, column = is_listed.nonzero(as_tuple=True)
    values, counts = similarity[row, column], row.bincount(minlength=len(similarity))
    return counts.cpu().numpy(), column.to(torch.int32).cpu().numpy(), values.cpu().numpy()


def _joined(first: int, pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Part:
    """The rows of a tile from those of its blocks, which are let go."""
    counts, columns, values = zip(*pieces, strict=True)
    pieces.clear()
    indptr = starts(np.sum(counts, axis=0))
    if len(columns) == 1:
        return Part(first, indptr, columns[0], values[0])
    row = np.concatenate([np.repeat(np.arange(len(count), dtype=np.int32), count) for count in counts])
    order = np.argsort(row, kind="stable")  # blocks stay in order, and with them columns
    return Part(first, indptr, np.concatenate(columns)[order], np.concatenate(values)[order])


def decide(rows: FeatureRows, candidates: Candidates, threshold: float, min_rank: int) -> list[Part]:
    """The positives of the own images, by rising column, image i itself among its own: the parts, thinned out."""
    processes = rows.processes
    counts, anchors = (
        np.concatenate(processes.everywhere(values)) for values in (candidates.counts, candidates.anchors)
    )
    checks = _CycleChecks(anchors, counts, min_rank, float(np.float32(threshold)))
    nothing = np.empty(0, np.int64)
    pending = [(nothing, nothing, nothing)]
    pending += [checks.check_rows(piece) for part in candidates.parts for piece in part.slices()]
    _share_highest(checks.first, processes)
    undecided = checks.still_open(*(np.concatenate(arrays) for arrays in zip(*pending, strict=True)))
    if sum(processes.everywhere(len(undecided[0]))):
        checks.settle(*undecided, _are_behind(rows, *undecided[:2], checks))
        _share_highest(checks.first, processes)
    return [checks.positives(part) for part in candidates.parts]


class _CycleChecks:
    """For each image the key of its first inconsistent candidate, ``first`` int64 [n], NO_KEY where there is none.

    The key orders candidates as they are walked: see :mod:`snnet_kernels.selection_keys`.
    """

    def __init__(self, anchors: np.ndarray, counts: np.ndarray, min_rank: int, bar: float) -> None:
        self.anchors, self.counts, self.bar = anchors, counts, bar
        self.most = np.maximum(counts, min_rank)  # rank of the anchor up to which a candidate is consistent
        self.first = np.full(len(counts), NO_KEY)

    def check_rows(self, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hold the rows of candidates against the images that have them.

        Returns what these rows do not tell, as their anchor is not among what they list: candidates, images and keys.
        """
        row, image, n = part.rows(), part.columns.astype(np.int64), len(self.counts)
        ranks, listed = _ranks(part, row), part.values > np.float32(self.bar - MARGIN)
        place, known = np.arange(len(row)), listed.copy()
        other = np.flatnonzero(self.anchors[image] != image)
        if len(other):
            entries = row * n + image
            wanted = row[other] * n + self.anchors[image[other]]
            place[other] = np.minimum(np.searchsorted(entries, wanted), len(row) - 1)
            known[other] = (entries[place[other]] == wanted) & listed[place[other]]
        lists = np.add.reduceat(listed, part.indptr[:-1], dtype=np.int64)  # every row has an entry, its own
        above = np.where(known, ranks[place], lists[row])
        keys = _keys(part.values, row + part.first)
        inconsistent = np.flatnonzero(above > self.most[image])
        np.maximum.at(self.first, image[inconsistent], keys[inconsistent])
        undecided = np.flatnonzero(
            ~known & (above <= self.most[image]) & (part.values > np.float32(self.bar))
        )
        return self.still_open(row[undecided] + part.first, image[undecided], keys[undecided])

    def still_open(
        self, candidate: np.ndarray, image: np.ndarray, keys: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Those that come before the first inconsistent candidate of an image that has more than two."""
        kept = (keys > self.first[image]) & (self.counts[image] > 2)
        return candidate[kept], image[kept], keys[kept]

    def settle(self, candidate: np.ndarray, image: np.ndarray, keys: np.ndarray, behind: np.ndarray) -> None:
        """Take what products have told."""
        np.maximum.at(self.first, image[behind], keys[behind])

    def positives(self, part: Part) -> Part:
        """The candidates before the first inconsistent one, at least two where there are two, and the image itself."""
        found = [self._positives(piece) for piece in part.slices()]
        counts, columns = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return Part(part.first, starts(counts), columns, np.empty(0, np.float32))

    def _positives(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        row = part.rows()
        keys = _keys(part.values, part.columns)
        keys[~(part.values > np.float32(self.bar))] = NO_KEY
        begin = part.indptr[:-1]
        most = np.maximum.reduceat(keys, begin)
        second = np.maximum.reduceat(np.where(keys == most[row], NO_KEY, keys), begin)
        first = self.first[part.first : part.first + len(begin)]
        # Its key has the similarity in the candidate's row; where products are not symmetric, the image's row has
        # another one. Positives come before both. So may another inconsistent candidate that is as similar but for
        # rounding.
        column = columns_of(torch.from_numpy(first)).numpy()
        own = np.where(part.columns == column[row], keys, NO_KEY)
        first = np.maximum(first, np.maximum.reduceat(own, begin))
        bars = np.minimum(first + 1, second)
        chosen = (keys != NO_KEY) & (keys >= bars[row]) | (part.columns == row + part.first)
        return np.add.reduceat(chosen, begin, dtype=np.int64), part.columns[chosen]


def _ranks(part: Part, row: np.ndarray) -> np.ndarray:
    """For each entry how many of its row have a larger similarity: int64."""
    falling = (row << 32) - (_keys(part.values, 0) >> 32)
    order = np.argsort(falling)
    ordered = falling[order]
    new = np.ones(len(row), dtype=bool)  # the first entry of its row with its similarity
    new[1:] = ordered[1:] != ordered[:-1]
    ranks = np.empty(len(row), np.int64)
    ranks[order] = np.maximum.accumulate(np.where(new, np.arange(len(row)), 0))
    return ranks - part.indptr[row]


def _keys(values: np.ndarray, columns: np.ndarray | int) -> np.ndarray:
    at = torch.as_tensor(columns, dtype=torch.int64, device="cpu")
    return keys_of(torch.from_numpy(values), at).numpy()


def _share_highest(keys: np.ndarray, processes: Processes) -> None:
    """Let all processes have the highest of their keys, in place."""
    if processes.are_several:
        dist.all_reduce(torch.from_numpy(keys), dist.ReduceOp.MAX)


def _are_behind(
    rows: FeatureRows, candidate: np.ndarray, image: np.ndarray, checks: _CycleChecks
) -> np.ndarray:
    """Whether more images than allowed are more similar to an own candidate than the anchor of the image is, bool.

    By whole rows of products, as many at a time as a tile has entries. Every process calls it.
    """
    images, device = rows.count, rows.features.device
    distinct, place = np.unique(candidate, return_inverse=True)
    step = max(1, TILE_ENTRIES // images)
    behind = np.zeros(len(candidate), bool)
    for first in range(0, max(rows.processes.everywhere(len(distinct))), step):
        asked = torch.from_numpy(distinct[first : first + step] - rows.own.start).to(device)
        products = torch.empty(len(asked), images, dtype=torch.float32, device=device)
        for start, block in rows.blocks():
            products[:, start : start + len(block)] = memory_similarity(rows.features[asked], block)
        pairs = np.flatnonzero((place >= first) & (place < first + step))
        for part in np.array_split(pairs, -(-len(pairs) // step)) if len(pairs) else []:
            row = products[torch.from_numpy(place[part] - first).to(device)]
            anchor = torch.from_numpy(checks.anchors[image[part]]).to(device)
            above = (row > row.gather(1, anchor[:, None])).sum(1).cpu().numpy()
            behind[part] = above > checks.most[image[part]]
    return behind


def starts(counts: np.ndarray) -> np.ndarray:
    """Where each of consecutive groups of ``counts`` entries begins, and the end of the last: int64."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def slices_of(indptr: np.ndarray) -> Iterator[tuple[range, slice]]:
    """Rows that have no more than ENTRIES_AT_ONCE together, or one row; and their entries."""
    first, rows = 0, len(indptr) - 1
    while first < rows:
        most = indptr[first] + ENTRIES_AT_ONCE
        last = max(first + 1, int(np.searchsorted(indptr, most, side="right")) - 1)
        yield range(first, last), slice(int(indptr[first]), int(indptr[last]))
        first = last

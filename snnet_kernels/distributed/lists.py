"""The neighbour lists of the own rows: what :class:`snnet_kernels.memory_lists.MemoryLists` is in one process."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..memory_lists import PROBED, MemoryLists
from ..neighbor_list_layout import NeighborLists, first_of_each
from ..ops.shard_lists import blended_rows, follow_moved_rows_, insert_pairs_, moved_pairs, remove_pairs_
from ..ops.similarity import float32_similarity
from .exchange import Exchange
from .rows import BLOCK, Division, Samples

ROWS_AT_ONCE = 4 * BLOCK  # of another process's memory, while lists are built


class Pairs(NamedTuple):
    """(row, column, value) of pairs on their way to the owners of their rows."""

    row: Tensor
    column: Tensor
    value: Tensor

    def sent(self, exchange: Exchange, division: Division) -> Pairs:
        """Those that all ranks have for rows of this one, 12 bytes each."""
        owner = division.owner(self.row)
        packed = torch.stack(
            [self.row.to(torch.int32), self.column.to(torch.int32), self.value.view(torch.int32)], dim=1
        )
        found = exchange.send_rows([packed[owner == rank] for rank in range(division.size)])
        return Pairs(found[:, 0].long(), found[:, 1].long(), found[:, 2].contiguous().view(torch.float32))


class ShardedLists(MemoryLists):
    """Lists of the own rows, symmetric over all processes, without mirrors; ``products`` and ``asked`` count those
    of all, and rank 0 alone warns."""

    parts = NeighborLists._fields[:4]

    def __init__(self, capacity: int, floor: float, exchange: Exchange, division: Division) -> None:
        super().__init__(capacity, floor)
        self.exchange, self.division = exchange, division
        self.first = division.first

    @property
    def width(self) -> int:
        """Places of a list."""
        return min(self.capacity, self.division.n)

    @property
    def images(self) -> int:
        return self.division.n

    def _warn_if_slow(self, products: int) -> None:
        if self.exchange.rank == 0:
            super()._warn_if_slow(products)

    def look_at_candidates(self, number: Tensor, threshold: float) -> None:
        """Warn before the first labels are predicted, if they will take long; ``number`` [B] of all samples."""
        if self.exchange.rank == 0 and number.device.type == "cpu":
            self._warn_of_a_long_wait(lambda: number[:PROBED], threshold)

    def build_(self, features: Tensor) -> None:
        """Make the lists of all processes' own rows ``features`` [m, d]: those of :func:`snnet_kernels.neighbor_lists`.

        Every process calls it. The rows of all processes come by, some at a time.
        """
        n, width, device = self.division.n, self.width, features.device
        filled = width if width == n else max(1, width // 2)
        values = features.new_full((len(features), filled + 1), -torch.inf)
        columns = torch.full((len(features), filled + 1), n, dtype=torch.int64, device=device)
        for rank in range(self.division.size):
            rows = self.division.rows(rank)
            for first in range(0, len(rows), ROWS_AT_ONCE):
                count = min(ROWS_AT_ONCE, len(rows) - first)
                part = features[first : first + count]
                part = self.exchange.broadcast(part, (count, features.shape[1]), rank)
                _take_largest(values, columns, features, part, rows.start + first)
        lowest = -torch.inf if width == n else self.floor
        floors = torch.full((len(features),), lowest, dtype=torch.float64, device=device).to(values)
        listed = values[:, :filled] > floors[:, None]
        floors = floors.maximum(values[:, filled]) if filled < n else floors
        made = NeighborLists(
            torch.full((len(features), width), -1, dtype=torch.int32, device=device),
            features.new_full((len(features), width), -torch.inf),
            torch.zeros(len(features), dtype=torch.int32, device=device),
            floors,
        )
        row, place = listed.nonzero().unbind(1)
        pairs = Pairs(row + self.first, columns[row, place], values[row, place])
        mirrored = Pairs(pairs.column, pairs.row, pairs.value).sent(self.exchange, self.division)
        # Products of (i, l) and (l, i) may be rounded apart on GPUs: where both rows list it, that of the lower one.
        is_lower = pairs.row < pairs.column
        parts = [
            Pairs(*(part[is_lower] for part in pairs)),
            mirrored,
            Pairs(*(part[~is_lower] for part in pairs)),
        ]
        both = Pairs(*(torch.cat(part) for part in zip(*parts, strict=True)))
        key, first_of = first_of_each(both.row * n + both.column)
        self._insert_(made, Pairs(key // n, key % n, both.value[first_of]))
        self._take(made, torch.zeros((), dtype=torch.int64, device=device))

    def _insert_(self, tables: NeighborLists, pairs: Pairs) -> None:
        """List pairs that are new to own rows; what finds no room in a row leaves both, and raises floors."""
        row, column, value = insert_pairs_(*tables[:4], pairs.row - self.first, pairs.column, pairs.value)
        cut = Pairs(row + self.first, column, value)
        told = Pairs(cut.column, cut.row, cut.value).sent(self.exchange, self.division)
        for part in (cut, told):
            remove_pairs_(*tables[:4], part.row - self.first, part.column, part.value)

    def update_(
        self,
        memory: Tensor,
        samples: Samples,
        features: Tensor,
        momentum: Tensor,
        similarity: Tensor,
        blended: Tensor | None = None,
    ) -> None:
        """The momentum update of all processes' ``samples`` with ``features`` [B, d] on the own rows and lists.

        ``similarity`` [B, m] is that of the features with the own rows ``memory`` [m, d] before the update. ``blended``
        is what all have made of the first of the rounds of the samples, if it has travelled already.
        """
        rounds = samples.rounds
        if len(rounds) > 1:
            similarity = similarity.clone()
        for turn, (entries, part) in enumerate(rounds):
            if blended is None:
                blended = self.exchange.gather(self.blended(memory, part, features[entries], momentum))
            self._follow_(memory, part, similarity[entries], blended, momentum)
            blended = None
            later, own = rounds[turn + 1 :], part.rows
            if len(later) and len(own):  # the later entries meet the memory as it is now
                at = torch.cat([entry for entry, _ in later if isinstance(entry, Tensor)])
                similarity[at[:, None], own[None, :]] = float32_similarity(features[at], memory[own])

    def blended(self, memory: Tensor, samples: Samples, features: Tensor, momentum: Tensor) -> Tensor:
        """What the own ones of the rows of ``samples`` (distinct) become, as it travels; nothing is written.

        Float32 [most, d + 2 + K], see :func:`.blended_rows`; ``most`` a process owns.
        """
        columns, _, _, floors = self._tables_read()
        given = samples.positions, features
        return blended_rows(memory, self.first, columns, floors, *given, momentum, samples.most)

    def _follow_(
        self, memory: Tensor, samples: Samples, similarity: Tensor, blended: Tensor, momentum: Tensor
    ) -> None:
        """Write the own ones of the rows of ``samples`` (distinct), and bring the own lists up to all of them.

        ``blended`` [R, most, d + 2 + K] is what all processes have made of their rows.

        In one exchange each process sends the number of pairs of every moved row and, behind it, as many pairs as
        there is room for: as many as the last batch needed, and a quarter more. If one has more pairs, a second
        exchange sends the rest.
        """
        lists, exchange, room = self.tables, self.exchange, self.exchange.room_for_pairs
        assert lists is not None
        of_rows, own = (samples.positions, samples.owner), (exchange.rank, self.first, self.width)
        blocks, pairs, row, column, value = follow_moved_rows_(
            memory, *lists[:4], self.first, similarity, blended, *of_rows, momentum, room
        )
        once = [1] * exchange.size
        came = exchange.send(blocks, once, once)
        *arrived, told = moved_pairs(came, pairs[:0], *of_rows, *own)
        most, overflows = told.tolist()
        if most > room:
            *arrived, _ = moved_pairs(came, self._behind_room(samples, blocks, pairs, came), *of_rows, *own)
        exchange.room_for_pairs = most + most // 4
        if overflows:
            parts = zip(arrived, (row, column, value), strict=True)
            local, column, value = (torch.cat(both) for both in parts)
            self._insert_(lists, Pairs(local + self.first, column, value))
        else:
            insert_pairs_(*lists[:4], *arrived)

    def _behind_room(self, samples: Samples, blocks: Tensor, pairs: Tensor, came: Tensor) -> Tensor:
        """The pairs int32 [E, 2] of all processes that did not fit into what ``came`` of their blocks."""
        size, room = self.exchange.size, self.exchange.room_for_pairs
        m, own = len(samples.positions), samples.owner == self.exchange.rank
        numbers = torch.zeros(size, dtype=torch.int32, device=blocks.device)
        numbers.index_add_(0, samples.owner, blocks[0, :m])
        parts = [part[room:] for part in pairs.split(numbers.tolist())]
        coming = [max(count - room, 0) for count in came[:, :m][:, own].sum(1).tolist()]
        return self.exchange.send(torch.cat(parts), [len(part) for part in parts], coming)

    def _are_whole(self, tables: NeighborLists, features: Tensor) -> bool:
        shape = len(features), self.width
        wanted = (torch.int32, 2), (torch.float32, 2), (torch.int32, 1), (torch.float32, 1)
        return all(
            table.dtype == dtype and table.shape == shape[:dims]
            for table, (dtype, dims) in zip(tables[:4], wanted, strict=True)
        )


def _take_largest(values: Tensor, columns: Tensor, features: Tensor, part: Tensor, first: int) -> None:
    """Keep the largest of what each row had [m, k] and of its products with ``part``, which stands at ``first``."""
    most = values.shape[1]
    for start in range(0, len(features), BLOCK):
        rows = slice(start, start + BLOCK)
        products = float32_similarity(features[rows], part)
        # A tie with a lower column stays behind.
        row, column = (products > values[rows, -1:]).nonzero().unbind(1)
        if not len(row):
            continue
        counts = torch.bincount(row, minlength=len(products))
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        width = int(counts.max())
        found = products.new_full((len(products), most + width), -torch.inf)
        at = torch.full(found.shape, torch.iinfo(torch.int64).max, device=row.device)
        found[:, :most], at[:, :most] = values[rows], columns[rows]
        found[row, most + place], at[row, most + place] = products[row, column], column + first
        # What was there has lower columns: a stable sort leaves it before its equals.
        found, order = found.sort(dim=1, descending=True, stable=True)
        values[rows], columns[rows] = found[:, :most], at.gather(1, order)[:, :most]

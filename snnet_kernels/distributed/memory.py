"""The exemplar memory M divided by rows over the processes of a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .. import checks
from ..exemplar_memory import ExemplarMemory
from ..layout import packed_entries
from ..ops.memory_update import update_memory_
from ..ops.similarity import float32_similarity
from ..precision import rounds_products
from .exchange import Exchange, Facts
from .lists import ShardedLists
from .prediction import Inquiry, OwnRows, Predicted, sent_keys
from .rows import Division, Samples


class ShardedExemplarMemory(ExemplarMemory):
    """The rows of M that this process owns: what ``ExemplarMemory(n, d, process_group=group)`` makes.

    All processes of the group call its methods in the same order, each with its own samples, of the same number: they
    are collective, but for :meth:`similarity` and what saves and loads. M, lists, labels and neighbours are those of
    one process that gets the samples of rank 0, then those of rank 1, and so on, but for when :meth:`renew_lists_`
    makes lists afresh.

    ``own_rows`` are whole blocks of 512 rows, as equal as may be; ``features`` [len(own_rows), d] are these.
    ``state_dict()`` has the own rows of M, and of its lists where they are built, and says in ``rows`` int64 [2] which
    they are: the first one and ``num_instances``.
    """

    lists: ShardedLists

    def _join(self, process_group: ProcessGroup | None) -> range:
        self.exchange = Exchange(process_group)
        self.division = Division(self.num_instances, self.exchange.size, self.exchange.rank)
        return self.division.own

    def _empty_lists(self, neighbors: int, floor: float) -> ShardedLists:
        if neighbors == 0:
            raise ValueError(
                "neighbors must be at least 1 with a process_group, which finds labels by lists, got 0"
            )
        return ShardedLists(neighbors, floor, self.exchange, self.division)

    def _facts(self) -> Facts:
        """What must be the same on all ranks."""
        return {
            "num_instances": self.num_instances,
            "feature_dim": self.feature_dim,
            "neighbors": self.lists.capacity,
            "floor": checks.check_finite("floor", self.lists.floor),
        }

    def initialize_(self, features: Tensor) -> None:
        """Fill M with ``features``: of all images, [n, d], or of the own rows alone; see :class:`ExemplarMemory`."""
        device = self.features.device
        part = self.exchange.agreed(
            "initialize_", device, lambda: self._own_part(features), lambda _: self._facts()
        )
        with torch.no_grad():
            self.features.copy_(part)
        self.mark_written_()

    def _own_part(self, features: Tensor) -> Tensor:
        features, first = checks.check_features("features", features, self.feature_dim), 0
        if len(features) == self.num_instances:
            first = self.own_rows.start
            features = features[first : self.own_rows.stop]
        elif len(features) != len(self.own_rows):
            raise ValueError(
                f"features must have shape {[self.num_instances, self.feature_dim]}, or that of the own rows, "
                f"{list(self.features.shape)}, got {list(features.shape)}"
            )
        checks.check_lengths("features", features, first=first)
        (features,) = checks.apart([self.features], features)
        return features.to(self.features.device)

    def mark_written_(self) -> None:
        """Say that ``features`` of a process were written past autograd; see :meth:`ExemplarMemory.mark_written_`."""
        device = self.features.device
        self.exchange.agreed("mark_written_", device, lambda: None, lambda _: self._facts())
        self._count_change()
        if self.exchange.any(self.lists.tables is not None, device):
            self.build_lists_()

    def renew_lists_(self) -> None:
        """Make the lists afresh where that is cheaper than to go on; see :meth:`ExemplarMemory.renew_lists_`.

        Rows that are multiplied beside the lists are counted otherwise than in one process, so this may happen at
        another call than there. Similarities in new lists may differ in their last bits from those that have followed.
        """
        device = self.features.device
        worn = self.exchange.agreed("renew_lists_", device, self.lists.are_worn, lambda _: self._facts())
        if self.exchange.any(worn, device):
            self.build_lists_()

    def build_lists_(self) -> None:
        """Make the lists afresh, n²d/R multiply-adds in each of R processes; all rows travel once to each."""
        self.exchange.agreed("build_lists_", self.features.device, lambda: None, lambda _: self._facts())
        super().build_lists_()

    def current_lists(self, rows: Tensor | None = None) -> ShardedLists:
        """The lists of the features as they are now; owners compare the ``rows`` int64 [k] of all ranks."""

        def check() -> Tensor | None:
            return None if rows is None else checks.check_index("rows", rows, self.num_instances)

        checked = self.exchange.agreed(
            "current_lists", self.features.device, check,
            lambda found: {"the number of rows": -1 if found is None else len(found), **self._facts()},
        )  # fmt: skip
        if checked is None:
            return self._current_lists(None)
        everything, start, stop = (
            self.exchange.gather(checked).flatten(),
            self.own_rows.start,
            self.own_rows.stop,
        )
        return self._current_lists(everything[(everything >= start) & (everything < stop)] - start)

    def _current_lists(self, rows: Tensor | None) -> ShardedLists:
        """The same where all ranks have agreed on their call; own ``rows``, counted from the first."""
        if self._any_are_stale(rows):
            self.build_lists_()
        return self.lists

    def _any_are_stale(self, rows: Tensor | None) -> bool:
        """Whether :meth:`_are_stale` holds on one of the ranks, each with its own ``rows``."""
        return self.exchange.any(self._are_stale(rows), self.features.device)

    def _are_stale(self, rows: Tensor | None) -> bool:
        """Whether the own lists are not those of the own features, of which ``rows`` int64 [k] are compared."""
        self._notice(rows)
        return self._lists_at_hand() is None

    def similarity(self, features: Tensor) -> Tensor:
        """s [B, len(own_rows)] of ``features`` [B, d] with the own rows; not collective."""
        return super().similarity(features)

    def predict_labels(
        self, index: Tensor, threshold: float = 0.6, min_rank: int = 10, *, query_rows: Tensor | None = None
    ) -> Tensor:
        """Packed pseudo labels uint8 [b, label_bytes(n)] of the own samples ``index`` [b]."""

        def options() -> Facts:
            checked = checks.check_prediction_options(threshold, min_rank)
            return dict(zip(("threshold", "min_rank"), checked, strict=True))

        samples, rows = self._asked("predict_labels", index, query_rows, options)
        loaded = len(samples.positions) // self.exchange.size
        before = self.exchange.rank * loaded
        live = None
        if rows is not None:
            part = slice(before, before + loaded)
            live = sent_keys(rows, 0, part, samples, float(threshold), self.exchange)
        found = self._predicted(samples, float(threshold), int(min_rank), live)
        row = found.sample - before
        own = (row >= 0) & (row < loaded)
        return packed_entries(row[own], found.column[own], loaded, self.num_instances)

    def _predicted(
        self,
        samples: Samples,
        threshold: float,
        min_rank: int,
        live: Tensor | None,
        inquiry: Inquiry | None = None,
    ) -> Predicted:
        """Labels of the samples of all processes, in all of them; lists that are not those of M are made afresh."""
        stale = self._are_stale(samples.rows)
        while True:
            own = OwnRows(self.features, self.lists.tables, self.exchange, self.division)
            found = own.predict(
                samples, threshold, min_rank, live,
                stale=stale, look=lambda number: self.lists.look_at_candidates(number, threshold), inquiry=inquiry,
            )  # fmt: skip
            if found is not None:
                self._count(found.products, samples, threshold)
                return found
            self.build_lists_()
            stale = False

    def _count(self, products: int, samples: Samples, threshold: float | None = None) -> None:
        """See :meth:`MemoryLists._count`."""
        asked = len(samples.positions)
        if asked:  # else there may be no lists
            self.lists._count(torch.tensor(products, device=self.features.device), asked, threshold)

    def nearest(
        self, index: Tensor, k: int = 1, *, query_rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The ``k`` nearest other images of the own samples ``index`` [b]: positions int64 and similarities [b, k]."""

        def options() -> Facts:
            return {"k": checks.check_neighbors(k, self.num_instances)}

        samples, rows = self._asked("nearest", index, query_rows, options)
        own = self._own_rows(samples)
        if rows is not None:  # they go to the owners of the samples
            owner = self.division.owner(index)
            rows = self.exchange.send_rows([rows[owner == rank] for rank in range(self.exchange.size)])
        columns, values = own.nearest(samples, k, rows)
        if rows is None:
            self._count(own.products, samples)
        packed = torch.cat([columns.to(torch.int32), values.view(torch.int32)], dim=1)
        answer = samples.to_loaders(packed, self.exchange)
        return answer[:, :k].long(), answer[:, k:].contiguous().view(torch.float32)

    def _asked(
        self, call: str, index: Tensor, query_rows: Tensor | None, options: Callable[[], Facts]
    ) -> tuple[Samples, Tensor | None]:
        """The samples of all processes, and the checked ``query_rows`` of the own ones.

        ``options`` checks the other arguments and states them.
        """

        def check() -> tuple[Tensor, Tensor | None, Facts]:
            self._refuse_replication()
            checked, given = checks.check_index("index", index, self.num_instances), None
            if query_rows is not None:
                given = checks.check_rows("query_rows", query_rows, len(checked), self.num_instances).detach()
            checks.check_same_device(memory=self.features, index=checked, query_rows=given)
            return checked, given, options()

        asked, given, _ = self.exchange.agreed(
            call,
            self.features.device,
            check,
            lambda found: {
                "the number of samples": len(found[0]),
                "whether query_rows are given": found[1] is not None,
                **found[2],
                **self._facts(),
            },
        )
        return Samples(self.exchange.gather(asked).flatten(), self.division), given

    def _own_rows(self, samples: Samples) -> OwnRows:
        tables = self._current_lists(samples.rows).tables
        assert tables is not None
        return OwnRows(self.features, tables, self.exchange, self.division)

    @torch.no_grad()
    def update_(
        self, index: Tensor, features: Tensor, momentum: float | Tensor, *, similarity: Tensor | None = None
    ) -> None:
        """Momentum update by the own samples ``index`` [b], ``features`` [b, d] of all processes, in order of ranks.

        ``similarity`` [B, len(own_rows)] is that of the features of all B samples, if it is at hand.
        """

        def check() -> tuple[Tensor, Tensor, Tensor]:
            self._refuse_replication()
            live = checks.check_features("features", features, self.feature_dim).detach()
            checked = checks.check_index("index", index, self.num_instances, len(live))
            if similarity is not None:
                batch = len(live) * self.exchange.size
                checks.check_rows("similarity", similarity, batch, len(self.features))
            checks.check_same_device(
                memory=self.features, index=checked, features=live, similarity=similarity
            )
            return checked, live, checks.check_momentum(momentum, self.features.device)

        own, live, alpha = self.exchange.agreed(
            "update_", self.features.device, check,
            lambda found: {"the number of samples": len(found[0]), "momentum": float(found[2]), **self._facts()},
        )  # fmt: skip
        rows, everything = (part.flatten(0, 1) for part in self.exchange.gather_all([live.contiguous(), own]))
        samples = Samples(everything, self.division)
        known = self.version
        lists = None if self._any_are_stale(samples.rows) else self.lists
        if similarity is not None:  # unless it is of what the memory was before something else wrote it
            similarity = similarity.detach().float().contiguous() if self.version == known else None
        self._blend_(samples, rows, alpha, similarity, lists)

    def _blend_(
        self,
        samples: Samples,
        features: Tensor,
        momentum: Tensor,
        similarity: Tensor | None,
        lists: ShardedLists | None,
        blended: Tensor | None = None,
    ) -> None:
        """The same, given the samples of all processes. Without ``lists`` the lists are not updated, but rebuilt when
        they are next needed.

        ``blended``: what all have made of the rows of the first round, see :meth:`.ShardedLists.blended`.
        """
        if lists is None:
            update_memory_(self.features, samples.rows, features[samples.own], momentum)
            self._count_change()
            return
        if similarity is None or rounds_products(features.device):
            similarity = float32_similarity(features, self.features)
        lists.update_(self.features, samples, features, momentum, similarity, blended)
        self._vouch_for_lists(samples.rows)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}rows"] = self.division.saved(self.features.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        try:
            self.division.check_saved(state_dict.pop(f"{prefix}rows", None))
        except ValueError as error:
            args[4].append(f"{prefix}{error}")  # of those that load_state_dict() raises as one
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _rebuild_loaded_(self) -> None:
        """Not here: lists are made afresh when all processes next need them."""

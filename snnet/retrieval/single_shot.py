"""CMC of CUHK03's protocol: the gallery holds one image of each identity, drawn anew several times."""

from __future__ import annotations

from numbers import Integral

import numpy as np

from snnet.errors import UserError

REPEATS = 10  # galleries of a query
_ENTRIES = 1 << 20  # draws that are held at a time, 8 bytes each; four arrays of this size


def shot_generator(single_gallery_shot: object) -> np.random.Generator | None:
    """What draws the galleries: the generator that was given, or one of the given seed; None where none are drawn."""
    given = single_gallery_shot
    if given is None or isinstance(given, np.random.Generator):
        return given
    if isinstance(given, (bool, np.bool_)) and not given:
        return None  # as the field of the configuration says it
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 0:
        raise UserError(
            f"single_gallery_shot must be a seed (an integer of at least 0), a generator, None or False, got {given!r}"
        )
    return np.random.default_rng(int(given))


def single_shot_ranks(
    similarity: np.ndarray,  # [queries, gallery], any real dtype, without NaN; compared as float32
    query_pids: np.ndarray,  # int64 [queries]
    gallery_pids: np.ndarray,  # int64 [gallery]
    query_cams: np.ndarray,  # int64 [queries]
    gallery_cams: np.ndarray,  # int64 [gallery]
    generator: np.random.Generator,
) -> np.ndarray:
    """The rank of each query's match in galleries of one image an identity: int64 [queries, REPEATS], 0 without match.

    Each repeat of each query draws its own gallery: one image of each identity, all equally likely. That of the query's
    own identity is never of the query's camera. Images of pid -1 are not drawn. Equal similarities rank in gallery
    order.
    """
    columns = np.argsort(gallery_pids, kind="stable")
    columns = columns[gallery_pids[columns] != -1]
    identities, starts, sizes = np.unique(gallery_pids[columns], return_index=True, return_counts=True)
    ranks = np.zeros((len(query_pids), REPEATS), np.int64)
    if len(identities) == 0:
        return ranks
    step = max(1, _ENTRIES // (REPEATS * len(identities)))
    for first in range(0, len(query_pids), step):
        rows = np.arange(first, min(first + step, len(query_pids)))
        drawn = generator.random((len(rows), REPEATS, len(identities)))
        chosen = columns[starts + (drawn * sizes).astype(np.int64)]
        for row, own, uniform in zip(rows, chosen, drawn, strict=True):
            place = np.searchsorted(identities, query_pids[row])
            if place == len(identities) or identities[place] != query_pids[row]:
                continue
            images = columns[starts[place] : starts[place] + sizes[place]]
            matches = images[gallery_cams[images] != query_cams[row]]
            if len(matches) == 0:
                continue
            own[:, place] = matches[(uniform[:, place] * len(matches)).astype(np.int64)]
            values = similarity[row].astype(np.float32)[own]
            match, at = values[:, place, None], own[:, place, None]
            ahead = (values > match) | ((values == match) & (own < at))
            ranks[row] = 1 + ahead.sum(axis=1)
    return ranks

"""CMC of CUHK03's protocol: the gallery holds one image of each identity, drawn anew several times."""

from __future__ import annotations

import numpy as np

REPEATS = 10  # galleries of a query
_ENTRIES = 1 << 20  # draws that are held at a time, 8 bytes each; four arrays of this size


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

"""Features of a whole split, and the retrieval quality they give."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from snnet.checks import check_query_and_gallery
from snnet.config.options import AveragePrecision, Config
from snnet.data import BatchLoader, DecodedImages, ImageSet, ReIDDataset, decode_images, extraction_loader
from snnet.data.decoding import warn_of_skipped
from snnet.errors import UserError
from snnet.retrieval.query_expansion import expand_queries
from snnet.retrieval.rank_metrics import (
    RankMetrics,
    checked_identities,
    have_match,
    rank_metrics,
    why_no_match,
)
from snnet.retrieval.reranking import rerank
from snnet.retrieval.single_shot import shot_generator
from snnet.runtime import PlacedModel, Placement
from snnet.system.processes import ALONE, Processes
from snnet.system.progress import progress
from snnet.system.row_exchange import rows_of_all
from snnet.training.checkpoint import image_fingerprint
from snnet_kernels.ops.similarity import float32_similarity

# Query-gallery pairs whose similarity is held at a time: 1 GB in float32.
PAIRS_AT_A_TIME = 2**28


@dataclass(frozen=True, eq=False)
class Identities:
    """Identities and cameras of query and gallery: what ranking needs besides features."""

    query_pids: np.ndarray  # int64 [q]
    gallery_pids: np.ndarray  # int64 [g]
    query_cams: np.ndarray  # int64 [q]
    gallery_cams: np.ndarray  # int64 [g]

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All four, in the order in which :func:`rank_metrics` takes them."""
        return self.query_pids, self.gallery_pids, self.query_cams, self.gallery_cams

    def select(self, queries: np.ndarray | slice, gallery: np.ndarray | slice = slice(None)) -> Identities:
        """Those of some queries and some gallery images."""
        return Identities(
            self.query_pids[queries],
            self.gallery_pids[gallery],
            self.query_cams[queries],
            self.gallery_cams[gallery],
        )

    def checked(self, queries: int, gallery: int) -> Identities:
        """The same as int64; raises :class:`~snnet.errors.UserError` unless they are of that many images."""
        return Identities(*checked_identities(*self.arrays(), queries, gallery))


@dataclass(frozen=True, eq=False)
class RetrievalSet(Identities):
    """The decoded query and gallery of a dataset, with their identities and cameras.

    Each of several processes has its share of the images; rank 0 has the identities and cameras of all.
    """

    query: DecodedImages
    gallery: DecodedImages


def decode(images: ImageSet, config: Config, *, tell_skipped: bool = True) -> DecodedImages:
    """:func:`~snnet.data.decode_images` as ``config`` says."""
    data = config.data
    cache = data.image_cache if data.image_cache == "auto" else data.image_cache == "on"
    return decode_images(images, skip_bad=data.skip_bad_images, cache=cache, tell_skipped=tell_skipped)


def check_same_images(dataset: ReIDDataset, processes: Processes) -> None:
    """Raise :class:`~snnet.errors.UserError` where ``processes`` have found other images than rank 0."""
    if not processes.are_several:
        return
    facts: dict[str, int | None] = {}
    for name, images in (("training", dataset.train), ("query", dataset.query), ("gallery", dataset.gallery)):
        facts[f"the number of {name} images"] = None if images is None else len(images)
        names = None if images is None else image_fingerprint(images.paths)
        facts[f"the checksum of the names of the {name} images"] = names
    processes.check_alike(facts)


def known_identities(dataset: ReIDDataset) -> Identities | None:
    """What ranking needs of the files' names, before an image is read; None where there is nothing to rank.

    Raises :class:`~snnet.errors.UserError` where no query has a match.
    """
    query, gallery = dataset.query, dataset.gallery
    if query is None or gallery is None or query.pids is None or gallery.pids is None:
        return None
    found = Identities(query.pids, gallery.pids, *dataset.evaluation_cams())
    if not have_match(*found.arrays()).any():
        raise UserError(why_no_match(*found.arrays()))
    return found


def decode_retrieval_set(
    dataset: ReIDDataset, config: Config, processes: Processes = ALONE
) -> RetrievalSet | None:
    """Decode query and gallery; None for a dataset that has none, or no identities.

    Raises :class:`~snnet.errors.UserError` before that where no query has a match.
    """
    asked, ranked = dataset.query, dataset.gallery
    if asked is None or ranked is None or known_identities(dataset) is None:
        return None
    (query, queries), (gallery, others) = (
        decode_share(images, config, processes) for images in (asked, ranked)
    )
    kept = dataclasses.replace(dataset, query=queries, gallery=others)
    assert queries.pids is not None and others.pids is not None  # since those of the whole splits are known
    return RetrievalSet(queries.pids, others.pids, *kept.evaluation_cams(), query, gallery)


def decode_share(
    images: ImageSet, config: Config, processes: Processes = ALONE
) -> tuple[DecodedImages, ImageSet]:
    """Decode this process's share of a split. Rank 0 also gets all images of the split that could be read.

    Those that are left out are told once for the whole split; :class:`~snnet.errors.UserError` where all of them are.
    """
    share = np.array(own_share(len(images), config, processes), np.int64)
    decoded = decode(images.select(share), config, tell_skipped=False)
    skipped = list(itertools.chain(*processes.everywhere(decoded.skipped)))
    with processes.one_warns():
        warn_of_skipped(skipped, len(images))
    return decoded, ImageSet.joined(processes.gathered(decoded.images) or [decoded.images])


def own_share(images: int, config: Config, processes: Processes) -> range:
    """The images that this process extracts, in the batches in which one process would."""
    return processes.share(images, config.data.batch_size)


def extract_features(
    network: PlacedModel,
    decoded: DecodedImages,
    kind: Literal["train", "before", "after"],
    processes: Processes = ALONE,
) -> Tensor:
    """Features [n, d] of a split's images in order: float32 on the placement's device, rows of norm 1.

    Each of several ``processes`` calls it with its share of the images, and gets their features.

    ``kind``: "train" is the feature that the loss sees, "before" and "after" the retrieval feature on that
    side of the neck; all with the network in ``eval()``, and without augmentation. Raises
    :class:`~snnet.errors.UserError` where a feature is not finite.
    """
    model, placement, data = network.model, network.placement, network.config.data
    loader = extraction_loader(
        decoded,
        height=data.height,
        width=data.width,
        batch_size=data.batch_size,
        workers=data.workers if len(decoded) > data.batch_size else 0,  # starting them takes longer
        pin_memory=placement.pin_memory,
    )
    forward = model if kind == "train" else partial(model.retrieve, after_neck=kind == "after")
    return _extracted(model, forward, loader, len(decoded), placement, processes, model.feature_dim)


def module_features(
    module: nn.Module,
    images: ImageSet | DecodedImages,
    *,
    height: int = 256,
    width: int = 128,
    batch_size: int = 64,
    workers: int = 0,
) -> Tensor:
    """Features [n, d] of images in order by any network: float32 on its device, rows of norm 1.

    ``module`` maps images [B, 3, height, width], RGB with ImageNet's mean and standard deviation, to features [B, d].
    It runs in ``eval()`` without gradients, and every part of it is left in the mode that it was in. A split
    that is not decoded yet is decoded first. The result fits :func:`snnet_kernels.jaccard_graph`, :func:`rank_gallery`
    and everything else that takes features.

    Raises:
        UserError: an image cannot be read; the module returns something else than features [B, d] of real numbers,
            such as a tuple; a feature is not finite.
    """
    decoded = decode_images(images) if isinstance(images, ImageSet) else images
    loader = extraction_loader(decoded, height=height, width=width, batch_size=batch_size, workers=workers)
    tensor = next(itertools.chain(module.parameters(), module.buffers()), torch.empty(0))
    placement = Placement(tensor.device, amp=False, channels_last=False)
    return _extracted(
        module, lambda batch: _unit_rows(module(batch), len(batch)), loader, len(decoded), placement
    )


def _unit_rows(found: Any, size: int) -> Tensor:
    """What a module returned for ``size`` images, where it is features, as float32 of norm 1."""
    needed = f"the network must return features [{size}, d] of real numbers for {size} images, got"
    if not isinstance(found, Tensor):
        raise UserError(
            f"{needed} a {type(found).__name__}; wrap it in a module that returns the features alone"
        )
    if found.dim() != 2 or len(found) != size or found.shape[1] == 0 or not found.is_floating_point():
        raise UserError(f"{needed} shape {tuple(found.shape)} of {found.dtype}")
    return normalize(found.float(), dim=1)


def _extracted(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    loader: BatchLoader,
    count: int,
    placement: Placement,
    processes: Processes = ALONE,
    dim: int = 0,
) -> Tensor:
    """The results of ``forward`` for all batches, with ``model`` in ``eval()``; its parts get their modes back.

    Where there is no batch, as in an empty share of several ``processes``, the result is [0, dim].
    """
    modes = [(part, part.training) for part in model.modules()]
    features: Tensor | None = None
    model.eval()
    try:
        with torch.inference_mode(), placement.autocast():
            for images, index in progress(loader, "extracting"):
                found = forward(placement.images(images))
                if features is None:
                    with torch.inference_mode(False):  # what reads them may need gradients
                        features = torch.empty(
                            count, found.shape[1], dtype=torch.float32, device=placement.device
                        )
                features[int(index[0]) : int(index[0]) + len(index)] = found
    finally:
        for part, training in modes:
            part.training = training
    if features is None:
        features = torch.empty(0, dim, dtype=torch.float32, device=placement.device)
    bad = int((~torch.isfinite(features)).any(dim=1).sum())
    counts = processes.everywhere((bad, count))
    bad, images = (sum(numbers) for numbers in zip(*counts, strict=True))
    if bad:
        raise UserError(f"the features of {bad} of {images} images are not finite: the weights have diverged")
    return features


def retrieval_kind(config: Config) -> Literal["before", "after"]:
    """The side of the neck that ``config``, as :func:`snnet.config.options.config_from` makes it, ranks with."""
    return "after" if config.model.retrieval_feature == "after" else "before"


def retrieval_features(
    network: PlacedModel, retrieval: RetrievalSet, processes: Processes = ALONE
) -> tuple[Tensor, Tensor]:
    """The retrieval features of the queries [q, d] and the gallery [g, d]; see :func:`extract_features`.

    Of several ``processes`` only rank 0 gets them; the others get [0, d].
    """
    kind = retrieval_kind(network.config)

    def found(images: DecodedImages) -> Tensor:
        own = extract_features(network, images, kind, processes)
        return rows_of_all(own, processes).to(network.placement.device)

    return found(retrieval.query), found(retrieval.gallery)


def shot_seed(config: Config) -> int | None:
    """The seed of the galleries with one image an identity; None where ``config`` asks for none."""
    return config.runtime.seed if config.output.single_gallery_shot else None


def rank_gallery(
    query: Tensor,  # [q, d], rows of norm 1
    gallery: Tensor,  # [g, d], rows of norm 1
    identities: Identities,
    average_precision: AveragePrecision,
    single_gallery_shot: int | None = None,
) -> RankMetrics:
    """CMC and mAP of features by cosine similarity, in float32; the last two as in :func:`rank_metrics`.

    Raises :class:`~snnet.errors.UserError` for a row that is not of norm 1, for identities that are not of as many
    images, and where no query has a match.
    """
    check_query_and_gallery(query, gallery, "ranking compares directions")
    identities = identities.checked(len(query), len(gallery))
    generator = shot_generator(single_gallery_shot)
    matched = np.flatnonzero(have_match(*identities.arrays()))
    if len(matched) == 0:
        raise UserError(why_no_match(*identities.arrays()))
    results = []
    for rows in np.array_split(matched, math.ceil(len(matched) * len(gallery) / PAIRS_AT_A_TIME)):
        similarity = float32_similarity(query[torch.from_numpy(rows)], gallery).cpu().numpy()
        results.append(
            rank_metrics(
                similarity,
                *identities.select(rows).arrays(),
                average_precision=average_precision,
                single_gallery_shot=generator,
            )
        )
    return dataclasses.replace(_combined(results), num_without_match=len(query) - len(matched))


def _without_junk(
    query: Tensor, gallery: Tensor, identities: Identities
) -> tuple[Tensor, Tensor, Identities, int]:
    """The features and identities but those of pid -1, which no ranking counts; and how many queries are left out."""
    identities = identities.checked(len(query), len(gallery))
    asked, ranked = (np.flatnonzero(pids != -1) for pids in (identities.query_pids, identities.gallery_pids))
    kept = identities.select(asked, ranked)
    if not have_match(*kept.arrays()).any():
        raise UserError(why_no_match(*identities.arrays()))
    left_out = len(query) - len(asked)
    return query[torch.from_numpy(asked)], gallery[torch.from_numpy(ranked)], kept, left_out


def rerank_gallery(
    query: Tensor,  # [q, d]
    gallery: Tensor,  # [g, d]
    identities: Identities,
    average_precision: AveragePrecision,
    single_gallery_shot: int | None = None,
) -> RankMetrics:
    """CMC and mAP after k-reciprocal re-ranking (:mod:`snnet.retrieval.reranking`).

    Images of pid -1, which no ranking has, are nobody's neighbours here either.
    """
    query, gallery, kept, left_out = _without_junk(query, gallery, identities)
    distance = rerank(query, gallery)
    found = rank_metrics(
        np.negative(distance, out=distance),
        *kept.arrays(),
        average_precision=average_precision,
        single_gallery_shot=single_gallery_shot,
    )
    return dataclasses.replace(found, num_without_match=found.num_without_match + left_out)


def expand_and_rank(
    query: Tensor,  # [q, d]
    gallery: Tensor,  # [g, d]
    identities: Identities,
    average_precision: AveragePrecision,
    neighbors: int,
    single_gallery_shot: int | None = None,
) -> RankMetrics:
    """CMC and mAP after query expansion (:mod:`snnet.retrieval.query_expansion`).

    Images of pid -1, which no ranking has, are nobody's neighbours here either.
    """
    query, gallery, kept, left_out = _without_junk(query, gallery, identities)
    expanded = expand_queries(query, gallery, neighbors)
    found = rank_gallery(*expanded, kept, average_precision, single_gallery_shot)
    return dataclasses.replace(found, num_without_match=found.num_without_match + left_out)


def _combined(results: list[RankMetrics]) -> RankMetrics:
    """The metrics of all queries from those of disjoint groups of them."""
    counts = np.array([result.num_queries for result in results])

    def mean(values: list) -> np.ndarray:  # type: ignore[type-arg]
        return np.average(np.array(values), axis=0, weights=counts)

    return dataclasses.replace(
        results[0],
        cmc=mean([result.cmc for result in results]),
        mAP=float(mean([result.mAP for result in results])),
        mINP=float(mean([result.mINP for result in results])),
        num_queries=int(counts.sum()),
        num_without_match=sum(result.num_without_match for result in results),
    )

"""Features of a whole split, and the retrieval quality they give."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from snnet.config.options import Config, cache_mode
from snnet.data import DecodedImages, ImageSet, ReIDDataset, decode_images, extraction_loader
from snnet.errors import UserError
from snnet.models import ReIDModel
from snnet.retrieval.query_expansion import expand_queries
from snnet.retrieval.rank_metrics import RankMetrics, rank_metrics
from snnet.retrieval.reranking import rerank
from snnet.runtime import Placement
from snnet.system.progress import progress
from snnet_kernels import memory_similarity

# Query-gallery pairs whose similarity is held at a time: 1 GB in float32.
PAIRS_AT_A_TIME = 2**28


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """The decoded query and gallery of a dataset, with the identities and cameras that ranking needs."""

    query: DecodedImages
    gallery: DecodedImages
    query_pids: np.ndarray  # int64 [q]
    gallery_pids: np.ndarray  # int64 [g]
    query_cams: np.ndarray  # int64 [q]
    gallery_cams: np.ndarray  # int64 [g]

    def identities(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Identities of query and gallery, then their cameras."""
        return self.query_pids, self.gallery_pids, self.query_cams, self.gallery_cams


def decode(images: ImageSet, config: Config) -> DecodedImages:
    """Decode a split as ``config`` says."""
    data = config.data
    return decode_images(images, skip_bad=data.skip_bad_images, cache=cache_mode(data.image_cache))


def decode_retrieval_set(dataset: ReIDDataset, config: Config) -> RetrievalSet | None:
    """Decode query and gallery; None for a dataset that has none, or no identities."""
    if dataset.query is None or dataset.gallery is None:
        return None
    query, gallery = decode(dataset.query, config), decode(dataset.gallery, config)
    kept = dataclasses.replace(dataset, query=query.images, gallery=gallery.images)
    if query.images.pids is None or gallery.images.pids is None:
        return None
    return RetrievalSet(query, gallery, query.images.pids, gallery.images.pids, *kept.evaluation_cams())


def extract_features(
    model: ReIDModel,
    decoded: DecodedImages,
    config: Config,
    placement: Placement,
    kind: Literal["train", "before", "after"],
) -> Tensor:
    """Features [n, d] of a split's images in order: float32 on the placement's device, rows of norm 1.

    ``kind``: "train" is the feature that the loss sees, "before" and "after" the retrieval feature on that
    side of the neck; all with the network in ``eval()``, and without augmentation. Raises
    :class:`~snnet.errors.UserError` where a feature is not finite.
    """
    data = config.data
    loader = extraction_loader(
        decoded,
        height=data.height,
        width=data.width,
        batch_size=data.batch_size,
        workers=data.workers if len(decoded) > data.batch_size else 0,  # starting them takes longer
        pin_memory=placement.pin_memory,
    )
    features = torch.empty(len(decoded), model.feature_dim, device=placement.device)
    was_training = model.training
    model.eval()
    with torch.inference_mode(), placement.autocast():
        for images, index in progress(loader, "extracting"):
            batch = placement.images(images)
            found = model(batch) if kind == "train" else model.retrieve(batch, after_neck=kind == "after")
            features[int(index[0]) : int(index[0]) + len(index)] = found
    model.train(was_training)
    bad = int((~torch.isfinite(features)).any(dim=1).sum())
    if bad:
        raise UserError(
            f"the features of {bad} of {len(decoded)} images are not finite: the weights have diverged"
        )
    return features


def retrieval_kind(config: Config) -> Literal["before", "after"]:
    """The side of the neck that ``config``, as :func:`snnet.config.options.config_from` makes it, ranks with."""
    return "after" if config.model.retrieval_feature == "after" else "before"


def retrieval_features(
    model: ReIDModel, retrieval: RetrievalSet, config: Config, placement: Placement
) -> tuple[Tensor, Tensor]:
    """The retrieval features of the queries [q, d] and the gallery [g, d]; see :func:`extract_features`."""
    kind = retrieval_kind(config)
    query = extract_features(model, retrieval.query, config, placement, kind)
    return query, extract_features(model, retrieval.gallery, config, placement, kind)


def shot_seed(config: Config) -> int | None:
    """The seed of the galleries of one image an identity, where ``config`` asks for these."""
    return config.runtime.seed if config.output.single_gallery_shot else None


def rank_gallery(
    query: Tensor,  # [q, d]
    gallery: Tensor,  # [g, d]
    retrieval: RetrievalSet,
    average_precision: Literal["step", "trapezoid"],
    single_gallery_shot: int | None = None,
) -> RankMetrics:
    """CMC and mAP of features by cosine similarity, in float32; the last two as in :func:`rank_metrics`."""
    generator = None if single_gallery_shot is None else np.random.default_rng(single_gallery_shot)
    parts = math.ceil(len(query) * len(gallery) / PAIRS_AT_A_TIME)
    results = []
    for part in range(parts):
        # Every parts-th query: queries without a match, which may stand together, spread over the parts.
        rows = slice(part, None, parts)
        similarity = memory_similarity(query[rows], gallery).cpu().numpy()
        results.append(
            rank_metrics(
                similarity,
                retrieval.query_pids[rows],
                retrieval.gallery_pids,
                retrieval.query_cams[rows],
                retrieval.gallery_cams,
                average_precision=average_precision,
                single_gallery_shot=generator,
            )
        )
    return _combined(results)


def rerank_gallery(
    query: Tensor,  # [q, d]
    gallery: Tensor,  # [g, d]
    retrieval: RetrievalSet,
    average_precision: Literal["step", "trapezoid"],
    single_gallery_shot: int | None = None,
) -> RankMetrics:
    """CMC and mAP after k-reciprocal re-ranking (:mod:`snnet.retrieval.reranking`).

    Gallery images of pid -1, which no ranking has, are nobody's neighbours here either.
    """
    ranked = np.flatnonzero(retrieval.gallery_pids != -1)
    distance = rerank(query, gallery[torch.from_numpy(ranked)])
    return rank_metrics(
        np.negative(distance, out=distance),
        retrieval.query_pids,
        retrieval.gallery_pids[ranked],
        retrieval.query_cams,
        retrieval.gallery_cams[ranked],
        average_precision=average_precision,
        single_gallery_shot=single_gallery_shot,
    )


def expand_and_rank(
    query: Tensor,  # [q, d]
    gallery: Tensor,  # [g, d]
    retrieval: RetrievalSet,
    average_precision: Literal["step", "trapezoid"],
    neighbors: int,
    single_gallery_shot: int | None = None,
) -> RankMetrics:
    """CMC and mAP after query expansion (:mod:`snnet.retrieval.query_expansion`).

    Gallery images of pid -1, which no ranking has, are nobody's neighbours here either.
    """
    ranked = np.flatnonzero(retrieval.gallery_pids != -1)
    kept = dataclasses.replace(
        retrieval, gallery_pids=retrieval.gallery_pids[ranked], gallery_cams=retrieval.gallery_cams[ranked]
    )
    expanded = expand_queries(query, gallery[torch.from_numpy(ranked)], neighbors)
    return rank_gallery(*expanded, kept, average_precision, single_gallery_shot)


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

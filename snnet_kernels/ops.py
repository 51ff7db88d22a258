"""The functional face of the package: arguments checked, then one operation each.

Every function works on CPU and CUDA tensors, under ``torch.compile(fullgraph=True)`` and in float32
whatever autocast or the global TF32 flag say. B batch entries, n images, d feature dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks as checks
from . import backends, defaults, neighbor_lists, reference  # noqa: F401  (these register the implementations)
from .neighbor_list_layout import NeighborLists
from .reference import CacheBlocks

_pack_labels = torch.ops.snnet.pack_labels.default
_unpack_labels = torch.ops.snnet.unpack_labels.default
_write_labels = torch.ops.snnet.write_labels_.default
_gather_labels = torch.ops.snnet.gather_labels.default
_memory_similarity = torch.ops.snnet.memory_similarity.default
_build_similarity_cache = torch.ops.snnet.build_similarity_cache.default
_mark_cache_blocks = torch.ops.snnet.mark_cache_blocks.default
_mplp = torch.ops.snnet.mplp.default
_nearest_neighbors = torch.ops.snnet.nearest_neighbors.default
_mine_labels = torch.ops.snnet.mine_labels_.default
_mutual_label_loss = torch.ops.snnet.mutual_label_loss.default
_fused_mutual_label_loss = torch.ops.snnet.fused_mutual_label_loss.default
_update_memory = torch.ops.snnet.update_memory_.default
_update_memory_lists = torch.ops.snnet.update_memory_lists_.default


def _serve(operation: str, tensor: Tensor) -> None:
    if backends.FORCED is not None:
        backends.require_forced_backend(operation, tensor.device.type)


def label_bytes(n: int) -> int:
    """Bytes of one packed label row of ``n`` columns: ``16 * ceil(n / 128)``."""
    return reference.label_bytes(checks.check_count("n", n, lowest=0))


def pack_labels(labels: Tensor) -> Tensor:
    """Pack labels into bits: bool [B, n] to uint8 [B, label_bytes(n)].

    Column j is bit ``j % 8`` of byte ``j // 8``; bits past n are 0. The first bytes equal
    ``numpy.packbits(labels, axis=1, bitorder="little")``.
    """
    labels = checks.check_matrix("labels", labels, "B", "n")
    if labels.dtype != torch.bool:
        raise TypeError(f"labels must be torch.bool, got {labels.dtype}")
    _serve("pack_labels", labels)
    return _pack_labels(labels.contiguous())


def unpack_labels(labels: Tensor, n: int) -> Tensor:
    """Unpack label bits: uint8 [B, label_bytes(n)] to bool [B, n], the inverse of :func:`pack_labels`."""
    label_bytes(n)
    labels = checks.check_labels("labels", labels, n)
    _serve("unpack_labels", labels)
    return _unpack_labels(labels, n)


def memory_similarity(features: Tensor, memory: Tensor) -> Tensor:
    """Similarity of live features to the exemplar memory (Eq. 1): s = f Mᵀ [B, n].

    Equals ``features.float() @ memory.t()`` in true float32: under autocast or with TF32 switched on a plain
    ``@`` would round the inputs. Differentiable in ``features``, in reverse mode. Rows may have any length; between
    rows of length 1 it is the cosine similarity.

    Args:
        features: [B, d], any floating type and strides.
        memory: float32 [n, d], contiguous.
    """
    memory = checks.check_memory("memory", memory)
    features = checks.check_features("features", features, memory.shape[1])
    checks.check_same_device(features=features, memory=memory)
    checks.check_no_tangent("features", features)
    _serve("memory_similarity", features)
    return _memory_similarity(features, memory)


def build_similarity_cache(memory: Tensor) -> Tensor:
    """All similarities of the exemplar memory to itself: S = M Mᵀ, float32 [n, n], 4n² bytes.

    Equals ``memory @ memory.t()`` in true float32, for rows of any length; :func:`update_memory_` keeps it current.
    """
    memory = checks.check_memory("memory", memory)
    _serve("build_similarity_cache", memory)
    return _build_similarity_cache(memory)


def mark_cache_blocks(cache: Tensor, floor: float = 0.6) -> CacheBlocks:
    """The blocks of 32 columns of each cache row that hold a value above ``floor``, n² / 256 bytes as bits.

    :func:`mplp` over this cache reads them in place of the whole row of a candidate, where the candidate's
    similarity to the anchor is at least the floor: best the threshold of the labels. Every :func:`update_memory_` of
    the cache must be given them, and keeps them current; after any other write to the cache mark again, or labels
    will be wrong. Equals ``(cache > floor)``, any of 32 neighbours, packed as :func:`pack_labels` does.

    Args:
        cache: S = M Mᵀ float32 [n, n], contiguous.
        floor: a finite number (rounded to float32 first).
    """
    cache = checks.check_cache("cache", cache, checks.check_matrix("cache", cache, "n", "n").shape[0])
    floor = checks.check_finite("floor", floor)
    _serve("mark_cache_blocks", cache)
    return CacheBlocks(_mark_cache_blocks(cache, floor), floor)


def _checked_blocks(
    blocks: CacheBlocks | None, cache: Tensor | None, num_instances: int
) -> tuple[Tensor | None, float]:
    """The bits and the floor, checked."""
    if blocks is None:
        return None, 0.0
    return checks.check_blocks("blocks", blocks, cache, num_instances)


def _check_inquiry(
    memory: Tensor, index: Tensor, cache: Tensor | None, query_rows: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    memory = checks.check_memory("memory", memory)
    n = memory.shape[0]
    index = checks.check_index("index", index, n)
    if cache is not None:
        cache = checks.check_cache("cache", cache, n)
    if query_rows is not None:
        query_rows = checks.check_rows("query_rows", query_rows, index.shape[0], n).detach()
    checks.check_same_device(memory=memory, index=index, cache=cache, query_rows=query_rows)
    return memory, index, cache, query_rows


def mplp(
    memory: Tensor,
    index: Tensor,
    threshold: float = 0.6,
    min_rank: int = 10,
    *,
    cache: Tensor | None = None,
    query_rows: Tensor | None = None,
    blocks: CacheBlocks | None = None,
    strict: bool = False,
) -> Tensor:
    """Memory-based positive label prediction: packed pseudo labels uint8 [B, label_bytes(n)].

    With r = S[i] the similarities of image i = ``index[b]``: candidates are the columns with r > threshold,
    by falling r, ties by lower index, c of them; the anchor a is the first of the whole row. Candidate p is
    cycle consistent if at most ``k = max(c, min_rank)`` images are more similar to p than a is. Positives are
    the candidates before the first inconsistent one, at least two of them if there are two, and i itself. NaN is
    above nothing.

    Equals sorting the similarity row of every candidate and looking where a stands, without a sort.

    Rows of the memory must have length 1 or less, which is not checked: without a cache longer ones may get others.

    Args:
        memory: float32 [n, d], contiguous.
        index: int64 [B], positions in the memory.
        threshold: similarity above which an image is a candidate (strictly; rounded to float32 first).
        min_rank: the smallest rank that counts as consistent.
        cache: S = M Mᵀ float32 [n, n], contiguous; without it the products are made as they are needed.
        query_rows: [B, n] in place of S[index], for instance ``memory_similarity(features, memory)``.
        blocks: :func:`mark_cache_blocks` of the cache as it is: the same labels with less reading.
        strict: the reading of the MMCL paper: k = c, and exactly the candidates before the inconsistent one.
    """
    threshold, min_rank = checks.check_prediction_options(threshold, min_rank)
    memory, index, cache, query_rows = _check_inquiry(memory, index, cache, query_rows)
    bits, floor = _checked_blocks(blocks, cache, memory.shape[0])
    checks.check_same_device(memory=memory, blocks=bits)
    _serve("mplp", memory)
    return _mplp(
        memory,
        index,
        cache,
        query_rows,
        float(threshold),
        min_rank,
        checks.check_flag("strict", strict),
        bits,
        floor,
    )


def nearest_neighbors(
    memory: Tensor,
    index: Tensor,
    k: int = 1,
    *,
    cache: Tensor | None = None,
    query_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``k`` most similar other images of each image: (index int64 [B, k], similarity [B, k]).

    Falling similarity, NaN above everything, ties by lower index, never the image itself. Where there are fewer
    than k others the index is -1 and the similarity -inf; k may be up to n + 65536. Equals ``S[index]`` without its own
    column, stably sorted. Rows of the memory may have any length: longer ones are more similar to everything.
    Arguments as in :func:`mplp`.
    """
    k = checks.check_count("k", k)
    memory, index, cache, query_rows = _check_inquiry(memory, index, cache, query_rows)
    k = checks.check_neighbors(k, memory.shape[0])
    _serve("nearest_neighbors", memory)
    return _nearest_neighbors(memory, index, cache, query_rows, k)


def mutual_label_loss(
    similarity: Tensor,
    labels: Sequence[Tensor],
    weights: Sequence[float],
    *,
    kind: str = "mmcl",
    delta: float = 5.0,
    hard_negative_ratio: float = 0.01,
) -> Tensor:
    """Joint loss of one to three label sets (Eq. 8): ``Σ_k w_k L(s, y_k) / Σ_k w_k``, a mean over the batch.

    ``kind="l2"`` is Eq. 2/5/7 as printed: ``((similarity - y) ** 2).sum(1).mean()`` for each label set.
    ``kind="mmcl"`` is ``delta * mean((1 - s)²)`` over the positives plus ``mean((1 + s)²)`` over the
    ``max(1, floor(hard_negative_ratio * negatives))`` negatives with the largest s (ties by lower index); a
    term without entries is 0. Differentiable in ``similarity``, once, in reverse mode: a forward-mode tangent raises
    NotImplementedError. An empty batch gives 0. The targets are 1, -1 (``mmcl``) and 0 (``l2``): similarities are taken
    for cosines in [-1, 1], which is not checked.

    Args:
        similarity: [B, n], any floating type, taken to float32.
        labels: one to three packed label tensors, uint8 [B, label_bytes(n)].
        weights: as many numbers, none negative, not all 0.
    """
    kind, delta, hard_negative_ratio = checks.check_loss_options(kind, delta, hard_negative_ratio)
    similarity = checks.check_matrix("similarity", similarity, "B", "n")
    similarity = checks.check_rows("similarity", similarity, *similarity.shape)
    labels, weights = checks.check_label_sets(labels, weights, *similarity.shape)
    checks.check_same_device(similarity=similarity, **{f"labels[{k}]": y for k, y in enumerate(labels)})
    checks.check_no_tangent("similarity", similarity)
    _serve("mutual_label_loss", similarity)
    return _mutual_label_loss(similarity, labels, weights, kind, delta, hard_negative_ratio)[0]


def fused_mutual_label_loss(
    features: Tensor,
    memory: Tensor,
    labels: Sequence[Tensor],
    weights: Sequence[float],
    *,
    similarity: Tensor | None = None,
    kind: str = "mmcl",
    delta: float = 5.0,
    hard_negative_ratio: float = 0.01,
) -> Tensor:
    """The same value as ``mutual_label_loss(memory_similarity(features, memory), ...)``, from the features.

    Differentiable in ``features``, once, in reverse mode: a forward-mode tangent raises NotImplementedError. What is
    kept for the backward pass is [B, d] and not [B, n]. Rows of features and memory should have length 1, which is not
    checked.

    Args:
        features: [B, d], any floating type and strides.
        memory: float32 [n, d], contiguous.
        labels, weights, kind, delta, hard_negative_ratio: as in :func:`mutual_label_loss`.
        similarity: ``memory_similarity(features, memory)`` [B, n] if it is at hand; no gradient flows into it.
    """
    kind, delta, hard_negative_ratio = checks.check_loss_options(kind, delta, hard_negative_ratio)
    memory = checks.check_memory("memory", memory)
    features = checks.check_features("features", features, memory.shape[1])
    shape = features.shape[0], memory.shape[0]
    labels, weights = checks.check_label_sets(labels, weights, *shape)
    if similarity is not None:
        similarity = checks.check_rows("similarity", similarity, *shape).detach()
    checks.check_same_device(
        features=features,
        memory=memory,
        similarity=similarity,
        **{f"labels[{k}]": y for k, y in enumerate(labels)},
    )
    checks.check_no_tangent("features", features)
    _serve("fused_mutual_label_loss", features)
    return _fused_mutual_label_loss(
        features, memory, similarity, labels, weights, kind, delta, hard_negative_ratio
    )[0]


def update_memory_(
    memory: Tensor,
    index: Tensor,
    features: Tensor,
    momentum: float | Tensor,
    *,
    cache: Tensor | None = None,
    similarity: Tensor | None = None,
    blocks: CacheBlocks | None = None,
    lists: NeighborLists | None = None,
) -> None:
    """Momentum update of the exemplar memory, in place: ``M[index] = normalize(α M[index] + (1 − α) f)``.

    Repeated indices are applied in batch order, one after the other; a zero vector stays zero. With ``cache``
    its rows and columns are brought up to date too, without a product with the memory. An entry whose new row would not
    be finite is skipped, in memory, cache and blocks; with α = 0 the old row does not count, whatever it holds.

    The blend weighs a row by its length: features should have length 1, which is not checked. What is written has.
    Arguments that are only read may share memory with written ones, the written ones among each other may not.

    Args:
        memory: float32 [n, d], contiguous, written.
        index: int64 [B].
        features: [B, d], any floating type and strides.
        momentum: α in [0, 1], a number or a 0-d tensor (a number that changes recompiles a traced graph).
        cache: S = M Mᵀ float32 [n, n] of the memory before the update, contiguous, written.
        similarity: ``memory_similarity(features, memory)`` [B, n] before the update; computed if it is absent
            and the cache needs it.
        blocks: :func:`mark_cache_blocks` of the cache, whose bits are written.
        lists: symmetric neighbour lists of the memory before the update, in place of a cache; written.
    """
    memory = checks.check_memory("memory", memory)
    n = memory.shape[0]
    features = checks.check_features("features", features, memory.shape[1]).detach()
    index = checks.check_index("index", index, n, features.shape[0])
    momentum = checks.check_momentum(momentum, memory.device)
    if cache is not None:
        cache = checks.check_cache("cache", cache, n)
    if similarity is not None:
        similarity = checks.check_rows("similarity", similarity, features.shape[0], n).detach()
    checks.check_same_device(
        memory=memory, index=index, features=features, cache=cache, similarity=similarity
    )
    bits, floor = _checked_blocks(blocks, cache, n)
    checks.check_same_device(memory=memory, blocks=bits)
    written = {"memory": memory, "cache": cache, "blocks": bits}
    if lists is not None:
        lists = checks.check_lists("lists", lists, n, symmetric=True)
        if cache is not None:
            raise ValueError("cache and lists are two forms of the same similarities: give one of them")
        checks.check_same_device(memory=memory, lists=lists.columns)
        written |= {f"lists.{name}": tensor for name, tensor in lists._asdict().items()}
    index, features, momentum, similarity = checks.apart(written, index, features, momentum, similarity)
    if lists is not None:
        _serve("update_memory_lists_", memory)
        return _update_memory_lists(memory, index, features, momentum, *lists, similarity)
    _serve("update_memory_", memory)
    _update_memory(memory, index, features, momentum, cache, similarity, bits, floor)


def write_labels_(row_bits: Tensor, column_bits: Tensor, index: Tensor, labels: Tensor) -> None:
    """Write rows of the pseudo label memory and of its transpose, in place: P[index] = labels (Eq. 3).

    Of a repeated index the last row counts; bits past n are not written. The matrices must not share memory.
    :class:`snnet_kernels.PseudoLabelMemory` holds both matrices.

    Args:
        row_bits, column_bits: P and Pᵀ as bits, uint8 [n, label_bytes(n)], contiguous, written.
        index: int64 [B].
        labels: uint8 [B, label_bytes(n)].
    """
    row_bits = checks.check_matrix("row_bits", row_bits, "n", "label_bytes(n)")
    n = row_bits.shape[0]
    row_bits = checks.check_labels("row_bits", row_bits, n, n)
    column_bits = checks.check_labels("column_bits", column_bits, n, n)
    labels = checks.check_labels("labels", labels, n)
    index = checks.check_index("index", index, n, labels.shape[0])
    checks.check_same_device(row_bits=row_bits, column_bits=column_bits, index=index, labels=labels)
    index, labels = checks.apart({"row_bits": row_bits, "column_bits": column_bits}, index, labels)
    _serve("write_labels_", row_bits)
    _write_labels(row_bits, column_bits, index, labels)


def gather_labels(bits: Tensor, index: Tensor) -> Tensor:
    """Rows of a label bit matrix: ``bits[index]``, uint8 [B, label_bytes(n)]; index -1 gives an empty label.

    An operation of its own, because a plain gather of a matrix that :func:`write_labels_` changes later in the
    same compiled graph may be moved behind the write.

    Args:
        bits: uint8 [n, label_bytes(n)], contiguous.
        index: int64 [B], -1 <= index < n.
    """
    bits = checks.check_matrix("bits", bits, "n", "label_bytes(n)")
    bits = checks.check_labels("bits", bits, bits.shape[0])
    index = checks.check_index("index", index, bits.shape[0], lowest=-1)
    checks.check_same_device(bits=bits, index=index)
    _serve("gather_labels", bits)
    return _gather_labels(bits, index)


def mine_labels_(
    memory: Tensor,
    index: Tensor,
    row_bits: Tensor,
    column_bits: Tensor,
    threshold: float = 0.6,
    min_rank: int = 10,
    *,
    cache: Tensor | None = None,
    query_rows: Tensor | None = None,
    blocks: CacheBlocks | None = None,
    strict: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The three label sets of a batch, and the main one written to the pseudo label memory (steps 2 to 4).

    Returns packed (y, y_sym, y_nh), uint8 [B, label_bytes(n)] each. Equals :func:`mplp`, then
    :func:`gather_labels` of ``column_bits`` at ``index`` (Eq. 4) and of ``row_bits`` at the nearest other image
    (Eq. 6), then :func:`write_labels_` (Eq. 3): the inquiries see P as it was before. Lengths as in :func:`mplp`; the
    matrices must not share memory.

    Args:
        memory, index, threshold, min_rank, cache, query_rows, blocks, strict: as in :func:`mplp`.
        row_bits, column_bits: P and Pᵀ as bits, uint8 [n, label_bytes(n)], contiguous, written.
    """
    threshold, min_rank = checks.check_prediction_options(threshold, min_rank)
    memory, index, cache, query_rows = _check_inquiry(memory, index, cache, query_rows)
    n = memory.shape[0]
    row_bits = checks.check_labels("row_bits", row_bits, n, n)
    column_bits = checks.check_labels("column_bits", column_bits, n, n)
    bits, floor = _checked_blocks(blocks, cache, n)
    checks.check_same_device(memory=memory, row_bits=row_bits, column_bits=column_bits, blocks=bits)
    options = float(threshold), min_rank, checks.check_flag("strict", strict)
    written, kept = (
        {"row_bits": row_bits, "column_bits": column_bits},
        {"memory": memory, "cache": cache, "blocks": bits},
    )
    index, query_rows = checks.apart(written, index, query_rows, kept=kept)
    _serve("mine_labels_", memory)
    return _mine_labels(memory, index, cache, query_rows, row_bits, column_bits, *options, bits, floor)

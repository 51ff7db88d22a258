"""Weights of published re-identification transformers by the names and in the shapes of timm's networks.

The vision transformers of TransReID-SSL (Luo et al., 2021) have timm's names but for their position embeddings, made
for another number of patches; those of PASS (Zhu et al., ECCV 2022) have part tokens; the Swin of SOLIDER (Chen et
al., CVPR 2023) has OpenMMLab's names, and after each stage a scale and a shift that depend on a semantic weight. It
pads before it shifts windows, timm afterwards: with ``always_partition=True`` the two are equal at heights and widths
that are multiples of 224, and at others the windows at the border differ.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from snnet.errors import UserError
from snnet.system.progress import say

SEMANTIC_WEIGHT = 0.2  # that SOLIDER's authors take for person re-identification
_HEADS = ("head", "fc.", "classifier", "pre_logits", "bottleneck")
_BUFFERS = ("relative_position_index", "attn_mask")
_BIAS_TABLE = "relative_position_bias_table"
_OPENMMLAB = "patch_embed.projection.weight"
_PART_TOKEN = re.compile(r"part_token\d+")
_QUARTERS = [0, 2, 1, 3]  # of a 2 x 2 patch: by columns for timm, by rows for torch's unfold


def as_timm(
    state: dict[str, Tensor], network: Any, arch: str, source: str, size: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """``state`` in the names and shapes that ``network``, timm's ``arch``, takes; an unknown layout is left as it is.

    Classifiers are left out; position embeddings and bias tables of other sizes are resampled. ``size`` is the height
    and width of the images that the weights are for, where that is known. Raises
    :class:`~snnet.errors.UserError` for a layout that the network has no place for.
    """
    wanted = network.state_dict()
    if "sie_embed" in state:
        raise UserError(
            f"weights: {source} has embeddings of the cameras of one dataset (sie_embed), which {arch} has no place "
            "for; needed are weights that were trained without"
        )
    if "patch_embed.conv.0.weight" in state and "patch_embed.conv.0.weight" not in wanted:
        raise UserError(
            f"weights: {source} is a vision transformer with a convolutional stem (patch_embed.conv, the ICS of "
            f"TransReID-SSL), which {arch} has no place for; needed are weights of one without"
        )
    try:
        if _OPENMMLAB in state and _OPENMMLAB not in wanted:
            state = _without_semantics(state, source)
        if any(_PART_TOKEN.fullmatch(name) for name in state):
            state = _with_registers(state, network, arch, source)
        state = {
            name: value
            for name, value in state.items()
            if name in wanted or not (name.startswith(_HEADS) or name.endswith(_BUFFERS))
        }
        return {name: _fitted(name, value, network, wanted, source, size) for name, value in state.items()}
    except (
        LookupError,
        AssertionError,
        RuntimeError,
        ValueError,
    ) as error:  # parts that are missing or of odd shapes
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"weights: {source} does not fit {arch}: {words}") from error


def _fitted(
    name: str,
    value: Tensor,
    network: Any,
    wanted: dict[str, Tensor],
    source: str,
    size: tuple[int, int] | None,
) -> Tensor:
    """A position embedding or bias table resampled to the network's size; anything else as it is."""
    own = wanted.get(name)
    if own is None or own.dim() != value.dim() or own.shape[-1] != value.shape[-1]:
        return value
    if not value.is_floating_point():
        return value
    if name == "pos_embed" and hasattr(network, "patch_embed"):
        return _positions(value, own, network, source, size)
    if name.endswith(_BIAS_TABLE) and own.shape != value.shape:
        from timm.layers import resize_rel_pos_bias_table

        window = getattr(network.get_submodule(name.removesuffix(f".{_BIAS_TABLE}")), "window_size", None)
        if window is None:
            return value
        return resize_rel_pos_bias_table(value.float(), new_window_size=window, new_bias_shape=own.shape)
    return value


def _positions(value: Tensor, own: Tensor, network: Any, source: str, size: tuple[int, int] | None) -> Tensor:
    """Position embeddings [1, tokens + patches, d] for the network's grid of patches, where theirs can be told.

    The grid of a file that does not say the ``size`` of its images is taken from the number of its patches. Where the
    network has as many, its grid is taken: it may be any.
    """
    tokens = 0 if getattr(network, "no_embed_class", False) else getattr(network, "num_prefix_tokens", 1)
    new = tuple(getattr(network.patch_embed, "grid_size", None) or ())
    if not new or own.shape[:-1] != (1, tokens + math.prod(new)):
        return value
    patches = value.shape[1] - tokens
    old = None if size is None else _grid_of_images(size, network)
    if old is None or math.prod(old) != patches:
        old = _grid(patches)
        if value.shape == own.shape and old != new:
            say(
                f"weights of {source}: position embeddings of {patches} patches, taken to be {new[0]} x {new[1]} "
                "as the network's"
            )
            return value
    if old is None or old == new:
        return value
    say(
        f"weights of {source}: position embeddings of {old[0]} x {old[1]} patches, resampled to {new[0]} x {new[1]}"
    )
    return _resampled(value.float(), tokens, old, new)


def _resampled(value: Tensor, tokens: int, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """As timm's ``resample_abs_pos_embed``; that of older versions leaves a grid that becomes a square of as many."""
    grid = value[:, tokens:].unflatten(1, old).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, new, mode="bicubic", antialias=True)
    return torch.cat([value[:, :tokens], grid.flatten(2).transpose(1, 2)], dim=1)


def _grid_of_images(size: tuple[int, int], network: Any) -> tuple[int, int] | None:
    """Rows and columns of patches of images of that height and width, where the network's patches have a size."""
    patch = getattr(network.patch_embed, "patch_size", None)
    return (size[0] // patch[0], size[1] // patch[1]) if isinstance(patch, tuple) else None


def _grid(patches: int) -> tuple[int, int] | None:
    """Rows and columns of so many patches: as many, or twice or three times as many rows, as images of persons have."""
    for ratio in (1, 2, 3):
        columns = math.isqrt(max(patches, 0) // ratio)
        if columns and ratio * columns * columns == patches:
            return ratio * columns, columns
    return None


def _with_registers(state: dict[str, Tensor], network: Any, arch: str, source: str) -> dict[str, Tensor]:
    """PASS's part tokens as register tokens, its positions of tokens in front of those of patches."""
    tokens = sorted(name for name in state if _PART_TOKEN.fullmatch(name))
    if getattr(network, "num_reg_tokens", 0) != len(tokens):
        raise UserError(
            f"weights: {source} is a vision transformer of PASS with {len(tokens)} part tokens, which {arch} has no "
            f"place for; needed is --arch {arch},reg_tokens={len(tokens)}"
        )
    positions = ["cls_pos", *(name.replace("_token", "") + "_pos" for name in tokens)]
    taken = {*tokens, *positions, "pos_embed"}
    joined = {name: value for name, value in state.items() if name not in taken}
    joined["reg_token"] = torch.cat([state[name] for name in tokens], dim=1)
    joined["pos_embed"] = torch.cat([state[name] for name in (*positions, "pos_embed")], dim=1)
    return joined


def _without_semantics(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """A Swin by OpenMMLab's names as timm's, SOLIDER's scales and shifts folded into it.

    Only the norm of the last stage enters the feature. A stage ends in the merging of patches R(x̂ γ + β), which then
    becomes a·R(x̂ γ + β) + s with a = softplus(w) and s of the semantic weight: that of the rows a·R and of the bias
    β + δ with R δ = s / a.
    """
    last = max(int(name.split(".")[1]) for name in state if name.startswith("stages."))
    renamed = {}
    for name, value in state.items():
        if name.endswith(_BUFFERS) or name.startswith("semantic_embed_"):
            continue
        if re.fullmatch(r"norm\d+\.\w+", name):
            if not name.startswith(f"norm{last}."):
                continue
            name = name.replace(f"norm{last}.", "norm.")
        if ".downsample.reduction." in name:
            value = value.unflatten(1, (-1, 4)).transpose(1, 2)[:, _QUARTERS].flatten(1)
        elif ".downsample.norm." in name:
            value = value.unflatten(0, (-1, 4)).transpose(0, 1)[_QUARTERS].flatten()
        renamed[_swin_name(name)] = value
    if not any(name.startswith("semantic_embed_") for name in state):
        return renamed
    say(f"weights of {source}: SOLIDER's semantic weight is set to {SEMANTIC_WEIGHT}")
    mix = torch.tensor([SEMANTIC_WEIGHT, 1 - SEMANTIC_WEIGHT], dtype=torch.float64)
    for stage in range(last):
        scale, shift = (
            state[f"semantic_embed_{kind}.{stage}.weight"].double() @ mix
            + state[f"semantic_embed_{kind}.{stage}.bias"].double()
            for kind in "wb"
        )
        scale = torch.nn.functional.softplus(scale)
        rows, bias = (f"layers.{stage + 1}.downsample.{part}" for part in ("reduction.weight", "norm.bias"))
        reduction, target = renamed[rows].double(), shift / scale
        delta = torch.linalg.lstsq(reduction, target[:, None]).solution[:, 0]
        if not torch.allclose(reduction @ delta, target, rtol=0, atol=1e-6 * float(1 + target.abs().max())):
            raise ValueError(f"the merging of patches after stage {stage} has no full rank")
        renamed[rows] = (scale[:, None] * reduction).float()
        renamed[bias] = (renamed[bias].double() + delta).float()
    return renamed


def _swin_name(name: str) -> str:
    """timm's name of what OpenMMLab calls ``name``."""
    merging = re.fullmatch(r"stages\.(\d+)\.(downsample\..+)", name)
    if merging is not None:  # timm has it in front of the stage that follows
        return f"layers.{int(merging[1]) + 1}.{merging[2]}"
    for theirs, own in (
        ("patch_embed.projection.", "patch_embed.proj."),
        (".attn.w_msa.", ".attn."),
        (".ffn.layers.0.0.", ".mlp.fc1."),
        (".ffn.layers.1.", ".mlp.fc2."),
    ):
        name = name.replace(theirs, own)
    return re.sub(r"^stages\.", "layers.", name)

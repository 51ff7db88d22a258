"""What the names in a file of weights say: the container they lie in, the prefix they bear, the network they are of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Under which names training programs keep the weights, the likelier first.
_CONTAINERS = (
    "state_dict", "model", "model_state_dict", "net", "network", "module", "weights", "params", "teacher", "student",
    "state_dict_ema", "model_ema", "ema",
)  # fmt: skip
_USUAL = ("state_dict", "model")
_DEPTH = 3  # containers within containers
# What wrappers put into names: in front of all, data-parallel training and the averages of torch.optim.swa_utils; in
# front of every part that is wrapped, torch.compile, FSDP and activation checkpoints.
_WRAPPERS = re.compile(
    r"^module\.|(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_WRAPPERS_OWN = ("n_averaged",)  # which no network has
# A name that each network of a family has, and no other; of transformers timm's name and OpenMMLab's.
_RESNET, _OSNET = "layer1.0.conv1.weight", "conv2.0.conv1.conv.weight"
_TRANSFORMER, _OPENMMLAB = "patch_embed.proj.weight", "patch_embed.projection.weight"
_MARKS = (_RESNET, _OSNET, _TRANSFORMER, _OPENMMLAB)
# Of several networks in one file, the one that is meant: contrastive training keeps two, and so does self-distillation,
# whose teacher is what is used afterwards.
_PREFERRED = (
    "encoder_q.", "base_encoder.", "online_encoder.", "teacher.backbone.", "teacher.", "student.backbone.", "student.",
    "model.", "net.", "backbone.",
)  # fmt: skip
_OWN = "backbone."  # ReIDModel's own prefix, beside which there may be these
_OWN_OTHERS = ("neck.", "classifier.", "input_scale", "input_shift")

_OSNET_WIDTHS = {64: "x1_0", 48: "x0_75", 32: "x0_5", 16: "x0_25"}
_VIT_WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
_SWIN_SIZES = {
    (96, 6): "tiny",
    (96, 18): "small",
    (128, 18): "base",
    (192, 18): "large",
}  # width, third stage
_RESNET_DEPTHS: dict[tuple[int, ...], str] = {
    (False, 2, 2, 2, 2): "resnet18", (False, 3, 4, 6, 3): "resnet34", (True, 3, 4, 6, 3): "resnet50",
    (True, 3, 4, 23, 3): "resnet101", (True, 3, 8, 36, 3): "resnet152",
}  # fmt: skip


@dataclass(frozen=True)
class Recognised:
    """A network recognised by names and shapes; ``arch`` is its name here, None where this package has none."""

    title: str
    arch: str | None

    @property
    def advice(self) -> str:
        return "this package has none" if self.arch is None else f"--arch {self.arch}"


def open_container(content: Any) -> tuple[Any, list[str]]:
    """The weights within the containers of a training program, and the unusual names that were opened."""
    opened = []
    for _ in range(_DEPTH):
        key = next(
            (k for k in _CONTAINERS if isinstance(content, dict) and isinstance(content.get(k), dict)), None
        )
        if key is None:
            break
        content = content[key]
        opened.append(key)
    return content, [key for key in opened if key not in _USUAL]


def without_prefix(state: dict[str, Any], mark: str | None = None) -> tuple[dict[str, Any], str]:
    """The network's weights by the names that it gives them, and the prefix that was taken off ("": none).

    A network is found by a name that all of its family have, or by ``mark``, a name that this very one has.
    Where a file has more than the network with the prefix (a head, a second network), that alone is returned.
    """
    state = _unwrapped(state)
    found = {
        name.removesuffix(mark)
        for mark in (*_MARKS, *((mark,) if mark is not None else ()))
        for name in state
        if name.endswith(mark) and (name == mark or name.removesuffix(mark).endswith("."))
    }
    if not found or "" in found:
        return state, ""
    order = sorted(found, key=lambda prefix: (_place(prefix), prefix))
    prefix = order[0]
    # "model.backbone." may be a whole ReIDModel behind "model.".
    outer = prefix.removesuffix(_OWN)
    if outer != prefix:
        inner = [name.removeprefix(outer) for name in state if name.startswith(outer)]
        if len(inner) == len(state) and all(name.startswith((_OWN, *_OWN_OTHERS)) for name in inner):
            prefix = outer
    kept = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return kept, prefix


def is_network(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether tensors of these names and shapes are a network for images: one is the weight of a convolution."""
    return any(name.endswith(".weight") and len(shape) == 4 for name, shape in shapes.items())


def recognised(state: dict[str, Tensor]) -> Recognised | None:
    """The network that weights are of, by names without any prefix; None where they say nothing."""
    if _OSNET in state:
        return _osnet(state)
    if _RESNET in state:
        return _resnet(state)
    if _OPENMMLAB in state or "layers.0.blocks.0.norm1.weight" in state:
        return _swin(state)
    if any(name.endswith(("cls_token", _TRANSFORMER)) for name in state):
        return _vit(state)
    return None


def _vit(state: dict[str, Tensor]) -> Recognised:
    patches = state.get(_TRANSFORMER)
    parts = sum(name.startswith("part_token") for name in state)
    title = "a vision transformer" + (f" with {parts} part tokens" if parts else "")
    if patches is None or patches.dim() != 4 or patches.shape[0] not in _VIT_WIDTHS:
        return Recognised(title, None)
    arch = f"timm:vit_{_VIT_WIDTHS[patches.shape[0]]}_patch{patches.shape[3]}_224"
    return Recognised(title, arch + (f",reg_tokens={parts}" if parts else ""))


def _swin(state: dict[str, Tensor]) -> Recognised:
    patches = state.get(_OPENMMLAB, state.get(_TRANSFORMER))
    third = {
        name.split(".")[3] for name in state if name.startswith(("stages.2.blocks.", "layers.2.blocks."))
    }
    width = patches.shape[0] if patches is not None and patches.dim() else 0
    size = _SWIN_SIZES.get((width, len(third)))
    return Recognised("a Swin transformer", size and f"timm:swin_{size}_patch4_window7_224")


def _osnet(state: dict[str, Tensor]) -> Recognised:
    stem = state.get("conv1.conv.weight")
    width = None if stem is None or not stem.dim() else _OSNET_WIDTHS.get(stem.shape[0])
    if any(name.startswith("conv2.0.conv2.") for name in state):
        return Recognised("an OSNet-AIN", width and f"osnet_ain_{width}")
    if any(".IN." in name for name in state):
        return Recognised("an OSNet-IBN", "osnet_ibn_x1_0" if width == "x1_0" else None)
    return Recognised("an OSNet", width and f"osnet_{width}")


def _resnet(state: dict[str, Tensor]) -> Recognised:
    if any(".IN." in name for name in state):
        return Recognised("a ResNet-IBN", None)
    if any(name.startswith("attnpool.") for name in state):
        return Recognised("the ResNet of CLIP", None)
    blocks = [
        len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")})
        for stage in range(1, 5)
    ]
    arch = _RESNET_DEPTHS.get(("layer1.0.conv3.weight" in state, *blocks))
    middle = state.get("layer1.0.conv2.weight")
    plain = middle is not None and tuple(middle.shape) == (64, 64, 3, 3)
    return Recognised("a ResNet", arch) if plain else Recognised("a wide or grouped ResNet", None)


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """The weights without what wrappers add; as they are where two would have one name."""
    plain = [(_plain(name), value) for name, value in state.items() if name not in _WRAPPERS_OWN]
    return dict(plain) if len(dict(plain)) == len(plain) else state


def _plain(name: str) -> str:
    while (shorter := _WRAPPERS.sub("", name)) != name:
        name = shorter
    return name


def _place(prefix: str) -> int:
    """Where a prefix stands among the preferred ones; behind them all where it is not there."""
    return next((i for i, ending in enumerate(_PREFERRED) if prefix.endswith(ending)), len(_PREFERRED))

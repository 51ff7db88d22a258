"""Reading weights into a model: ImageNet through torchvision, or a file. No file can run code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snnet.config.timm_names import is_timm
from snnet.errors import UserError
from snnet.files.paths import expand_home
from snnet.files.safetensors_files import open_safetensors
from snnet.files.text import Damaged, FileFault, first_line, shown
from snnet.files.torch_files import NeedsCode, read_torch, tensor_fault
from snnet.models.weight_names import open_container, recognised, without_prefix
from snnet.system.progress import bars_shown, say

if TYPE_CHECKING:
    from snnet.models.embedding import ReIDModel

_BACKBONE = "backbone."
_LISTED_KEYS = 10
# What the features of a network depend on besides its weights.
SETTINGS = ("embedding", "height", "width", "retrieval_feature")


class _Discarded:
    """Stands in for the numpy objects in a checkpoint (scores beside the weights), whose data is dropped.

    torchreid's files hold numpy scalars. With this class in numpy's place no code of numpy's runs on the file's bytes:
    a crafted dtype could read memory that is not its own.
    """

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_STAND_INS: list[Any] = [
    (_Discarded, name)
    for name in (
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
    )
]


@dataclass(frozen=True)
class LoadedWeights:
    """The names of the parameters and buffers that were copied into a model.

    ``settings`` are those that the features of the file's network depend on, by flat name and as text: this package
    writes them into its files. Empty for other files.
    """

    names: tuple[str, ...]
    settings: dict[str, str]


def load_weights(model: ReIDModel, weights: str) -> LoadedWeights:
    """Copy ``weights`` into a :class:`ReIDModel`.

    All of the backbone must be in the file, and nothing that the model has no place for; only a classifier
    (``classifier.*``; ``fc.*`` too where the embedding is "pool") is left out, and the neck stays as it is
    where the file has none. Raises :class:`UserError` with the model unchanged.
    """
    settings: dict[str, str] = {}
    if weights == "imagenet":
        state, size = _pretrained_state(model), getattr(model, "input_size", None)
    else:
        state, settings = _read(weights, _mark(model), _sources(model.arch))
        size = _size(settings)
    own = any(name.startswith(_BACKBONE) for name in state)
    prefix = "" if own else _BACKBONE
    if is_timm(model.arch):
        state = _as_timm(model, state, weights, size)
    ignored = (f"{_BACKBONE}classifier.", *((f"{_BACKBONE}fc.",) if model.embedding == "pool" else ()))
    state = {prefix + name: value for name, value in state.items()}
    has_fc = model.arch.startswith("osnet") and any(name.startswith(f"{_BACKBONE}fc.") for name in state)
    state = {name: value for name, value in state.items() if not name.startswith(ignored)}
    _check_fit(model, state, weights, prefix)
    _check_values(model, state, weights, prefix)
    model.load_state_dict(state, strict=False)
    if has_fc and model.embedding == "pool":
        say(f"weights of {weights}: its layer fc is left out (--embedding fc keeps it)")
    return LoadedWeights(tuple(state), settings)


def read_state_dict(path: str, mark: str | None = None) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file or one that ``torch.save`` wrote.

    ``mark`` is the name of a weight that the wanted network has; known networks are found by names of their own. A
    container with the tensors under a usual name ("state_dict", "model", "net", ...) is opened, and a prefix that
    all names have in front of a known network's ("module.", "model.", "encoder_q.", ...) is taken off, both with a
    line that says so, but for "state_dict", "model" and "module."; a prefix that only some names have is taken off
    where those names are a network's, and the others are left out. Raises :class:`UserError` naming the file.
    """
    return _read(path, mark, "a file of weights")[0]


def _read(path: str, mark: str | None, sources: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights of a file, and its settings; ``sources`` is what to give in the place of a file that is not there."""
    file = Path(expand_home(str(path)))
    if not file.is_file():
        raise UserError(f"weights: {path} is no file; give {sources}")
    settings: Any
    if file.suffix == ".safetensors":
        content, settings = _read_safetensors(file)
    else:
        content = _read_torch(file)
        settings = content.get("config") if isinstance(content, dict) else None
    return _named_tensors(content, path, mark), _settings(settings)


def _settings(values: Any) -> dict[str, str]:
    """What a file says of :data:`SETTINGS`, where it says all as this package does."""
    if not isinstance(values, dict) or not all(isinstance(values.get(name), (str, int)) for name in SETTINGS):
        return {}
    return {name: shown(values[name]) for name in SETTINGS}


def _size(settings: dict[str, str]) -> tuple[int, int] | None:
    """Height and width of the images that a network of this package was trained on; None for other files."""
    sides = [settings.get(name, "") for name in ("height", "width")]
    known = all(side.isdecimal() and len(side) < 6 for side in sides)
    return (int(sides[0]), int(sides[1])) if known else None


def _sources(arch: str) -> str:
    """Where weights of ``arch`` come from, as a message advises."""
    if arch.startswith("osnet"):
        return f"torchreid's file of {arch} (its MODEL_ZOO has it), or none for random weights"
    return "a file of weights, imagenet, or none for random weights"


def _named_tensors(content: Any, source: str, mark: str | None = None) -> dict[str, Tensor]:
    content, opened = open_container(content)
    if not isinstance(content, dict) or not content:
        raise UserError(f"weights: {source} holds no weights by name, but a {type(content).__name__}")
    named = {str(name): value for name, value in content.items()}
    state, prefix = without_prefix(named, mark)
    told = [f"those under '{key}'" for key in opened]
    if prefix:
        others = len(named) - len(state)
        told.append(
            f"those whose names begin with '{shown(prefix)}'" + (f", not {others} others" if others else "")
        )
    if told:
        say(f"weights of {source}: {', '.join(told)}")
    for name, value in state.items():
        fault = tensor_fault(value)
        if fault is not None:
            raise UserError(f"weights: '{shown(name)}' in {source} is {fault}")
    return state


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with open_safetensors(file) as content:
            return {name: content.tensor(name) for name in content.types}, content.metadata
    except Damaged as error:
        raise UserError(f"weights: {file} is damaged or no safetensors file ({error.reason})") from error
    except FileFault as error:
        raise UserError(f"weights: {file} {error}") from error
    except OSError as error:
        raise UserError(f"weights: cannot read {file}: {error.strerror or error}") from error


def _read_torch(file: Path) -> Any:
    try:
        return read_torch(file, _STAND_INS)
    except NeedsCode as error:
        if error.name is not None:
            raise UserError(
                f"weights: {file} can be read only by running code ({error.name}), which is refused; "
                "save its state_dict alone and give that"
            ) from error
        raise _no_weights(file, error.reason) from error
    except Damaged as error:
        raise _no_weights(file, error.reason) from error
    except FileFault as error:
        raise UserError(f"weights: {file} {error}") from error
    except OSError as error:
        raise UserError(f"weights: cannot read {file}: {error.strerror or error}") from error


def _no_weights(file: Path, reason: str) -> UserError:
    if file.suffix in (".npz", ".npy"):
        return UserError(f"weights: {file} is a {file.suffix} of features or labels, no weights")
    return UserError(f"weights: {file} is damaged or no PyTorch file ({reason})")


def _mark(model: ReIDModel) -> str | None:
    """A name of a weight that tells a network of timm: one of a layer within a layer, which heads have none of."""
    if not is_timm(model.arch):
        return None
    names = list(model.backbone.state_dict())
    return next((name for name in names if name.count(".") > 1), names[0])


def _as_timm(
    model: ReIDModel, state: dict[str, Tensor], weights: str, size: tuple[int, int] | None
) -> dict[str, Tensor]:
    """The weights of the backbone as timm's network takes them; those of this package's own files as they are."""
    from snnet.models.timm_layouts import as_timm

    own = any(name.startswith(_BACKBONE) for name in state)
    prefix = _BACKBONE if own else ""
    backbone = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    others = {name: value for name, value in state.items() if not name.startswith(prefix)}
    backbone = as_timm(backbone, model.backbone, model.arch, weights, size)
    return {prefix + name: value for name, value in backbone.items()} | others


def _pretrained_state(model: ReIDModel) -> dict[str, Tensor]:
    """What "imagenet" stands for."""
    if not is_timm(model.arch):
        return _imagenet_state(model.arch)
    from snnet.models.timm_backbone import pretrained_state

    return pretrained_state(model.arch, *model.input_size)


def _imagenet_state(arch: str) -> dict[str, Tensor]:
    """torchvision's first ImageNet weights (V1): what published re-identification figures start from."""
    if not arch.startswith("resnet"):
        raise UserError(f"--weights: its default, imagenet, has no weights of {arch}: give {_sources(arch)}")
    import torchvision  # takes seconds

    entry = torchvision.models.get_model_weights(arch)["IMAGENET1K_V1"]
    try:
        expand_home(torch.hub.get_dir())  # torch would make a folder that is called ~
        content = entry.get_state_dict(
            progress=bars_shown(), check_hash=True, map_location="cpu", weights_only=True
        )
    # No network, no space, a proxy's page in the file's place, a damaged file in the cache: all end here.
    except Exception as error:
        raise UserError(
            f"weights: ImageNet weights of {arch} could not be had ({first_line(error)}); "
            f"download {entry.url} where that is possible and give the file's path"
        ) from error
    return _named_tensors(content, f"the ImageNet weights of {arch}")


def _check_fit(model: ReIDModel, state: dict[str, Tensor], weights: str, prefix: str) -> None:
    """Raise unless ``state`` has the model's keys and shapes; keys are shown as the file has them."""
    wanted = model.state_dict()
    has_neck = any(name.startswith("neck.") for name in state)
    missing = [
        name
        for name in wanted
        if name not in state
        # Absent in weights from old or other software; training does not use it.
        and not name.endswith(".num_batches_tracked")
        and not name.startswith("input_")  # how the images of a network of timm are normalised
        and (has_neck or not name.startswith("neck."))
    ]
    unexpected = [name for name in state if name not in wanted]
    reshaped = [
        f"{name.removeprefix(prefix)} {shown(tuple(state[name].shape))} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    faults = [
        f"{len(names)} {kind}: {_listing([shown(name.removeprefix(prefix)) for name in names])}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if not faults:
        return
    found = recognised({name.removeprefix(_BACKBONE): value for name, value in state.items()})
    likeness = (
        f"this looks like {found.title}: {found.advice}; "
        if found and not model.arch.startswith(found.arch or "?")
        else ""
    )
    raise UserError(
        f"weights: {likeness}keys of {weights} do not fit {model.arch} with embedding {model.embedding!r}; "
        + "; ".join(faults)
    )


def _check_values(model: ReIDModel, state: dict[str, Tensor], weights: str, prefix: str) -> None:
    """Raise unless the values can be the model's; their names and shapes have been checked."""
    wanted = model.state_dict()
    for name, value in state.items():
        shown_name = shown(name.removeprefix(prefix))
        if value.is_complex() or (wanted[name].is_floating_point() and not value.is_floating_point()):
            raise UserError(
                f"weights: {shown_name!r} in {weights} has values of {value.dtype}, needed are floating-point ones"
            )
        # float32 first: torch.isfinite does not know the types of 8 bits
        if not torch.isfinite(value.float()).all():
            raise UserError(f"weights: {shown_name!r} in {weights} has values that are not finite")


def _listing(names: list[str]) -> str:
    more = len(names) - _LISTED_KEYS
    return ", ".join(names[:_LISTED_KEYS]) + (f" and {more} more" if more > 0 else "")

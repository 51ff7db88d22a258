"""Networks of timm by name: ``timm:NAME``, and the input that each was made for.

timm, and torch with it, is imported only where such a network is named.
"""

from __future__ import annotations

import ast
import difflib
import re
from dataclasses import dataclass
from typing import Any

from snnet.errors import UserError
from snnet.files.text import shown

PREFIX = "timm:"
_PLAIN = re.compile(r"\w+")  # a word as a value
# What this package sets itself, and what would reach for files or the network.
_OWN = ("num_classes", "in_chans", "img_size", "checkpoint_path", "cache_dir", "features_only")


@dataclass(frozen=True)
class TimmInput:
    """The data configuration of a network: the images that it was made for."""

    height: int
    width: int
    mean: tuple[float, ...]  # of a channel, of values from 0 to 1
    std: tuple[float, ...]
    fixed: bool  # whether the network is built for one size


def is_timm(arch: str) -> bool:
    """Whether ``arch`` names a network of timm."""
    return arch.startswith(PREFIX)


def parse_timm(arch: str) -> tuple[str, dict[str, Any]]:
    """The name, with its tag if it has one, and the arguments of ``timm:NAME,ARGUMENT=VALUE,...``.

    Raises :class:`~snnet.errors.UserError` for what is no plain argument of the network.
    """
    name, *words = arch.removeprefix(PREFIX).split(",")
    arguments: dict[str, Any] = {}
    for word in words:
        key, _, text = word.partition("=")
        if not key.isidentifier() or not text or key in arguments:
            raise UserError(
                f"--arch {shown(arch)}: '{shown(word)}' is no argument of the network; "
                "needed is timm:NAME,ARGUMENT=VALUE such as timm:vit_small_patch16_224,drop_path_rate=0.1"
            )
        if key in _OWN or key.startswith("pretrained"):
            raise UserError(f"--arch {shown(arch)}: {shown(key)} cannot be given, this package sets it")
        arguments[key] = _value(arch, text)
    return name, arguments


def timm_input(arch: str) -> TimmInput:
    """What timm's own configuration says of the network ``arch``; nothing is loaded.

    Raises :class:`~snnet.errors.UserError` where timm is not installed or has no such network.
    """
    name, _ = parse_timm(arch)
    timm = import_timm(arch)
    bare = name.partition(".")[0]
    if not timm.models.is_model(bare):
        close = difflib.get_close_matches(bare, timm.list_models(), n=1)
        hint = f"; did you mean '{PREFIX}{close[0]}'?" if close else ""
        raise UserError(f"--arch {shown(arch)}: timm {timm.__version__} has no network '{shown(bare)}'{hint}")
    try:
        found = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:  # timm raises it for a tag that does not exist
        tags = ", ".join(timm.list_pretrained(f"{bare}.*")) or "none"
        raise UserError(
            f"--arch {shown(arch)}: timm {timm.__version__} has no such weights of {bare}; there are {tags}"
        ) from error
    own = timm.data.resolve_data_config({}, pretrained_cfg=found.to_dict() if found else {"input_size": None})
    fixed = bool(found is not None and found.fixed_input_size)
    _, height, width = own["input_size"]
    return TimmInput(height, width, tuple(own["mean"]), tuple(own["std"]), fixed)


def import_timm(arch: str) -> Any:
    """The package; raises :class:`~snnet.errors.UserError` where it cannot be had."""
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise UserError(
            f"--arch {shown(arch)} needs timm, which cannot be imported ({error}): "
            "pip install '.[timm]' in the checkout"
        ) from error
    return timm


def _value(arch: str, text: str) -> Any:
    """A number, True, False or a word."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text if _PLAIN.fullmatch(text) else None
    if type(value) not in (int, float, bool, str) or (isinstance(value, str) and value != text):
        raise UserError(f"--arch {shown(arch)}: '{shown(text)}' must be a number, True, False or a word")
    return value

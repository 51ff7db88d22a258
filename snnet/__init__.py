"""Person re-identification learned from images without labels. See ``python -m snnet.train --help``."""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would delay the handling of Ctrl-C
if TYPE_CHECKING:
    from typing import Any


def __getattr__(name: str) -> Any:
    if name == "__version__":  # at first use: --help answers without importing torch
        from snnet_kernels import __version__

        return __version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

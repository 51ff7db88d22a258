"""The compiled module ``snnet._rank_metrics``: found as the kernels' libraries are, or None."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

from snnet_kernels import backend_info
from snnet_kernels.libraries import load_library


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("snnet._rank_metrics", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[spec.name] = module
    return module


def _rank_metrics() -> ModuleType | None:
    try:
        return load_library("_rank_metrics", Path(__file__).resolve().parents[1], _import)[1]
    except ImportError as error:
        kernels = backend_info()
        if kernels.forced is None and kernels.libraries[0].loaded:  # else its warning has said it
            message = f"snnet: the compiled module _rank_metrics is {error}; numpy serves"
            warnings.warn_explicit(message, UserWarning, __file__, 0)
        return None


native = _rank_metrics()

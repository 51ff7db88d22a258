"""Ways to spoil one argument of a call: a tensor's type, shape, layout or values, or a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

REFUSED, EITHER = True, False  # must the call be refused, or may it also be answered rightly?


def _wider(tensor: Tensor, dim: int) -> Tensor:
    return torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim) if tensor.shape[dim] else _longer(tensor, dim)


def _longer(tensor: Tensor, dim: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] += 1
    return tensor.new_zeros(shape)


def _jagged(tensor: Tensor) -> Tensor:
    return torch.nested.nested_tensor([row for row in tensor] or [tensor.flatten()])


def _padded_nested(tensor: Tensor) -> Tensor:
    return torch.nested.nested_tensor([row for row in tensor] or [tensor.flatten()], layout=torch.jagged)


def _quantised(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor.float(), 0.25, 0, torch.qint8)


# What no operation takes for any of its tensors.
NEVER: dict[str, Callable[[Tensor], Any]] = {
    "None": lambda t: None,
    "list": lambda t: t.tolist(),
    "numpy": lambda t: t.numpy(),
    "text": lambda t: "memory",
    "number": lambda t: 1.0,
    "complex": lambda t: t.to(torch.complex64),
    "one dimension more": lambda t: t[None],
    "no dimension": lambda t: torch.zeros((), dtype=t.dtype),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "CSR": lambda t: t.to_sparse_csr(),
    "CSC": lambda t: t.to_sparse_csc(),
    "nested": _jagged,
    "jagged": _padded_nested,
    "MKLDNN": lambda t: t.float().to_mkldnn(),
    "quantised": _quantised,
}
# What may be right where the values allow it (a type that is taken to float32, an n that fits the rest).
SOMETIMES: dict[str, Callable[[Tensor], Any]] = {
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "8-bit float": lambda t: t.float().to(torch.float8_e4m3fn),
    "int32": lambda t: t.int(),
    "int64": lambda t: t.long(),
    "uint8": lambda t: t.to(torch.uint8),
    "bool": lambda t: t.bool(),
    "transposed": lambda t: t.t() if t.dim() == 2 else t.flip(0),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "expanded": lambda t: t[:1].expand(t.shape) if len(t) else t,
    "a row more": lambda t: _wider(t, 0),
    "a row less": lambda t: t[:-1] if len(t) else _longer(t, 0),
    "a column more": lambda t: _wider(t, -1),
    "a column less": lambda t: t[..., :-1].contiguous(),
    "no rows": lambda t: t[:0],
    "no columns": lambda t: t[..., :0].contiguous(),
    "parameter": lambda t: torch.nn.Parameter(t) if t.is_floating_point() else torch.nn.Parameter(t, False),
    "conjugate view": lambda t: torch._neg_view(t) if t.is_floating_point() else t,
    "NaN": lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else t,
    "infinite": lambda t: torch.full_like(t, torch.inf) if t.is_floating_point() else t,
    "huge": lambda t: torch.full_like(t, 3e38) if t.is_floating_point() else t,
}
OUTSIDE = (-1, -2, 40, 41, 2**31, 2**40, 2**63 - 1, -(2**63))
NUMBERS: tuple[Any, ...] = (
    float("nan"), float("inf"), -float("inf"), None, "0.5", "mmcl", True, 1j, -1, -0.5, 1.5, 2.5, 2**31 - 2,
    2**31, 2**70, 1e300, [0.5], np.float32("nan"), np.bool_(True), torch.tensor(0.5), torch.tensor([0.5, 0.5]),
)  # fmt: skip


def spoil_tensor(random: np.random.Generator, tensor: Tensor) -> tuple[str, Any, bool]:
    """A spoilt form of ``tensor``: how, the form, and whether it must be refused whatever the operation."""
    if tensor.dtype == torch.int64 and tensor.numel() and random.random() < 0.4:
        wrong = tensor.clone()
        wrong[int(random.integers(len(wrong)))] = OUTSIDE[random.integers(len(OUTSIDE))]
        return f"index {wrong.tolist()}", wrong, EITHER
    never = random.random() < 0.5
    forms = NEVER if never else SOMETIMES
    how = list(forms)[random.integers(len(forms))]
    try:
        return how, forms[how](tensor), never
    except (RuntimeError, TypeError, IndexError, NotImplementedError):  # torch has no such form of it
        return "None", None, REFUSED

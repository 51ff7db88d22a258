"""Argument checks of the public functions: one clear error that names the argument.

Shapes, types and devices are checked here, always. Values (an index out of range, a momentum outside
[0, 1]) are read only where that costs no synchronisation and where no graph is being traced: on the CPU, in
eager mode. The implementations check them once more, so that a traced call is as safe. An operation that writes nothing
checks its index alone (``read_later``); before one that writes, it is checked here: a refused write is not counted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .layout import label_bytes
from .neighbor_list_layout import NeighborLists, mirrors_width
from .tracing import has_values

DEBUG = os.environ.get("SNNET_DEBUG") == "1"
MOST_PADDING = 65_536  # neighbours that may be asked for beyond those there are
LIBRARY_RAISES_VALUE_ERROR = torch.__version__ < "2.15.dev0"  # then its errors became RuntimeErrors
LENGTH_TOLERANCE = 0.01  # how far from 1 the length of a feature may be


def check_tensor(name: str, value: object, shape: object) -> Tensor:
    """A dense tensor; sparse, nested, MKLDNN, quantized and lazily negated ones have no rows to read in place."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor {shape}, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        kind = "nested" if value.is_nested else "quantized" if value.is_quantized else str(value.layout)
        raise TypeError(f"{name} must be a dense tensor {shape}, got a {kind} one")
    if not torch.compiler.is_compiling() and (value.is_neg() or value._is_zerotensor()):
        raise TypeError(f"{name} must be a dense tensor {shape}, got one that is not computed yet (clone it)")
    return value


def check_matrix(name: str, value: object, rows: str = "n", columns: str = "d") -> Tensor:
    tensor = check_tensor(name, value, f"[{rows}, {columns}]")
    if tensor.dim() != 2:
        raise ValueError(
            f"{name} must have 2 dimensions [{rows}, {columns}], got shape {tuple(tensor.shape)}"
        )
    return tensor


def check_memory(name: str, value: object) -> Tensor:
    """The exemplar memory: contiguous float32 [n, d], a buffer and no parameter."""
    memory = check_matrix(name, value)
    check_storage(name, memory, torch.float32)
    if memory.requires_grad:
        raise ValueError(f"{name} must not require grad: no gradient is defined for it, pass {name}.detach()")
    return memory


def check_shape(name: str, tensor: Tensor, *shape: int | str, note: str = "") -> None:
    """The sizes of a tensor; one that is given as a letter may be any."""
    if any(
        not isinstance(wanted, str) and size != wanted
        for size, wanted in zip(tensor.shape, shape, strict=True)
    ):
        sizes = ", ".join(str(wanted) for wanted in shape)
        raise ValueError(f"{name} must have shape [{sizes}]{note}, got {tuple(tensor.shape)}")


def check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating point tensor, got {tensor.dtype}")


def check_storage(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {tuple(tensor.stride())}")


def check_same_device(**tensors: Tensor | None) -> None:
    """The first one is there."""
    first, *others = tensors
    device = tensors[first].device  # type: ignore[union-attr]
    for name in others:
        tensor = tensors[name]
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} must be on the device of {first} ({device}), got {tensor.device}")


def check_features(name: str, value: object, feature_dim: int) -> Tensor:
    """Live features: any floating type and any strides, taken to float32 [B, d]."""
    features = check_matrix(name, value, "B", "d")
    check_floating(name, features)
    check_shape(name, features, "B", feature_dim)
    return features.float()


def check_lengths(name: str, features: Tensor, finite: bool = True, first: int = 0) -> Tensor:
    """The lengths [n] of rows [n, d]; none where there are no values to read.

    Rows are of length 1, or zero, and finite unless that is not asked. The error counts rows from ``first`` on.
    """
    if not has_values(features) or features.numel() == 0:
        return features.new_zeros(0, dtype=torch.float32)
    lengths = torch.linalg.vector_norm(features.detach().float(), dim=1)
    wrong = ~((lengths - 1).abs() <= LENGTH_TOLERANCE) & (lengths != 0)
    if not finite:
        wrong &= lengths.isfinite()
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name} must have rows of length 1 (or zero), as torch.nn.functional.normalize makes them: "
            f"row {first + row} has length {float(lengths[row]):.4g}"
        )
    return lengths


def check_index(
    name: str,
    value: object,
    num_instances: int,
    batch_size: int | None = None,
    lowest: int = 0,
    *,
    read_later: bool = False,
) -> Tensor:
    """Dataset positions: int64 [B], lowest <= index < n; ``read_later``: an operation checks the values on the CPU."""
    index = check_tensor(name, value, "[B]")
    if index.dtype != torch.int64:
        raise TypeError(f"{name} must be torch.int64, got {index.dtype}")
    if index.dim() != 1:
        raise ValueError(f"{name} must have 1 dimension [B], got shape {tuple(index.shape)}")
    if batch_size is not None and index.shape[0] != batch_size:
        raise ValueError(f"{name} must have {batch_size} entries, got {index.shape[0]}")
    if not (read_later and LIBRARY_RAISES_VALUE_ERROR and index.is_cpu) and has_values(index):
        check_index_values(name, index, num_instances, lowest)
    return index


def check_index_values(name: str, index: Tensor, num_instances: int, lowest: int = 0) -> None:
    """Read the values of an index on the CPU; elsewhere, where a read would wait for the device, only assert.

    With ``SNNET_DEBUG=1`` the assertion runs on the device and stops the program at its next synchronisation.
    """
    if index.device.type != "cpu":
        if DEBUG:
            inside = ((index >= lowest) & (index < num_instances)).all()
            torch._assert_async(inside, f"{name} must lie in [{lowest}, {num_instances})")
        return
    if index.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(index))
    if low < lowest or high >= num_instances:
        wrong = low if low < lowest else high
        raise ValueError(f"{name} must lie in [{lowest}, {num_instances}), got {wrong}")


def byte_range(tensor: Tensor) -> tuple[int, int]:
    """The addresses [first, end) that a strided tensor reaches; empty where it has no entries."""
    first = tensor.data_ptr()
    if tensor.is_contiguous() or tensor.numel() == 0:
        return first, first + tensor.nbytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * tensor.element_size()


def check_apart(written: Mapping[str, Tensor | None]) -> None:
    """Tensors that a call writes, by name: none shares memory with another. Traced calls are not looked at."""
    taken: list[tuple[str, torch.device, int, int]] = []  # name, device and bytes [first, end)
    for name, tensor in written.items():
        if tensor is None or not has_values(tensor):
            continue
        first, end = byte_range(tensor)
        for other, device, start, stop in taken:
            if first < stop and start < end and first < end and tensor.device == device:
                raise ValueError(f"{name} must not share memory with {other}: one of them is written")
        if first < end:
            taken.append((name, tensor.device, first, end))


def apart(written: Sequence[Tensor], *read: Tensor | None) -> list[Any]:
    """What is ``read``, and copies of that which may share memory with something ``written``.

    Compiled implementations do the same (csrc/common/apart.h).
    """
    ranges = [(tensor.device, *byte_range(tensor)) for tensor in written if has_values(tensor)]

    def is_written(tensor: Tensor) -> bool:
        first, end = byte_range(tensor)
        return any(first < stop and start < end and tensor.device == device for device, start, stop in ranges)

    return [
        tensor.clone() if tensor is not None and has_values(tensor) and is_written(tensor) else tensor
        for tensor in read
    ]


def check_no_transform(name: str, tensor: Tensor) -> None:
    """No derivative is defined in forward mode, where a tangent would be lost without a word, nor for torch.func."""
    if torch.compiler.is_compiling():
        return
    forward_ad = torch.autograd.forward_ad
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        found = "has a forward-mode tangent (torch.func.jvp, dual numbers)"
    elif torch._C._functorch.is_gradtrackingtensor(tensor):
        found = "is transformed by torch.func (grad, vjp, jvp and others)"
    else:
        return
    raise NotImplementedError(
        f"{name} {found}, for which no derivative is defined: use backward() or torch.autograd.grad"
    )


def check_rows(name: str, value: object, batch_size: int, num_instances: int) -> Tensor:
    """Similarity rows: float [B, n], taken to float32."""
    rows = check_matrix(name, value, "B", "n")
    check_floating(name, rows)
    check_shape(name, rows, batch_size, num_instances)
    return rows.float()


def check_query(
    memory: Tensor, index: Tensor, query_rows: Tensor | None, lists: NeighborLists | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What labels and neighbours are sought in: memory, positions, and the similarities that are at hand."""
    memory = check_memory("memory", memory)
    n = memory.shape[0]
    index = check_index("index", index, n, read_later=True)
    if query_rows is not None:
        query_rows = check_rows("query_rows", query_rows, index.shape[0], n).detach()
    check_same_device(memory=memory, index=index, query_rows=query_rows)
    if lists is not None:
        check_lists("lists", lists, memory)
    return memory, index, query_rows


def _check_table(name: str, value: object, shape: tuple[int, ...], floats: bool, memory: Tensor) -> None:
    """A part of neighbour lists of the memory."""
    tensor = check_tensor(name, value, list(shape))
    if tensor.device != memory.device:
        check_same_device(memory=memory, **{name: tensor})
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    check_storage(name, tensor, torch.float32 if floats else torch.int32)
    if tensor.requires_grad:
        raise ValueError(f"{name} must not require grad: no gradient is defined for it")


def check_lists(name: str, value: object, memory: Tensor, symmetric: bool = False) -> NeighborLists:
    """Neighbour lists of the memory [n, d]; ``symmetric`` ones have the places of their mirrored entries."""
    num_instances = memory.shape[0]
    if not isinstance(value, NeighborLists):
        raise TypeError(f"{name} must be NeighborLists (see neighbor_lists), got {type(value).__name__}")
    if symmetric and value.mirrors is None:
        raise ValueError(f"{name} must be symmetric to follow an update: neighbor_lists(..., symmetric=True)")
    capacity = check_matrix(f"{name}.columns", value.columns, "n", "K").shape[1]
    if capacity == 0 and num_instances > 0:
        raise ValueError(
            f"{name}.columns must have at least one place a row, got {list(value.columns.shape)}"
        )
    shapes = {
        "columns": (num_instances, capacity),
        "values": (num_instances, capacity),
        "counts": (num_instances,),
        "floors": (num_instances,),
        "mirrors": (num_instances, mirrors_width(memory.device, capacity)),
    }
    for part, shape in shapes.items():
        tensor = getattr(value, part)
        if part != "mirrors" or tensor is not None:
            _check_table(f"{name}.{part}", tensor, shape, part in ("values", "floors"), memory)
    return value


def check_labels(name: str, value: object, num_instances: int, batch_size: int | None = None) -> Tensor:
    """Packed label bits: contiguous uint8 [B, label_bytes(n)]."""
    labels = check_matrix(name, value, "B", "label_bytes(n)")
    check_storage(name, labels, torch.uint8)
    rows = "B" if batch_size is None else batch_size
    check_shape(name, labels, rows, label_bytes(num_instances), note=f" for {num_instances} instances")
    return labels


def check_weights(weights: Sequence[float]) -> list[float]:
    """The weights of the label sets (Eq. 8): one to three numbers of a finite sum, none negative, not all zero."""
    if isinstance(weights, Tensor) or not isinstance(weights, Sequence):
        raise TypeError(f"weights must be a sequence of 1 to 3 numbers, got {type(weights).__name__}")
    numbers = [float(check_number(f"weights[{k}]", weight)) for k, weight in enumerate(weights)]
    if not 1 <= len(numbers) <= 3:
        raise ValueError(f"weights must be 1 to 3 numbers, got {len(numbers)}")
    if not all(weight >= 0.0 for weight in numbers) or not 0.0 < sum(numbers) < float("inf"):
        raise ValueError(
            f"weights must be finite, also their sum, none negative and not all zero, got {numbers}"
        )
    return numbers


def check_label_sets(
    labels: Sequence[Tensor], weights: Sequence[float], batch_size: int, num_instances: int
) -> tuple[list[Tensor], list[float]]:
    numbers = check_weights(weights)
    if isinstance(labels, Tensor) or not isinstance(labels, Sequence):
        raise TypeError(f"labels must be a sequence of 1 to 3 label tensors, got {type(labels).__name__}")
    if len(labels) != len(numbers):
        raise ValueError(
            f"labels and weights must have the same length, got {len(labels)} and {len(numbers)}"
        )
    checked = [
        check_labels(f"labels[{k}]", value, num_instances, batch_size) for k, value in enumerate(labels)
    ]
    return checked, numbers


def check_momentum(value: float | Tensor, device: torch.device) -> Tensor:
    """The momentum as a float32 0-d tensor on the memory's device."""
    if isinstance(value, Tensor):
        check_tensor("momentum", value, "[]")
        if value.dim() != 0 or not value.is_floating_point():
            raise ValueError(
                f"momentum must be a number or a 0-d floating point tensor, got {value.dtype} {tuple(value.shape)}"
            )
        if value.is_meta and device.type != "meta":
            raise ValueError(f"momentum must have a value to be used on {device}, got a meta tensor")
        value = value.detach()  # no gradient is defined for it
        if has_values(value):
            check_momentum_value(value)
        return value.to(device=device, dtype=torch.float32)
    value = check_share("momentum", check_number("momentum", value, "a number or a 0-d tensor"))
    return torch.full((), value, dtype=torch.float32, device=device)


def check_momentum_value(momentum: Tensor) -> None:
    if momentum.device.type == "cpu":
        check_share("momentum", float(momentum))


def check_share(name: str, value: object) -> float:
    number = check_number(name, value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {number}")
    return number


def check_loss_options(kind: str, delta: float, hard_negative_ratio: float) -> tuple[str, float, float]:
    if kind not in ("mmcl", "l2"):
        raise ValueError(f"kind must be 'mmcl' or 'l2', got {kind!r}")
    delta = check_number("delta", delta)
    if not 0.0 <= delta <= torch.finfo(torch.float32).max:
        raise ValueError(f"delta must be finite and not negative as a float32, got {delta}")
    ratio = check_share("hard_negative_ratio", hard_negative_ratio)
    return kind, delta, ratio


def check_neighbors(k: object, num_instances: int) -> int:
    """How many neighbours are asked for: a number that the padding of the results keeps in bounds."""
    count = check_count("k", k)
    if count > num_instances + MOST_PADDING:
        raise ValueError(
            f"k must be at most n + {MOST_PADDING} = {num_instances + MOST_PADDING}, got {count}"
        )
    return count


def check_prediction_options(threshold: float, min_rank: int) -> tuple[float, int]:
    return check_finite("threshold", threshold), check_count("min_rank", min_rank, lowest=0)


def check_finite(name: str, value: object) -> float:
    number = check_number(name, value)
    if not -float("inf") < number < float("inf"):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def check_flag(name: str, value: object) -> bool:
    """A truth value of Python or numpy."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")
    return bool(value)


def check_number(name: str, value: object, wanted: str = "a number") -> float:
    """A number of Python or numpy."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}")
    return float(value)


def check_count(name: str, value: object, lowest: int = 1) -> int:
    """An integer of Python or numpy that fits 31 bits."""
    if isinstance(value, bool) or not isinstance(value, (Integral, torch.SymInt)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    count: Any = value if isinstance(value, (int, torch.SymInt)) else int(value)
    if count < lowest:
        raise ValueError(f"{name} must be an integer of at least {lowest}, got {count}")
    if count >= 2**31:
        raise ValueError(f"{name} must be below 2^31, got {count}")
    return count

"""Whether a tensor is one of numbers, or stands for one that is yet to come."""

from __future__ import annotations

from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.compiler import is_compiling


def has_values(tensor: Tensor) -> bool:
    """Whether eager code may read the tensor's values and address: not traced, fake, on meta, or transformed."""
    if is_compiling() or tensor.is_meta or isinstance(tensor, FakeTensor):
        return False
    return not is_functorch_wrapped_tensor(tensor)

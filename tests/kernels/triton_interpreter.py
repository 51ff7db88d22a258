"""Importing this module makes Triton's interpreter three times as fast.

For the time of a kernel it puts its own functions in the place of Triton's, and looks for their names anew at every
call of a function within the kernel. Here it looks once. It makes the types of blocks, and the shapes of tensors, anew
for every value; here there is one of each. Whether 32-bit integers overflow it finds out in many steps, and then only
asserts it where Triton debugs; here NumPy says so at once, and it is asserted.
"""

import inspect
import math
from functools import cache
from typing import Any

import numpy as np
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

_patch_everything = interpreter._patch_lang
_patched: set[int] = set()  # modules of the language that the kernel which runs has patched
_languages: dict[int, frozenset[int]] = {}  # those that a module of kernels names


@cache
def _builtin_names(package: Any) -> list[str]:
    return [name for name, value in inspect.getmembers(package) if interpreter.tl.core.is_builtin(value)]


def _patch_builtin(package: Any, builder: Any, scope: Any) -> None:
    for name in _builtin_names(package):
        value = getattr(package, name)
        if interpreter.tl.core.is_builtin(value):
            interpreter._patch_attr(package, name, value, builder, scope)


class _Scope(interpreter._LangPatchScope):
    def restore(self) -> None:
        _patched.clear()
        super().restore()


def _patch_lang(function: Any) -> Any:
    names = function.__globals__
    if id(names) not in _languages:
        both = (interpreter.tl, interpreter.tl.core)
        _languages[id(names)] = frozenset(
            id(value) for value in names.values() if any(value is one for one in both)
        )
    scope: Any = interpreter._LangPatchScope()
    if not _languages[id(names)] <= _patched:
        is_kernel = not _patched
        scope = _patch_everything(function)
        if is_kernel:
            scope.__class__ = _Scope
        _patched.update(_languages[id(names)])
    return scope


_np_dtypes: dict[str, Any] = {}
_find_np_dtype = interpreter._get_np_dtype


def _get_np_dtype(kind: Any) -> Any:
    scalar = kind.scalar
    if scalar.name not in _np_dtypes:
        _np_dtypes[scalar.name] = _find_np_dtype(scalar)
    return _np_dtypes[scalar.name]


_block_types: dict[tuple[Any, ...], dict[str, Any]] = {}
_shapes: dict[tuple[int, ...], tuple[Any, Any]] = {}
_make_block_type = interpreter.tl.block_type.__init__


def _shape(sizes: list[int]) -> tuple[Any, Any]:
    """What a tensor has as its shape and number of elements."""
    core = interpreter.tl.core
    return core.tuple([core.constexpr(size) for size in sizes]), core.constexpr(math.prod(sizes))


def _init_block_type(self: Any, element_ty: Any, shape: Any) -> None:
    key = (element_ty.name, *(getattr(size, "value", size) for size in shape))
    if key not in _block_types:
        _make_block_type(self, element_ty, shape)
        self.shape, self.shape_of_tensors = _shapes.setdefault(
            key[1:], (self.shape, _shape(list(self.shape)))
        )
        _block_types[key] = dict(vars(self))
    vars(self).update(_block_types[key])


def _is_same_block_type(self: Any, other: Any) -> bool:
    return isinstance(other, interpreter.tl.block_type) and self.name == other.name


_SCALAR = _shape([])


def _init_tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = type.shape_of_tensors if type.is_block() else _SCALAR


_broadcast = TritonSemantic.broadcast_impl_value


def _broadcast_impl_value(self: Any, one: Any, other: Any) -> tuple[Any, Any]:
    blocks = one.type.is_block(), other.type.is_block()
    if not any(blocks) or (all(blocks) and one.type.shape is other.type.shape):
        return one, other
    return _broadcast(self, one, other)


def _assert_no_overflow(self: Any, one: Any, other: Any, operation: Any) -> None:
    kind = one.type.scalar
    if kind.int_bitwidth >= 64:
        return
    wide = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[operation.__name__](
        one.handle.data, other.handle.data, dtype=np.int64
    )
    low, high = kind.get_int_min_value(), kind.get_int_max_value()
    assert wide.min() >= low and wide.max() <= high, (
        f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}"
    )


interpreter._get_np_dtype = _get_np_dtype
interpreter.tl.block_type.__init__ = _init_block_type
interpreter.tl.block_type.__eq__ = _is_same_block_type
interpreter.tl.tensor.__init__ = _init_tensor
TritonSemantic.broadcast_impl_value = _broadcast_impl_value
TritonSemantic.binary_op_sanitize_overflow_impl = _assert_no_overflow
interpreter._patch_builtin = _patch_builtin
interpreter._patch_lang = _patch_lang

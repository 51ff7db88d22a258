"""Triton's interpreter, which takes two thirds of its time after the import of this module.

For the time of a kernel it puts its own functions in the place of Triton's, and looks for their names anew at every
call of a function within the kernel. Here it looks once.
"""

import inspect
from functools import cache
from typing import Any

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


interpreter._patch_builtin = _patch_builtin
interpreter._patch_lang = _patch_lang

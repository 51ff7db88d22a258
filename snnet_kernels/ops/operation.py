"""Defines a torch operation ``snnet::NAME`` from a plain PyTorch function with the same arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..backends import table

LIBRARY = torch.library.Library("snnet", "DEF")


class Operation(NamedTuple):
    """The definition of an operation, which all backends follow."""

    schema: str
    plain: Callable[..., Any]  # in plain PyTorch, for every device


OPERATIONS: dict[str, Operation] = {}  # by name


def operation(
    fake: Callable[..., Any], *, writes: Sequence[str] = (), name: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define an operation by its plain PyTorch form, which runs wherever no backend implements the operation.

    The schema comes from the annotations of that function. The decorator returns a function that calls the operation
    on the backend for its first argument. It raises NotImplementedError if ``SNNET_BACKEND`` forces a backend that
    does not implement the operation.

    Args:
        fake: returns an empty result, for tracing; takes the same arguments.
        writes: the arguments that are written. Each write increments the version counter that autograd checks.
        name: the operation's name; by default that of the function without its leading underscore.
    """

    def define(plain: Callable[..., Any]) -> Callable[..., Any]:
        own = name or plain.__name__.removeprefix("_")
        schema = own + torch.library.infer_schema(plain, mutates_args=writes)
        OPERATIONS[own] = Operation(schema, plain)
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        if _is_compiled_for_cpu(own):  # what traces a call cannot ask this
            table.COMPILED_FOR_CPU.add(own)
        LIBRARY.impl(own, plain, "CompositeExplicitAutograd")
        torch.library.register_fake(f"snnet::{own}", fake, lib=LIBRARY)
        overload = getattr(torch.ops.snnet, own).default
        if writes:
            LIBRARY.impl(own, _count_writes(overload), "ADInplaceOrView", with_keyset=True)

        def call(*args: Any) -> Any:
            if table.FORCED is not None:
                table.require_forced_backend(own, args[0].device.type)
            return overload(*args)

        return call

    return define


def implement_on_cpu(name: str, function: Callable[..., Any], compiled: str) -> None:
    """Let a function run the operation ``name`` on the CPU if the library has ``compiled``, which it calls."""
    if _is_compiled_for_cpu(compiled):
        LIBRARY.impl(name, function, "CPU")
        table.COMPILED_FOR_CPU.add(name)


def _is_compiled_for_cpu(name: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"snnet::{name}", "CPU"))


def set_gradient(name: str, save: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Register the gradient of an operation, with the functions of ``torch.library.register_autograd``."""
    torch.library.register_autograd(f"snnet::{name}", backward, setup_context=save, lib=LIBRARY)


def _count_writes(overload: torch._ops.OpOverload) -> Callable[..., Any]:
    """Runs before every implementation, because autograd does not see what a compiled one writes."""
    arguments = overload._schema.arguments
    written = [place for place, argument in enumerate(arguments) if argument.is_write]

    def count_and_run(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        given = [args[place] for place in written if place < len(args) and args[place] is not None]
        torch.autograd.graph.increment_version([tensor for tensor in given if not tensor.is_inference()])
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return overload.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args)

    return count_and_run

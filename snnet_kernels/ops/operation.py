"""What makes an operation of a plain PyTorch function: ``snnet::NAME``, its arguments those of the function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..backends import table

LIBRARY = torch.library.Library("snnet", "DEF")


class Operation(NamedTuple):
    """What is said of an operation once, for backends to follow."""

    schema: str
    plain: Callable[..., Any]  # in plain PyTorch, for every device


OPERATIONS: dict[str, Operation] = {}  # by name


def operation(
    fake: Callable[..., Any], *, writes: Sequence[str] = (), name: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define an operation by its plain PyTorch form, which serves wherever no backend does.

    The schema is made of the annotations of that function. Returned is what calls the operation, on whichever backend
    serves its first argument, or raises NotImplementedError where ``SNNET_BACKEND`` forces another one.

    Args:
        fake: an empty result, for tracing; takes the same arguments.
        writes: the arguments that are written. Each write is counted, as autograd needs it.
        name: by default that of the function, less a leading underscore.
    """

    def define(plain: Callable[..., Any]) -> Callable[..., Any]:
        own = name or plain.__name__.removeprefix("_")
        schema = own + torch.library.infer_schema(plain, mutates_args=writes)
        OPERATIONS[own] = Operation(schema, plain)
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
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


def set_gradient(name: str, save: Callable[..., None], backward: Callable[..., Any]) -> None:
    """The derivative of an operation, as ``torch.library.register_autograd`` takes it."""
    torch.library.register_autograd(f"snnet::{name}", backward, setup_context=save, lib=LIBRARY)


def _count_writes(overload: torch._ops.OpOverload) -> Callable[..., Any]:
    """In front of every implementation: a compiled one writes memory that autograd does not see being written."""
    arguments = overload._schema.arguments
    written = [place for place, argument in enumerate(arguments) if argument.is_write]

    def count_and_run(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        for place in written:
            if place < len(args) and args[place] is not None and not args[place].is_inference():
                torch.autograd.graph.increment_version(args[place])
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return overload.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args)

    return count_and_run

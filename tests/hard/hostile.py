"""Calls with one argument spoilt, and calls whose arguments share memory.

A hostile call is refused with a ValueError, TypeError or MemoryError that names an argument, or it is right: the
reference gives the same for plain copies of its arguments. A refused call leaves the bytes of every argument as they
were. Only an update of lists that contradict themselves stops where it meets this. An aliased call (features that are
rows of the memory, one tensor as two arguments, ranges that overlap) is refused, or gives what copies give, from the
compiled operation and from the reference alike.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import backends, ops
from snnet_kernels.ops.operation import OPERATIONS
from tests.hard.calls import CALLS, Call, Named, copies, results
from tests.hard.drawing import Arguments, close, draw, instruction_sets
from tests.hard.limits import limited_memory
from tests.hard.share import Share
from tests.hard.spoil import NUMBERS, spoil_tensor
from tests.hard.tally import Tally

HOSTILE, ALIASED = 80_000, 20_000  # calls at full size
CALLS_OF_A_CASE = 40
REFUSALS = (ValueError, TypeError, MemoryError)
TOLERANCE = 2e-5  # of rows, similarities and losses; what an inexact momentum rounds in a short row
MEMORY = 4 << 30  # bytes that the process may take more: an absurd number must not take the machine with it
CONTENTS = "contents"  # of lists are taken on trust: their labels may be wrong then
OVERFLOWS = (
    "infinite",
    "huge",
    CONTENTS,
)  # of such values only refusals and untouched arguments are looked at

Random = np.random.Generator
One = Callable[[Random, Arguments, Tally, str], None]


def hostile(share: Share) -> Tally:
    """Spoilt calls, one argument at a time."""
    with limited_memory(MEMORY):
        return _attack(share, HOSTILE, 2, spoilt_call)


def aliased(share: Share) -> Tally:
    """Calls whose arguments share memory."""
    return _attack(share, ALIASED, 3, aliased_call)


def _attack(share: Share, full: int, key: int, one: One) -> Tally:
    tally, done, case = Tally(), 0, share.part
    wanted, sets = share.count(full), instruction_sets()
    warnings.simplefilter("ignore")  # of torch, about layouts that are drafts
    while done < wanted:
        if sets:
            backends.select_instruction_set(sets[case // share.parts % len(sets)])
        random = share.random(key, case)
        share.breadcrumb(f"{one.__name__} case {case}")
        x = draw(random)
        for number in range(min(CALLS_OF_A_CASE, wanted - done)):
            one(random, x, tally, f"seed {share.seed} case {case} call {number}, n, d, B {x.sizes}")
            done += 1
        case += share.parts
    return tally


def spoilt_call(random: Random, x: Arguments, tally: Tally, where: str) -> None:
    """Spoil one argument of one operation, call it, and see what comes."""
    operation = list(CALLS)[random.integers(len(CALLS))]
    call = CALLS[operation]
    given = call.arguments(random, x)
    name = list(given)[random.integers(len(given))]
    how, given[name], refused = _spoil(random, given[name])
    if name == "memory" and given.get("lists") is not None:  # they are of another one then
        how += f", other {CONTENTS}"
    refused = refused and not (given[name] is None and name in call.optional)
    kind = f"hostile {operation}"
    tally.tried(kind)
    problem = _outcome(call, given, refused, how)
    if problem:
        tally.failed(kind, f"{name}: {how}: {problem}", where)


def _spoil(random: Random, value: Any) -> tuple[str, Any, bool]:
    """How, the spoilt value, and whether it must be refused."""
    if isinstance(value, Tensor):
        return spoil_tensor(random, value)
    if isinstance(value, sk.NeighborLists) and random.integers(3):
        tables = [name for name, table in value._asdict().items() if table is not None]
        name = tables[random.integers(len(tables))]
        how, table, never = spoil_tensor(random, getattr(value, name))
        never = never and not (table is None and name == "mirrors")
        return f"{name} {how}, {CONTENTS}", value._replace(**{name: table}), never
    if isinstance(value, list) and random.integers(3):
        place = int(random.integers(len(value)))
        how, spoilt, never = _spoil(random, value[place])
        return f"[{place}] {how}", [*value[:place], spoilt, *value[place + 1 :]], never
    number = NUMBERS[random.integers(len(NUMBERS))]
    return f"{number!r}", number, False


def _outcome(call: Call, given: Named, refused: bool, how: str) -> str | None:
    """Call, and say what is wrong with what came; None where nothing is."""
    before = _bytes(given)
    try:
        found = results(call.public, given, call.written)
    except REFUSALS as error:
        if _bytes(given) != before and not how.endswith(CONTENTS):
            return f"refused, but an argument was changed ({error})"
        text = str(error)
        return None if any(name in text for name in given) and "\n" not in text else f"unclear: {text!r}"
    except Exception as error:
        touched = " and an argument was changed" if _bytes(given) != before else ""
        return _shown(error) + touched
    if any(tensor.is_meta for tensor in found):  # shapes alone were asked for
        return None
    if refused:
        return "was not refused"
    kept = {name: value for name, value in given.items() if name not in call.written}
    if any(before[name] != bytes_ for name, bytes_ in _bytes(kept).items()):
        return "an argument that is not written was changed"
    return None if how.endswith(OVERFLOWS) else _compared(call, given, before, found)


def _compared(call: Call, given: Named, before: dict[str, Any], found: list[Tensor]) -> str | None:
    plain = copies(given)
    for name in call.written:
        if plain.get(name) is not None:
            for tensor, raw in zip(_tensors(plain[name]), before[name], strict=True):
                _restore(tensor, raw)
    try:
        wanted = results(call.plain, plain, call.written)
    except Exception as error:
        return f"was answered, where the reference has {_shown(error)}"
    return _difference(found, wanted)


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}"


def _difference(found: list[Tensor], wanted: list[Tensor]) -> str | None:
    for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
        exact = not a.is_floating_point()
        if not close(a.detach(), b.detach(), 0.0 if exact else TOLERANCE):
            return f"result {number} is wrong"
    return None


def _bytes(given: Named) -> dict[str, list[bytes]]:
    """The bytes of every dense tensor among the arguments."""
    return {name: [_tensor_bytes(t) for t in _tensors(value)] for name, value in given.items()}


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, (list, tuple)):
        return [tensor for one in value for tensor in _tensors(one)]
    dense = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return [value] if dense and not value.is_quantized and not value.is_nested else []


def _tensor_bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def aliased_call(random: Random, x: Arguments, tally: Tally, where: str) -> None:
    """Let two arguments of one operation share memory, call it, and compare with copies."""
    operation = list(CALLS)[random.integers(len(CALLS))]
    call = CALLS[operation]
    given = call.arguments(random, x)
    if "lists" in given:
        given["lists"] = None
    pairs = _pairs(given)
    if not pairs:
        return aliased_call(random, x, tally, where)
    one, two = pairs[random.integers(len(pairs))]
    how, given = _share(random, given, one, two)
    kind = f"aliased {operation}"
    tally.tried(kind)
    plain, again = copies(given), copies(given)
    before = _bytes(given)
    try:
        found = results(call.public, given, call.written)
    except REFUSALS as error:
        problem = None if _bytes(given) == before else f"refused, but an argument was changed ({error})"
    except Exception as error:
        problem = _shown(error)
    else:
        problem = _difference(found, results(call.public, plain, call.written))
        if problem is None:  # the reference on the same memory
            for name, raw in before.items():
                for tensor, bytes_ in zip(_tensors(given[name]), raw, strict=True):
                    _restore(tensor, bytes_)
            with _served_by_reference(operation):
                found = results(call.public, given, call.written)
            problem = _difference(found, results(call.plain, again, call.written))
            problem = problem and f"the reference's {problem}"
    if problem:
        tally.failed(kind, f"{one} and {two}: {problem}", f"{how}, {where}")


@contextlib.contextmanager
def _served_by_reference(operation: str) -> Iterator[None]:
    """Let the public function, with its checks, call the reference, as SNNET_BACKEND=reference does."""
    name = f"_{operation}"
    families = [module for key, module in sys.modules.items() if key.startswith(f"{ops.__name__}.")]
    (family,) = (module for module in families if hasattr(module, name))
    with mock.patch.object(family, name, OPERATIONS[operation].plain):
        yield


def _restore(tensor: Tensor, raw: bytes) -> None:
    if raw:
        tensor.copy_(torch.frombuffer(bytearray(raw), dtype=tensor.dtype).view(tensor.shape))


def _pairs(given: Named) -> list[tuple[str, str]]:
    """Names of arguments of one type that are not empty."""
    names = [name for name, value in given.items() if isinstance(value, Tensor) and value.numel()]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return [(a, b) for a, b in pairs if given[a].dtype == given[b].dtype]


def _share(random: Random, given: Named, one: str, two: str) -> tuple[str, Named]:
    """``two`` as rows of ``one`` where that fits, else both in one buffer, overlapping."""
    a, b = given[one], given[two]
    if a.shape[1:] == b.shape[1:] and len(a) >= len(b) and random.integers(3):
        start = int(random.integers(len(a) - len(b) + 1))
        return f"rows from {start}", given | {two: a[start : start + len(b)]}
    if b.shape[1:] == a.shape[1:] and len(b) >= len(a) and random.integers(3):
        start = int(random.integers(len(b) - len(a) + 1))
        return f"rows from {start}, turned", given | {one: b[start : start + len(a)]}
    buffer = a.new_zeros(a.numel() + 2 * b.numel())
    first = b.numel()
    second = first + int(random.integers(1 - b.numel(), a.numel()))
    buffer[second : second + b.numel()] = b.reshape(-1)
    buffer[first : first + a.numel()] = a.reshape(-1)
    shared = {
        one: buffer[first : first + a.numel()].view(a.shape),
        two: buffer[second : second + b.numel()].view(b.shape),
    }
    return f"overlapping by an offset of {second - first}", given | shared

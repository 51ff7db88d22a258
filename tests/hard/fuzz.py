"""Valid calls of every operation on tiny arguments, each result compared with the reference's.

One result of the reference serves several calls: with and without neighbour lists, with other
strides and number formats of the same values, with the batch in another order or cut. A call is one call of a
public function; the result of every call is compared. Labels, bits, indices and similarities must be equal to the
bit; losses, gradients and updated memories within the tolerances stated where they are compared. No argument but
those that an operation writes may change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import backends, ops, reference
from snnet_kernels.neighbor_list_layout import NeighborLists
from tests.hard.drawing import (
    MIN_RANKS,
    MOMENTA,
    THRESHOLDS,
    Arguments,
    close,
    draw,
    draw_lists,
    equal,
    instruction_sets,
    listed,
    strided,
)
from tests.hard.share import Share
from tests.hard.tally import Tally
from tests.kernels.list_checks import check_lists, outcome

CALLS = 880_000  # at full size; hostile and aliased calls and the modules make the rest of the million
CASES_A_BLOCK = 50
LOSS_TOLERANCE = (
    2e-6  # of losses and gradients, relative to the larger of 1 and themselves, or what they sum up
)
# Of the squares in l2 the reference takes mean labels first: of n summands this is the rounding.
UPDATE_TOLERANCE = 1e-6  # of updated rows, times (1 + 1 / shortest blended row)

NO_CALLS = ("gradient of", "reference")  # counted in the table, and not as calls

Result = tuple[str, bool, str]  # the operation, whether the result is right, the call in words
Random = np.random.Generator
Lists = Sequence[NeighborLists]  # of the memory: any, and symmetric ones


def attack(share: Share) -> Tally:
    """Blocks of cases, each block on one instruction set, until there are as many calls as the share has."""
    tally, done, block = Tally(), 0, share.part
    wanted, sets = share.count(CALLS), instruction_sets()
    while done < wanted:
        share.breadcrumb(f"fuzz block {block}")
        random = share.random(1, block)
        if sets:
            backends.select_instruction_set(sets[block // share.parts % len(sets)])
        for case in range(CASES_A_BLOCK):
            done += one_case(random, tally, f"seed {share.seed} block {block} case {case}")
            if done >= wanted:
                break
        block += share.parts
    return tally


def is_no_call(kind: str) -> bool:
    """Whether a row of the table counts something else than calls."""
    return kind.removeprefix("valid ").startswith(NO_CALLS)


def one_case(random: Random, tally: Tally, where: str) -> int:
    """All operations on one set of arguments; returns the number of calls."""
    x = draw(random)
    lists = [draw_lists(random, x.memory, symmetric) for symmetric in (False, True)]
    before, calls = fingerprint(x, lists), 0
    for operation in OPERATIONS:
        name = operation.__name__
        try:
            for name, right, words in operation(random, x, lists):
                tally.tried(f"valid {name}")
                calls += not name.startswith(NO_CALLS)
                if not right:
                    tally.failed(f"valid {name}", words, f"{where}, n, d, B {x.sizes}")
        except Exception as error:  # a call that should work
            calls += 1
            tally.tried(f"valid {name}")
            tally.failed(f"valid {name}", f"{type(error).__name__} {error}", f"{where}, n, d, B {x.sizes}")
        if fingerprint(x, lists) != before:
            tally.failed("argument changed by a valid call", operation.__name__, where)
            before = fingerprint(x, lists)
    return calls


def fingerprint(x: Arguments, lists: Lists) -> bytes:
    """The bytes of all tensors, to see whether a call has touched one."""
    tables = [table for made in lists for table in made if table is not None]
    return x.fingerprint() + b"".join(table.numpy().tobytes() for table in tables)


def orders(random: Random, batch: int) -> list[tuple[str, Tensor | slice]]:
    """The batch as it is, in another order, cut, and with repeats."""
    if batch == 0:
        return [("whole", slice(None))]
    shuffled = torch.from_numpy(random.permutation(batch))
    repeated = torch.from_numpy(random.integers(0, batch, batch + 2))
    cut = slice(int(random.integers(batch)), batch)
    return [("whole", slice(None)), ("shuffled", shuffled), ("cut", cut), ("repeated", repeated)]


def labels(random: Random, x: Arguments, _: Lists) -> Iterator[Result]:
    n = x.memory.shape[0]
    dense = reference.unpack_labels(x.row_bits, n)
    yield "pack_labels", equal(sk.pack_labels(dense), x.row_bits), ""
    yield "pack_labels", equal(sk.pack_labels(dense.t()), x.column_bits), "transposed"
    yield "unpack_labels", equal(sk.unpack_labels(x.row_bits, n), dense), ""
    wanted = torch.cat([x.index, x.index.new_tensor([-1])])
    expected = reference.gather_labels(x.row_bits, wanted)
    yield "gather_labels", equal(ops.gather_labels(x.row_bits, wanted), expected), "with -1"
    for said, order in orders(random, x.index.shape[0]):
        result = ops.gather_labels(x.row_bits, x.index[order])
        yield "gather_labels", equal(result, expected[:-1][order]), said
    rows, columns = x.row_bits.clone(), x.column_bits.clone()
    reference.write_labels_(rows, columns, x.index, x.labels[0])
    for _ in range(2):
        written = x.row_bits.clone(), x.column_bits.clone()
        ops.write_labels_(*written, x.index, x.labels[0])
        right = equal(written[0], rows) and equal(written[1], columns)
        yield "write_labels_", right, f"index {x.index.tolist()}"
    transposed = reference.pack_labels(reference.unpack_labels(rows, n).t())
    yield "write_labels_", equal(written[1], transposed), "transpose"


def products(random: Random, x: Arguments, _: Lists) -> Iterator[Result]:
    for said, order in orders(random, x.index.shape[0]):
        features = x.features[order]
        result = sk.memory_similarity(strided(random, features), x.memory)
        yield "memory_similarity", equal(result, x.similarity[order]), said
    k, floor = int(random.integers(1, 45)), (None, *THRESHOLDS)[random.integers(len(THRESHOLDS) + 1)]
    lowest = -torch.inf if floor is None else floor
    for symmetric in (False, True):
        found = sk.neighbor_lists(x.memory, k, floor=floor, symmetric=symmetric)
        yield (
            "neighbor_lists",
            same_lists(found, listed(x.memory, k, lowest, symmetric)),
            f"k {k} floor {floor}",
        )


def inquiries(lists: Lists) -> list[dict[str, Any]]:
    """The forms in which the similarities of the memory can be given; all lead to the same labels."""
    return [{}, *({"lists": made} for made in lists)]


def predictions(random: Random, x: Arguments, lists: Lists) -> Iterator[Result]:
    threshold = THRESHOLDS[random.integers(len(THRESHOLDS))]
    options = (threshold, MIN_RANKS[random.integers(len(MIN_RANKS))])
    for rows in (None, spoiled(random, x.similarity)):
        expected = reference.mplp(x.memory, x.index, *options, cache=x.cache, query_rows=rows)
        for form in inquiries(lists):
            for said, order in orders(random, x.index.shape[0]):
                given = {} if rows is None else {"query_rows": rows[order]}
                result = sk.mplp(x.memory, x.index[order], *options, **form, **given)
                words = f"{options} {list(form)} {list(given)} {said}"
                yield "mplp", equal(result, expected[order]), words


def spoiled(random: Random, similarity: Tensor) -> Tensor:
    """Similarities of which some are NaN or infinite."""
    if random.integers(3) or similarity.numel() == 0:
        return similarity
    similarity = similarity.clone()
    places = torch.from_numpy(random.integers(0, similarity.numel(), 3))
    similarity.view(-1)[places] = torch.tensor([torch.nan, torch.inf, -torch.inf])[
        torch.from_numpy(random.integers(0, 3, 3))
    ]
    return similarity


def neighbors(random: Random, x: Arguments, lists: Lists) -> Iterator[Result]:
    k = int((1, 1, 2, 5, 45)[random.integers(5)])
    for rows in (None, spoiled(random, x.similarity)):
        expected = reference.loop.nearest_neighbors(x.memory, x.index, k, cache=x.cache, query_rows=rows)
        for form in inquiries(lists):
            for said, order in orders(random, x.index.shape[0]):
                given = {} if rows is None else {"query_rows": rows[order]}
                result = sk.nearest_neighbors(x.memory, x.index[order], k, **form, **given)
                right = all(equal(a, b[order]) for a, b in zip(result, expected, strict=True))
                yield "nearest_neighbors", right, f"k {k} {list(form)} {list(given)} {said}"


def losses(random: Random, x: Arguments, _: Lists) -> Iterator[Result]:
    count = int(random.integers(1, 4))
    sets = list(x.labels[:count])
    weights = [float(w) for w in random.integers(0, 4, count) / 2]
    weights[int(random.integers(count))] += 0.5
    options = {
        "kind": ("mmcl", "mmcl", "l2")[random.integers(3)],
        "delta": float(random.integers(0, 6)),
        "hard_negative_ratio": float((0.0, 0.01, 0.05, 0.5, 1.0)[random.integers(5)]),
    }
    values = list(options.values())
    loss, slope = reference.mutual_label_loss_with_grad(x.similarity, sets, weights, *values)
    gradient = reference.memory_similarity_backward(slope, x.memory)
    summands = slope.abs() @ x.memory.abs()
    # A sum over n squares of up to (5.5)² rounds in proportion to its own size, which `close` takes as unit.
    batch = x.index.shape[0]
    for said, order in orders(random, batch)[:2]:
        ordered = [label[order] for label in sets]
        words = f"{options} {weights} {said}"
        similarity = x.similarity[order].clone().requires_grad_()
        result = sk.mutual_label_loss(similarity, ordered, weights, **options)
        yield "mutual_label_loss", close(result.detach(), loss, LOSS_TOLERANCE), words
        (found,) = torch.autograd.grad(result, similarity)
        yield "gradient of mutual_label_loss", close(found, slope[order], LOSS_TOLERANCE), words
        for given in ({}, {"similarity": x.similarity[order]}):
            features = x.features[order].clone().requires_grad_()
            result = sk.fused_mutual_label_loss(features, x.memory, ordered, weights, **given, **options)
            yield "fused_mutual_label_loss", close(result.detach(), loss, LOSS_TOLERANCE), words
            (found,) = torch.autograd.grad(result, features)
            right = close(found, gradient[order], LOSS_TOLERANCE, summands[order])
            yield "gradient of fused_mutual_label_loss", right, words


def updates(random: Random, x: Arguments, lists: Lists) -> Iterator[Result]:
    momentum = MOMENTA[random.integers(len(MOMENTA))]
    memory, cache = x.memory.clone(), x.cache.clone()
    reference.update_memory_(memory, x.index, x.features, momentum, cache=cache)
    shortest = shortest_blend(x, momentum)
    tolerance = UPDATE_TOLERANCE * (1 + 1 / shortest)
    exact = x.memory.double()
    reference.loop.update_memory_(exact, x.index, x.features.double(), momentum)
    right = close(memory, exact.float(), tolerance)
    yield "reference update_memory_", right, f"momentum {momentum} index {x.index.tolist()}"
    symmetric = lists[1], draw_lists(random, x.memory, symmetric=True)
    forms = [(None, False), *((made, given) for made in symmetric for given in (False, True))]
    for number, (made, with_similarity) in enumerate(forms):
        written, given = x.memory.clone(), {}
        if made is not None:
            kept = given["lists"] = copy_of(made)
        if with_similarity:
            given["similarity"] = strided(random, x.similarity)
        alpha = torch.tensor(momentum) if number % 2 else momentum
        sk.update_memory_(written, x.index, strided(random, x.features), alpha, **given)
        right = close(written, memory, tolerance)
        if made is not None:
            bounds = 4 * tolerance * cache.abs().clamp_min(1)
            right &= outcome(lambda kept=kept, bounds=bounds: check_lists(kept, cache, bounds))
        words = f"momentum {momentum} index {x.index.tolist()} {list(given)}"
        yield "update_memory_", right, words


def copy_of(lists: NeighborLists) -> NeighborLists:
    """The same lists in tables of their own."""
    return NeighborLists(*(None if table is None else table.clone() for table in lists))


def same_lists(found: NeighborLists, wanted: NeighborLists) -> bool:
    """Equal to the bit, with mirrors where there are some."""
    return all(one is other or equal(one, other) for one, other in zip(found, wanted, strict=True))


def shortest_blend(x: Arguments, momentum: float) -> float:
    """The shortest non-zero α m + (1 − α) f of the update: rounding is divided by it."""
    memory, shortest = x.memory.double(), 1.0
    for position, row in zip(x.index.tolist(), x.features.double(), strict=True):
        mixed = momentum * memory[position] + (1 - momentum) * row
        length = float(mixed.norm())
        if length > 1e-12:
            shortest = min(shortest, length)
        memory[position] = mixed / max(length, 1e-12)
    return shortest


OPERATIONS: tuple[Callable[[Random, Arguments, Lists], Iterator[Result]], ...] = (
    labels,
    products,
    predictions,
    neighbors,
    losses,
    updates,
)

"""Registration, tracing and argument checks of every operation."""

import pathlib
import re

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from torch.nn.functional import normalize
from torch.utils._pytree import tree_leaves

import snnet_kernels as sk
from snnet_kernels import ops, reference
from snnet_kernels.ops.operation import OPERATIONS
from snnet_kernels.testing import clustered_features
from tests.kernels.list_checks import symmetric_lists

N, D, B = 90, 12, 5


def arguments() -> dict[str, tuple]:
    memory = clustered_features(N, D)
    index = torch.tensor([3, 80, 3, 41, 0])
    features = clustered_features(B, D, seed=1)
    labels = sk.pack_labels(torch.rand(B, N, generator=torch.Generator().manual_seed(0)) < 0.1)
    similarity = features @ memory.t()
    bits = sk.PseudoLabelMemory(N)
    loss = ([labels, labels.flip(0).contiguous()], [1.0, 0.5], "mmcl", 5.0, 0.05)
    differentiable = features.clone().requires_grad_()
    lists = reference.symmetric_lists(reference.neighbor_lists(memory, 10), 20)
    nearest = reference.neighbor_lists(memory, 6).columns
    means = nearest[:, :2].contiguous()
    tables = sk.PseudoLabelMemory(N, storage="lists").tables
    shard = [table[30:].clone() for table in lists[:4]]
    pairs = (torch.tensor([0, 0, 59]), torch.tensor([0, 31, 7]), torch.tensor([0.9, 0.1, 0.5]))
    negatives = reference.largest_negatives(similarity, loss[0], torch.arange(B), 512, 7)
    candidates = (
        torch.tensor([[31, 80], [5, 89], [77, -1]]).int(),
        torch.tensor([31, 5, 77]).int(),
        torch.tensor([4, 2, 80]).int(),
    )
    return {
        "pack_labels": (torch.rand(B, N) < 0.3,),
        "unpack_labels": (labels, N),
        "write_labels_": (bits.row_bits, bits.column_bits, index, labels),
        "gather_labels": (bits.row_bits, torch.tensor([5, -1, 89])),
        "gather_label_lists": (*tables._table("row")[:3], torch.tensor([5, -1, 89]), 90),
        "gather_list_entries": (*tables._table("row")[:3], index),
        "write_label_lists_": (*tables._table("row"), *tables._table("column"), index, labels),
        "checksums": (memory.view(torch.int64), index, torch.arange(D // 2)),
        "checksums_match": (memory.view(torch.int64), index, torch.arange(D // 2), torch.arange(N)),
        "memory_similarity": (differentiable, memory),
        "memory_similarity_backward": (similarity.clone().requires_grad_(), memory),
        "mplp": (memory, index, similarity, 0.6, 10),
        "nearest_neighbors": (memory, index, similarity, 3),
        "mutual_label_loss": (similarity.clone().requires_grad_(), *loss),
        "fused_mutual_label_loss": (differentiable, memory, None, *loss),
        "update_memory_": (memory, index, features, torch.tensor(0.3)),
        "neighbor_lists": (memory, 10, 0.2),
        "symmetric_lists": (*reference.neighbor_lists(memory, 10)[:4], 20),
        "mplp_from_lists": (memory, index, *lists[:4], None, 0.6, 10),
        "nearest_from_lists": (memory, index, *lists[:4], 3),
        "update_memory_lists_": (memory, index, features, torch.tensor(0.3), *lists, None),
        "update_memory_by_hardest_": (memory, index, features, torch.tensor(0.3)),
        "jaccard_pairs": (memory, nearest, nearest.flip(0).contiguous(), 3, torch.ones(N), means, 0.7),
        "divided_samples": (index, torch.tensor([40, 90])),
        "listed_candidates": (*shard, torch.tensor([3, 50, 3]), 30, 0.4, 22),
        "listed_verdicts": (*shard, 30, N, *candidates, 10),
        "walk_candidates_": (
            torch.tensor([0, 1, 0]),
            torch.tensor([3, 2, 2]),
            torch.zeros(2, 3, 2, dtype=torch.int8),
            candidates[0],
            index[2:],
            True,
        ),
        "own_label_sets": (
            torch.tensor([0, 4, 4]),
            torch.tensor([35, 7, 89]),
            index % 2,
            torch.tensor([1, 0, 0, 2, 0]).int(),
            torch.tensor([[31, 4, 0], [60, 0, 0]]).int(),
            labels[:, :16].contiguous(),
            torch.ones(2, B).int(),
            30,
            60,
        ),
        "blended_rows": (
            memory[30:],
            30,
            shard[0].clamp_min(0),
            shard[3],
            torch.tensor([33, 80, 3]),
            features[:3],
            torch.tensor(0.3),
            4,
        ),
        "follow_moved_rows_": (
            memory[30:].clone(),
            *shard,
            30,
            features[:2] @ memory[30:].t(),
            reference.blended_rows(
                memory, 0, *lists[:4:3], torch.tensor([3, 80]), features[:2], torch.tensor(0.3), 2
            )[:, None],
            torch.tensor([3, 80]),
            torch.tensor([0, 1]),
            torch.tensor(0.3),
            3,
        ),
        "moved_pairs": (
            torch.tensor([[1, 0, 0, 31, 0, 0, 0], [0, 2, 0, 31, 0, 32, 0]]).int(),
            torch.empty(0, 2).int(),
            torch.tensor([3, 80]),
            torch.tensor([0, 1]),
            1,
            30,
            9,
        ),
        "insert_pairs_": (*shard, *pairs),
        "remove_pairs_": (*shard, *pairs),
        "largest_negatives": (similarity, loss[0], torch.arange(B), 512, 7),
        "hard_negative_bars": (
            negatives[None],
            torch.tensor([[1, 3], [2, 0], [9, 1], [4, 4], [0, 90]]),
            N,
            0.05,
        ),
        "own_columns_loss": (
            similarity,
            memory,
            loss[0],
            torch.arange(B),
            negatives,
            512,
            torch.zeros(B, 2, dtype=torch.int64),
            torch.ones(B, 2, dtype=torch.int64),
            [1.0, 0.5],
            5.0,
            N,
            0.05,
        ),
        "blend_jaccard_": (memory[:B] @ memory[B:].t(), memory, nearest, 3, torch.ones(N), means, 0.3),
    }


@pytest.mark.parametrize("name", OPERATIONS)
def test_opcheck(name):
    result = torch.library.opcheck(getattr(torch.ops.snnet, name).default, arguments()[name])
    assert set(result.values()) == {"SUCCESS"}


ANY_STRIDES = {"features", "similarity", "query_rows", "grad", "index"}
# All but those whose callers make contiguous arguments.
OF_ANY_STRIDES = [
    name
    for name in OPERATIONS
    if ANY_STRIDES & {argument.name for argument in getattr(torch.ops.snnet, name).default._schema.arguments}
    and name
    not in ("blend_jaccard_", "blended_rows", "follow_moved_rows_", "moved_pairs", "walk_candidates_")
]


def strided(name: str) -> list:
    """The arguments of an operation: matrices of any strides by columns, indices with gaps."""
    similarity = arguments()["mplp"][2]
    given = []
    schema = getattr(torch.ops.snnet, name).default._schema
    for argument, value in zip(schema.arguments, arguments()[name], strict=True):
        tensor = similarity if value is None else value  # the one that may be left out
        if argument.name not in ANY_STRIDES:
            given.append(value)
        elif tensor.dim() == 1:
            given.append(torch.stack([tensor, tensor], 1)[:, 0])
        else:
            given.append(tensor.detach().t().contiguous().t().requires_grad_(tensor.requires_grad))
    return given


@pytest.mark.parametrize("name", OF_ANY_STRIDES)
def test_opcheck_of_any_strides(name):
    operation = getattr(torch.ops.snnet, name).default
    result = torch.library.opcheck(operation, tuple(strided(name)))
    assert set(result.values()) == {"SUCCESS"}
    results = operation(*strided(name)), OPERATIONS[name].plain(*strided(name))
    served, plain = ((made,) if isinstance(made, torch.Tensor) else made or () for made in results)
    assert [made.stride() for made in served] == [made.stride() for made in plain]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("form", ["plain", "served"])
def test_defaults_of_torch_change_nothing(name, form):
    """Neither the default dtype nor the default device: results, and what is written."""
    call = OPERATIONS[name].plain if form == "plain" else getattr(torch.ops.snnet, name).default

    def tensors(dtype: torch.dtype, device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        given = arguments()[name]
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                made = call(*given)
        finally:
            torch.set_default_dtype(torch.float32)
        return [leaf for leaf in tree_leaves((given, made)) if isinstance(leaf, torch.Tensor)]

    expected = tensors(torch.float32, "cpu")
    for dtype, device in ((torch.float64, "cpu"), (torch.float32, "meta")):
        torch.testing.assert_close(tensors(dtype, device), expected, rtol=0, atol=0, equal_nan=True)


def test_first_derivatives_of_the_similarity():
    features, memory = clustered_features(4, 6, seed=1).requires_grad_(), clustered_features(9, 6)
    weights = torch.rand(4, 9)
    (gradient,) = torch.autograd.grad((sk.memory_similarity(features, memory) * weights).sum(), features)
    assert (gradient - weights @ memory).abs().max() < 1e-6


def iteration(features, memory, lists, index, row_bits, column_bits, momentum):
    similarity = sk.memory_similarity(features, memory)
    labels = sk.mplp(memory, index, lists=lists)
    neighbor, _ = sk.nearest_neighbors(memory, index, lists=lists)
    sets = [labels, ops.gather_labels(column_bits, index), ops.gather_labels(row_bits, neighbor[:, 0])]
    ops.write_labels_(row_bits, column_bits, index, labels)
    loss = sk.mutual_label_loss(similarity, sets, [1.0, 0.8, 0.6])
    fused = sk.fused_mutual_label_loss(features, memory, sets, [1.0, 0.8, 0.6], similarity=similarity)
    return loss + fused, labels


def update(features, memory, lists, index, momentum):
    sk.update_memory_(memory, index, features, momentum, lists=lists)


def test_compiled_iteration_equals_eager_and_does_not_recompile():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(iteration, backend=counter, fullgraph=True)
    compiled_update = torch.compile(update, backend=counter, fullgraph=True)
    states = []
    for forward, write in ((iteration, update), (compiled, compiled_update)):
        memory = clustered_features(N, D)
        lists, bits = symmetric_lists(memory, 40), sk.PseudoLabelMemory(N)
        for step in range(4):
            index = torch.arange(step * 7, step * 7 + B)
            features = clustered_features(B, D, seed=step).requires_grad_()
            loss, labels = forward(features, memory, lists, index, bits.row_bits, bits.column_bits, None)
            loss.backward()
            write(features.detach(), memory, lists, index, torch.tensor(0.1 * step))
        states.append((loss.detach(), labels, features.grad, memory, *lists, bits.row_bits, bits.column_bits))
    assert counter.frame_count == 2  # one graph each, whatever the step
    for eager, traced in zip(*states, strict=True):
        assert torch.equal(eager, traced)


def test_forms_of_input():
    """Strided and bf16 features are taken to float32."""
    memory = clustered_features(N, D)
    wide = clustered_features(B, 2 * D, seed=3)
    strided = wide[:, ::2]
    assert torch.equal(
        sk.memory_similarity(strided, memory), sk.memory_similarity(strided.contiguous(), memory)
    )
    low = normalize(strided, dim=1).bfloat16()
    assert torch.equal(sk.memory_similarity(low, memory), sk.memory_similarity(low.float(), memory))


def test_numbers_of_numpy():
    memory = clustered_features(N, D)
    index, labels = torch.arange(3), [sk.pack_labels(torch.eye(N, dtype=torch.bool)[:3])]
    assert torch.equal(sk.mplp(memory, index, np.float32(0.5), np.int64(10)), sk.mplp(memory, index, 0.5, 10))
    assert sk.nearest_neighbors(memory, index, np.int32(2))[0].shape == (3, 2)
    expected = sk.mutual_label_loss(memory[:3] @ memory.t(), labels, [0.5], delta=2.0)
    assert torch.equal(
        sk.mutual_label_loss(memory[:3] @ memory.t(), labels, [np.float64(0.5)], delta=np.float32(2)),
        expected,
    )
    assert sk.label_bytes(np.int64(129)) == 32
    head = sk.SNNetHead(np.int64(N), np.int64(D), threshold=np.float32(0.5))
    assert (head.num_instances, head.threshold) == (N, 0.5) and type(head.num_instances) is int


MEMORY, INDEX = clustered_features(N, D), torch.tensor([1, 2])
LABELS = torch.zeros(2, 16, dtype=torch.uint8)
SIMILARITY, FEATURES = torch.zeros(2, N), torch.zeros(2, D)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: sk.mplp(MEMORY.double(), INDEX),
            TypeError,
            "memory must be torch.float32, got torch.float64",
        ),
        (lambda: sk.mplp(MEMORY.t(), INDEX), ValueError, "memory must be contiguous"),
        (lambda: sk.mplp(MEMORY[0], INDEX), ValueError, r"memory must have 2 dimensions \[n, d\]"),
        (lambda: sk.mplp(MEMORY, [1, 2]), TypeError, r"index must be a tensor \[B\], got list"),
        (lambda: sk.mplp(MEMORY, INDEX.int()), TypeError, "index must be torch.int64"),
        (lambda: sk.mplp(MEMORY, INDEX + 90), ValueError, r"index must lie in \[0, 90\), got 92"),
        (lambda: sk.mplp(MEMORY, INDEX - 3), ValueError, r"index must lie in \[0, 90\), got -2"),
        (
            lambda: sk.mplp(MEMORY, INDEX, query_rows=FEATURES),
            ValueError,
            r"query_rows must have shape \[2, 90\]",
        ),
        (lambda: sk.mplp(MEMORY, INDEX, float("nan")), ValueError, "threshold must be finite"),
        (lambda: sk.mplp(MEMORY, INDEX, 0.6, 1.5), TypeError, "min_rank must be an integer, got float"),
        (lambda: sk.mplp(MEMORY, INDEX, 0.6, 2**70), ValueError, r"min_rank must be below 2\^31"),
        (lambda: sk.nearest_neighbors(MEMORY, INDEX, 2**62), ValueError, r"k must be below 2\^31"),
        (lambda: sk.nearest_neighbors(MEMORY, INDEX, 0), ValueError, "k must be an integer of at least 1"),
        (lambda: sk.memory_similarity(MEMORY.int(), MEMORY), TypeError, "features must be a floating point"),
        (lambda: sk.memory_similarity(SIMILARITY, MEMORY), ValueError, r"features must have shape \[B, 12\]"),
        (
            lambda: sk.memory_similarity(FEATURES, MEMORY.clone().requires_grad_()),
            ValueError,
            "memory must not require grad",
        ),
        (lambda: sk.mutual_label_loss(SIMILARITY, LABELS, [1.0]), TypeError, "labels must be a sequence"),
        (
            lambda: sk.mutual_label_loss(SIMILARITY, [LABELS], [1.0, 2.0]),
            ValueError,
            "the same length, got 1 and 2",
        ),
        (lambda: sk.mutual_label_loss(SIMILARITY, [LABELS], [0.0]), ValueError, "not all zero"),
        (lambda: sk.mutual_label_loss(SIMILARITY, [LABELS], [-1.0]), ValueError, "none negative"),
        (
            lambda: sk.mutual_label_loss(SIMILARITY, [LABELS, LABELS], [1e308, 1e308]),
            ValueError,
            r"weights must be finite, also their sum, none negative and not all zero, got \[1e\+308, 1e\+308\]",
        ),
        (lambda: sk.mutual_label_loss(SIMILARITY, [LABELS[:, :8]], [1.0]), ValueError, r"labels\[0\] must"),
        (lambda: sk.mutual_label_loss(SIMILARITY, [LABELS], [1.0], kind="l1"), ValueError, "kind must be"),
        (
            lambda: sk.mutual_label_loss(SIMILARITY, [LABELS], [1.0], hard_negative_ratio=2.0),
            ValueError,
            "hard_negative_ratio must lie",
        ),
        (
            lambda: sk.update_memory_(MEMORY, INDEX, MEMORY, 0.5),
            ValueError,
            "index must have 90 entries, got 2",
        ),
        (lambda: sk.update_memory_(MEMORY, INDEX, FEATURES, "a"), TypeError, "momentum must be a number"),
        (
            lambda: sk.mutual_label_loss(SIMILARITY, [LABELS], ["a"]),
            TypeError,
            r"weights\[0\] must be a number, got str",
        ),
        (
            lambda: sk.mutual_label_loss(SIMILARITY, [LABELS], [1.0], delta="5"),
            TypeError,
            "delta must be a number, got str",
        ),
        (
            lambda: sk.mutual_label_loss(SIMILARITY, [LABELS], [1.0], delta=1e300),
            ValueError,
            r"delta must be finite and not negative as a float32, got 1e\+300",
        ),
        (
            lambda: sk.mutual_label_loss(SIMILARITY, [LABELS], [1.0], hard_negative_ratio=None),
            TypeError,
            "hard_negative_ratio must be a number, got NoneType",
        ),
        (lambda: sk.SNNetHead(10.0, 4), TypeError, "num_instances must be an integer, got float"),
        (
            lambda: sk.ExemplarMemory(4, 4, neighbors=-1),
            ValueError,
            "neighbors must be an integer of at least 0",
        ),
        (lambda: sk.ExemplarMemory(4, 4, floor="0"), TypeError, "floor must be a number, got str"),
        (lambda: sk.mplp(MEMORY, INDEX, "a"), TypeError, "threshold must be a number"),
        (lambda: sk.unpack_labels(LABELS, 2.0), TypeError, "n must be an integer"),
        (
            lambda: sk.PseudoLabelMemory(N).rows(INDEX - 4),
            ValueError,
            r"index must lie in \[-1, 90\), got -3",
        ),
        (lambda: sk.pack_labels(LABELS), TypeError, "labels must be torch.bool"),
        (lambda: sk.unpack_labels(LABELS, 300), ValueError, r"labels must have shape \[B, 48\]"),
        (lambda: sk.label_bytes(-1), ValueError, "n must be an integer of at least 0"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


LISTS = symmetric_lists(MEMORY, 20)
OTHERS = symmetric_lists(MEMORY[:50].contiguous(), 20)


@pytest.mark.parametrize(("lists", "error", "message"), [
    (MEMORY @ MEMORY.t(), TypeError, r"lists must be NeighborLists \(see neighbor_lists\), got Tensor"),
    (OTHERS, ValueError, r"lists.columns must have shape \[90, 20\], got \[50, 20\]"),
    (LISTS._replace(values=LISTS.values[:, :9]), ValueError, r"lists.values must have shape \[90, 20\], got \[90, 9\]"),
    (LISTS._replace(counts=LISTS.counts[:9]), ValueError, r"lists.counts must have shape \[90\], got \[9\]"),
    (LISTS._replace(columns=LISTS.columns.long()), TypeError, "lists.columns must be torch.int32, got torch.int64"),
    (LISTS._replace(floors=LISTS.floors.double()), TypeError, "lists.floors must be torch.float32, got torch.float64"),
    (LISTS._replace(columns=LISTS.columns.t()), ValueError, r"lists.columns must have shape \[90, 90\], got"),
    (LISTS._replace(columns=LISTS.columns[:, :0]), ValueError, "lists.columns must have at least one place a row"),
    (LISTS._replace(columns=LISTS.columns[0]), ValueError, r"lists.columns must have 2 dimensions \[n, K\]"),
    (LISTS._replace(columns=None), TypeError, r"lists.columns must be a tensor \[n, K\], got NoneType"),
    (LISTS._replace(counts=[1, 2]), TypeError, r"lists.counts must be a tensor \[90\], got list"),
    (LISTS._replace(floors=LISTS.floors.to_sparse()), TypeError, "lists.floors must be a dense tensor"),
    (LISTS._replace(values=LISTS.values.to("meta")), ValueError, "lists.values must be on the device of memory"),
    (LISTS._replace(values=LISTS.values.t().contiguous().t()), ValueError, "lists.values must be contiguous"),
])  # fmt: skip
def test_lists_of_something_else_are_named_and_nothing_is_written(lists, error, message):
    memory = MEMORY.clone()
    for call in (
        lambda: sk.mplp(memory, INDEX, lists=lists),
        lambda: sk.nearest_neighbors(memory, INDEX, lists=lists),
        lambda: sk.update_memory_(memory, INDEX, FEATURES, 0.5, lists=lists),
    ):
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(ValueError, match="lists must be symmetric to follow an update"):
        sk.update_memory_(memory, INDEX, FEATURES, 0.5, lists=sk.neighbor_lists(memory, 5))
    assert torch.equal(memory, MEMORY)


def test_traced_calls_check_values_too():
    compiled = torch.compile(
        lambda memory, index: sk.mplp(memory, index), fullgraph=True, backend="aot_eager"
    )
    # The compiled library's ValueError becomes a RuntimeError from torch 2.15 on.
    with pytest.raises((ValueError, RuntimeError), match=r"index must lie in \[0, 90\), got 92"):
        compiled(MEMORY, INDEX + 90)


def test_writing_what_autograd_still_needs_is_noticed():
    memory = MEMORY.clone()
    features = FEATURES.clone().requires_grad_()
    loss = sk.memory_similarity(features, memory).sum()
    sk.update_memory_(memory, INDEX, normalize(FEATURES + 1, dim=1), 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_every_write_is_counted_once():
    """A version counter that stands still would let a stale similarity pass for a current one."""
    memory, bits = MEMORY.clone(), sk.PseudoLabelMemory(N)
    lists = symmetric_lists(memory, 40)
    written = (memory, *lists, bits.row_bits, bits.column_bits)
    before = [tensor._version for tensor in written]
    sk.update_memory_(memory, INDEX, FEATURES, 0.5, lists=lists)
    bits.write_(INDEX, LABELS)
    assert [tensor._version for tensor in written] == [version + 1 for version in before]
    with torch.inference_mode():
        sk.update_memory_(MEMORY.clone(), INDEX, FEATURES, 0.5)  # such tensors have no counter


@pytest.mark.parametrize(
    "write",
    [
        lambda memory, bits, index: sk.update_memory_(memory, index, FEATURES, 0.5),
        lambda memory, bits, index: ops.update_memory_by_hardest_(memory, index, FEATURES, 0.5),
        lambda memory, bits, index: bits.write_(index, LABELS),
        lambda memory, bits, index: ops.write_labels_(bits.row_bits, bits.column_bits, index, LABELS),
    ],
)
def test_a_refused_write_is_not_counted(write):
    memory, bits = MEMORY.clone(), sk.PseudoLabelMemory(N)
    before = [tensor._version for tensor in (memory, bits.row_bits, bits.column_bits)]
    with pytest.raises(ValueError, match=r"index must lie in \[0, 90\), got 9"):
        write(memory, bits, INDEX + 90)
    assert [tensor._version for tensor in (memory, bits.row_bits, bits.column_bits)] == before


def test_nothing_but_the_operations_imports_the_reference():
    """An error in code that they shared would show in no test; an operation only calls its plain form there."""
    package = pathlib.Path(sk.__file__).parent
    lines = {
        (path.relative_to(package).parts[0], line.strip())
        for path in package.rglob("*.py")
        for line in re.findall(
            r"^ *(?:from|import) .*\breference\b.*", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert {part for part, _ in lines} == {"__init__.py", "ops"}
    assert all(line.startswith("from .. import ") for part, line in lines if part == "ops")


def test_reference_is_checked_nowhere_and_equal():
    assert torch.equal(reference.mplp(MEMORY, INDEX), sk.mplp(MEMORY, INDEX))

"""Tensors of other layouts, values and places than the operations take: one error, before anything is written."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import compat, ops, reference
from snnet_kernels.testing import clustered_features
from tests.kernels.list_checks import symmetric_lists

N, D, B = 40, 8, 3
MEMORY, INDEX = clustered_features(N, D), torch.tensor([1, 5, 9])
ROWS, FEATURES = MEMORY[:B] @ MEMORY.t(), clustered_features(B, D, seed=1)
LISTED = {f"lists.{name}": table for name, table in symmetric_lists(MEMORY, 20)._asdict().items()}
LABELS = reference.pack_labels(torch.rand(B, N, generator=torch.Generator().manual_seed(0)) < 0.2)
MOMENTUM = torch.tensor(0.5)
HEAD = sk.SNNetHead(N, D)
HEAD.initialize_(MEMORY)
HEAD.eval()


def nested(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor(list(tensor))


FORMS = {
    "torch.sparse_coo": torch.Tensor.to_sparse,
    "torch.sparse_csr": torch.Tensor.to_sparse_csr,
    "torch._mkldnn": torch.Tensor.to_mkldnn,
    "nested": nested,
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
}
# operation -> its tensors by name
CALLS = {
    "memory_similarity": (sk.memory_similarity, {"features": FEATURES, "memory": MEMORY}),
    "neighbor_lists": (sk.neighbor_lists, {"features": MEMORY}),
    "mplp": (sk.mplp, {"memory": MEMORY, "index": INDEX, "query_rows": ROWS, **LISTED}),
    "nearest_neighbors": (
        sk.nearest_neighbors,
        {"memory": MEMORY, "index": INDEX, "query_rows": ROWS, **LISTED},
    ),
    "update_memory_": (
        sk.update_memory_,
        {
            "memory": MEMORY,
            "index": INDEX,
            "features": FEATURES,
            "momentum": MOMENTUM,
            "similarity": ROWS,
            **LISTED,
        },
    ),
    "pack_labels": (sk.pack_labels, {"labels": LABELS > 0}),
    "unpack_labels": (lambda labels: sk.unpack_labels(labels, N), {"labels": LABELS}),
    "gather_labels": (ops.gather_labels, {"bits": sk.PseudoLabelMemory(N).row_bits, "index": INDEX}),
    "write_labels_": (
        ops.write_labels_,
        {
            "row_bits": sk.PseudoLabelMemory(N).row_bits,
            "column_bits": sk.PseudoLabelMemory(N).column_bits,
            "index": INDEX,
            "labels": LABELS,
        },
    ),
    "mutual_label_loss": (
        lambda similarity, label: sk.mutual_label_loss(similarity, [label], [1.0]),
        {"similarity": ROWS, "labels[0]": LABELS},
    ),
    "fused_mutual_label_loss": (
        lambda features, memory, label, similarity: sk.fused_mutual_label_loss(
            features, memory, [label], [1.0], similarity=similarity
        ),
        {"features": FEATURES, "memory": MEMORY, "labels[0]": LABELS, "similarity": ROWS},
    ),
}


def of_memory(neighbors):
    memory = sk.ExemplarMemory(N, D, neighbors=neighbors)
    memory.initialize_(MEMORY)
    memory.build_lists_()
    asked = {"index": INDEX, "query_rows": ROWS}
    return {
        "predict_labels": (lambda index, rows: memory.predict_labels(index, query_rows=rows), asked),
        "nearest": (lambda index, rows: memory.nearest(index, query_rows=rows), asked),
        "nearest of lists": (memory.nearest, {"index": INDEX}),
        "update_": (
            lambda index, features, momentum, rows: memory.update_(
                index, features, momentum, similarity=rows
            ),
            {"index": INDEX, "features": FEATURES, "momentum": MOMENTUM, "similarity": ROWS},
        ),
    }


def of_labels(storage):
    labels = sk.PseudoLabelMemory(N, storage=storage)
    return {
        "rows": (labels.rows, {"index": INDEX}),
        "columns": (labels.columns, {"index": INDEX}),
        "write_": (labels.write_, {"index": INDEX, "labels": LABELS}),
    }


OF_MODULES = {
    f"{method} ({form})": made
    for form, calls in {
        "lists": of_memory(20),
        "no lists": of_memory(0),
        "bits": of_labels("bits"),
        "lists of labels": of_labels("lists"),
    }.items()
    for method, made in calls.items()
}
CALLS |= OF_MODULES


def call(operation, tensors):
    named = {name: tensor for name, tensor in tensors.items() if name in ("query_rows", "similarity")}
    parts = {name.removeprefix("lists."): tensor for name, tensor in tensors.items() if "lists." in name}
    if not parts:
        return operation(*tensors.values())
    plain = [tensor for name, tensor in tensors.items() if name not in named and "lists." not in name]
    return operation(*plain, lists=sk.NeighborLists(**parts), **named)


@pytest.mark.filterwarnings("ignore")  # torch says that these layouts are prototypes
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CALLS)
def test_other_layouts_are_named_and_nothing_is_written(name, form):
    operation, tensors = CALLS[name]
    tried = 0
    for argument, tensor in tensors.items():
        own = {key: value.clone() for key, value in tensors.items()}
        before = {key: value.clone() for key, value in own.items()}
        try:
            own[argument] = FORMS[form](tensor)
        except (RuntimeError, TypeError, IndexError):  # torch has no such tensor of this shape or type
            continue
        with pytest.raises(TypeError) as raised:
            call(operation, own)
        assert str(raised.value).startswith(f"{argument} must be a dense tensor [")
        assert str(raised.value).endswith(f"got a {form} one")
        assert all(torch.equal(own[key], before[key]) for key in own if key != argument)
        tried += 1
    assert tried or form in ("torch.sparse_csr", "torch._mkldnn")


@pytest.mark.parametrize("name", CALLS)
def test_a_meta_tensor_among_others_is_named_and_nothing_is_written(name):
    operation, tensors = CALLS[name]
    for argument in tensors if len(tensors) > 1 or name in OF_MODULES else ():
        own = {key: value.clone() for key, value in tensors.items()}
        before = {key: value.clone() for key, value in own.items()}
        own[argument] = tensors[argument].to("meta")
        with pytest.raises(ValueError, match="meta"):
            call(operation, own)
        assert all(torch.equal(own[key], before[key]) for key in own if key != argument)


@pytest.mark.filterwarnings("ignore")
def test_values_that_are_not_computed_yet_are_named():
    index, features = torch.tensor([0]), torch.eye(4)[:1]
    for memory in (torch._neg_view(torch.eye(4)), torch._efficientzerotensor(4, 4)):
        with pytest.raises(TypeError, match=r"memory must be a dense tensor .* not computed yet"):
            sk.update_memory_(memory, index, features, 0.5)


def test_modules_name_other_layouts_before_they_write():
    head = sk.SNNetHead(N, D)
    head.initialize_(MEMORY)
    before = {name: buffer.clone() for name, buffer in head.named_buffers()}
    sparse = FEATURES.to_sparse()
    for name, wrong in {
        "features": lambda: head(sparse, INDEX),
        "index": lambda: head(FEATURES, INDEX.to_sparse()),
        "labels": lambda: head.pseudo_labels.write_(INDEX, LABELS.to_sparse()),
        "query_rows": lambda: head.memory.predict_labels(INDEX, query_rows=ROWS.to_sparse()),
        "momentum": lambda: head.memory.update_(INDEX, FEATURES, MOMENTUM.to_sparse()),
        "memory": lambda: compat.MPLP().predict(MEMORY.to_sparse(), INDEX),
    }.items():
        with pytest.raises(TypeError, match=f"{name} must be a dense tensor"):
            wrong()
    with pytest.raises(TypeError, match="features must be a dense tensor"):
        head.initialize_(MEMORY.to_sparse())
    assert all(torch.equal(before[name], buffer) for name, buffer in head.named_buffers() if name in before)


PACKED = {"compiled": sk.pack_labels, "reference": reference.pack_labels}


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_a_flag_is_set_whatever_its_byte(pack, request):
    bytes_ = torch.randint(0, 4, (5, 61), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pack(bytes_.view(torch.bool)), reference.pack_labels(bytes_ > 0))
    assert pack(bytes_.view(torch.bool))[:, 8:].sum() == 0


def with_tail(labels: torch.Tensor) -> torch.Tensor:
    """The same labels with every bit past n set."""
    tail = ~reference.pack_labels(torch.ones(1, N, dtype=torch.bool))
    return labels | tail


LOSSES = {"compiled": sk.mutual_label_loss, "reference": reference.mutual_label_loss}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("kind", ["mmcl", "l2"])
def test_bits_past_the_last_column_count_nowhere(loss, kind):
    sets, tails = [LABELS, LABELS.flip(0)], [with_tail(LABELS), LABELS.flip(0)]
    expected = loss(ROWS, [y.contiguous() for y in sets], [1.0, 0.5], kind=kind)
    assert torch.equal(loss(ROWS, [y.contiguous() for y in tails], [1.0, 0.5], kind=kind), expected)
    assert torch.equal(sk.unpack_labels(with_tail(LABELS), N), sk.unpack_labels(LABELS, N))


NEAREST = {
    "compiled": sk.nearest_neighbors,
    "reference": reference.nearest_neighbors,
    "loop": reference.loop.nearest_neighbors,
}


@pytest.mark.parametrize("nearest", NEAREST.values(), ids=NEAREST)
@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_the_image_itself_is_no_neighbor_where_others_are_infinitely_far(nearest, k):
    rows = torch.full((2, 5), -torch.inf)
    rows[1, 2], rows[0, 4] = 0.5, torch.nan
    index, similarity = nearest(MEMORY[:5].contiguous(), torch.tensor([0, 1]), k, query_rows=rows)
    expected = torch.tensor([[4, 1, 2, 3, -1, -1, -1], [2, 0, 3, 4, -1, -1, -1]])[:, :k]
    assert torch.equal(index, expected)
    assert similarity[1].tolist() == [0.5, *[-torch.inf] * 6][:k] and similarity[0, 0].isnan()


def test_neighbors_beyond_reason_are_refused():
    index, similarity = sk.nearest_neighbors(MEMORY, INDEX, N + 65_536)
    assert (index[:, N - 1 :] == -1).all() and similarity.shape == (B, N + 65_536)
    with pytest.raises(ValueError, match=r"k must be at most n [+] 65536 = 65576, got 2147483646"):
        sk.nearest_neighbors(MEMORY, INDEX, 2**31 - 2)


def test_fake_tensors_have_no_values_to_check():
    with FakeTensorMode() as mode:
        memory, index = mode.from_tensor(MEMORY), mode.from_tensor(INDEX)
        assert sk.mplp(memory, index).shape == (B, 16)
        sk.update_memory_(memory, index, mode.from_tensor(FEATURES), mode.from_tensor(MOMENTUM))
        assert sk.nearest_neighbors(memory, index, 2)[0].shape == (B, 2)
        head = sk.SNNetHead(N, D)
        assert head(mode.from_tensor(FEATURES), index).shape == ()
        head.update_(index, mode.from_tensor(FEATURES))


@pytest.mark.parametrize(
    "loss",
    [
        lambda t: sk.memory_similarity(t[:, :D], MEMORY).sum(),
        lambda t: sk.mutual_label_loss(t, [LABELS], [1.0]),
        lambda t: sk.fused_mutual_label_loss(t[:, :D], MEMORY, [LABELS], [1.0]),
        lambda t: HEAD(normalize(t[:, :D]), INDEX),
    ],
    ids=["similarity", "loss", "fused", "head"],
)
def test_forward_mode_derivatives_and_transforms_are_refused(loss):
    primal, tangent = ROWS, torch.ones(B, N)
    remedy = r"for which no derivative is defined: use backward\(\) or torch.autograd.grad"
    for transform in (
        torch.func.grad,
        torch.func.jacrev,
        lambda f: lambda x: torch.func.vjp(f, x),
        lambda f: lambda x: torch.func.jvp(f, (x,), (tangent,)),
    ):
        found = r"(has a forward-mode tangent|is transformed) .*torch.func"
        with pytest.raises(NotImplementedError, match=f"{found}.*, {remedy}"):
            transform(loss)(primal)
    with torch.autograd.forward_ad.dual_level():
        assert torch.isfinite(loss(primal))  # without a tangent there is nothing to lose
        with pytest.raises(NotImplementedError, match="has a forward-mode tangent"):
            loss(torch.autograd.forward_ad.make_dual(primal, tangent))
    live = primal.clone().requires_grad_()
    loss(live).backward()
    assert live.grad.abs().sum() > 0


# What is only read may lie in what is written; what is written lies alone.
MANY = clustered_features(300, 32)
MANY_LABELS = sk.mplp(MANY, torch.arange(300), 0.4)


def for_update(index):
    memory = MANY.clone()
    return memory, index, memory[4 : 4 + len(index)], memory[0, 0].abs_()


def for_update_of_lists(index):
    """Lists are whole rows: they may stand for similarities."""
    update = for_update(index)
    lists = symmetric_lists(update[0], len(MANY))
    return *update, *lists, lists.values[4 : 4 + len(index)]


def for_labels(index):
    rows = MANY_LABELS.clone()
    columns = sk.pack_labels(sk.unpack_labels(rows, len(MANY)).t())
    at = rows[100, : 8 * len(index)].view(torch.int64).remainder_(len(MANY))
    return rows, columns, at, rows[2 : 2 + len(index)]


def update_of_lists(memory, index, features, momentum, *tables_and_similarity):
    *tables, similarity = tables_and_similarity
    lists = sk.NeighborLists(*tables)
    sk.update_memory_(memory, index, features, momentum, lists=lists, similarity=similarity)


def assert_may_lie_together(call, arguments, written, index):
    """``call`` writes the same where what it reads lies in what it writes, the first ``written`` arguments."""
    together, apart = (arguments(torch.tensor(index)) for _ in range(2))
    apart = [tensor.clone() for tensor in apart]
    call(*together)
    call(*apart)
    for ours, theirs in zip(together[:written], apart[:written], strict=True):
        assert torch.equal(ours, theirs)


INDICES = pytest.mark.parametrize(
    "index", [[4, 5, 4], [5, 6, 7]]
)  # what an entry writes is what a later one reads


@INDICES
@pytest.mark.parametrize(
    ("call", "arguments", "written"),
    [
        (sk.update_memory_, for_update, 1),
        (update_of_lists, for_update_of_lists, 1),
        (ops.update_memory_by_hardest_, for_update, 1),
        (ops.write_labels_, for_labels, 2),
    ],
)
def test_what_is_read_may_lie_in_what_is_written(call, arguments, written, index):
    assert_may_lie_together(call, arguments, written, index)


@INDICES
@pytest.mark.parametrize(
    ("name", "arguments", "written"),
    [
        ("update_memory_", for_update, 1),
        ("update_memory_lists_", for_update_of_lists, 1),
        ("write_labels_", for_labels, 2),
    ],
)
def test_compiled_kernels_read_apart_from_what_they_write(kernels, name, arguments, written, index):
    """A compiled graph calls them with what it has."""

    def call(*given):
        if kernels.operations is not torch.ops.snnet and name == "update_memory_lists_":
            given = (*given[:8], given[8].new_empty(len(MANY), 0), given[9])  # a GPU needs no mirrors
        getattr(kernels.operations, name)(*given)

    assert_may_lie_together(call, arguments, written, index)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda bits, lists: ops.write_labels_(bits, bits, INDEX[:2], MANY_LABELS[:2]),
            "column_bits must not share memory with row_bits",
        ),
        (
            lambda bits, lists: sk.update_memory_(lists.values, INDEX[:2], MANY[:2], 0.5, lists=lists),
            r"lists.values must not share memory with memory",
        ),
        (
            lambda bits, lists: sk.update_memory_(
                MANY, INDEX[:2], MANY[:2], 0.5, lists=lists._replace(mirrors=lists.columns)
            ),
            r"lists.mirrors must not share memory with lists.columns",
        ),
    ],
)
def test_written_matrices_lie_apart(call, message):
    bits, lists = MANY_LABELS.clone(), symmetric_lists(MANY, 32)
    before = [tensor.clone() for tensor in (bits, *lists)]
    with pytest.raises(ValueError, match=message):
        call(bits, lists)
    assert all(torch.equal(one, other) for one, other in zip((bits, *lists), before, strict=True))


def test_a_memory_filled_from_a_shifted_view_of_itself():
    rows = clustered_features(301, 32)
    memory = sk.ExemplarMemory(300, 32)
    memory.features = rows[:300]
    expected = rows[1:].clone()
    memory.initialize_(rows[1:])
    assert torch.equal(memory.features, expected)

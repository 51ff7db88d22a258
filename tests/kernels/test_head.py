"""SNNetHead: an iteration, the warm-up, evaluation, statistics, tracing, wrong settings."""

import copy

import pytest
import torch
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.testing import clustered_features
from tests.kernels.list_checks import check_lists

N, D, B = 240, 16, 12


def exact(memory: sk.ExemplarMemory) -> torch.Tensor:
    return memory.features.double() @ memory.features.double().t()


def make_head(seed: int = 0, **kwargs) -> sk.SNNetHead:
    head = sk.SNNetHead(N, D, **kwargs)
    head.initialize_(clustered_features(N, D, seed=seed))
    head.momentum = 0.4
    return head


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(N, generator=generator)[:B]
    features = clustered_features(N, D)[index] + 0.1 * torch.randn(B, D, generator=generator)
    return normalize(features, dim=1).requires_grad_(), index


def one_step(head: sk.SNNetHead, seed: int) -> torch.Tensor:
    features, index = batch(seed)
    loss = head(features, index)
    loss.backward()
    head.update_(index, features.detach())
    return loss.detach()


@pytest.mark.parametrize("label_source", ["memory", "feature"])
@pytest.mark.parametrize("neighbors", [256, 24, 3, 0])
def test_an_iteration_is_steps_one_to_six(label_source, neighbors):
    """The head against the six steps of the method written out with the per-sample reference."""
    head = make_head(neighbors=neighbors, label_source=label_source, threshold=0.5, min_rank=3)
    memory, labels = head.memory.features.clone(), torch.eye(N, dtype=torch.bool)
    for seed in range(5):
        features, index = batch(seed)
        s = features.detach() @ memory.t()
        rows = s if label_source == "feature" else memory[index] @ memory.t()
        y = reference.loop.mplp(memory, index, 0.5, 3, query_rows=rows)
        e = reference.loop.nearest_neighbors(memory, index, query_rows=rows)[0][:, 0]
        sets = [y, sk.pack_labels(labels[:, index].t().contiguous()), sk.pack_labels(labels[e])]
        expected = reference.loop.mutual_label_loss(s, sets, [1.0, 0.8, 0.6])
        reference.loop.write_labels_(labels, index, y)
        reference.loop.update_memory_(memory, index, features.detach(), torch.tensor(0.4))
        assert one_step(head, seed).item() == pytest.approx(expected.item(), rel=1e-5)
        assert torch.equal(head.pseudo_labels.to_dense(), labels)
        assert neighbors == 0 or int(head.memory.lists.asked) == 2 * B * (seed + 1)
        assert (head.memory.features - memory).abs().max() < 1e-6


def test_gradient_flows_to_the_features_only():
    head = make_head()
    features, index = batch(0)
    head(features, index).backward()
    assert features.grad.norm() > 0.1
    assert all(not buffer.requires_grad for buffer in head.buffers())
    assert not list(head.parameters())


def test_warmup_is_instance_discrimination():
    head = make_head()
    head.warmup = True
    features, index = batch(0)
    loss = head(features, index)
    onehot = torch.zeros(B, N, dtype=torch.bool).scatter_(1, index[:, None], True)
    similarity = features.detach() @ head.memory.features.t()
    expected = sk.mutual_label_loss(similarity, [sk.pack_labels(onehot)], [1.0])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(head.pseudo_labels.to_dense(), torch.eye(N, dtype=torch.bool))  # left alone
    statistics = head.label_statistics()
    assert statistics["positives"].item() == 1.0
    assert torch.isnan(statistics["agreement_neighbor"])


def test_lists_are_left_behind_in_the_warmup_and_right_after_it():
    head = make_head()
    head.warmup = True
    head.memory.build_lists_()
    place = head.memory.lists.columns.data_ptr()
    before = [table.clone() for table in head.memory.lists.tables]
    one_step(head, 0)
    now = head.memory.lists.tables
    assert all(
        torch.equal(*pair) for pair in zip(now, before, strict=True)
    )  # labels are one-hot: nobody reads them
    assert not any("lists" in name for name in head.state_dict())
    head.warmup = False
    one_step(head, 1)
    check_lists(head.memory.lists.tables, exact(head.memory), 1e-6)
    assert head.memory.lists.columns.data_ptr() == place  # a captured graph may hold it


def test_eval_writes_nothing():
    head = make_head(neighbors=24)
    one_step(head, 1)
    head.eval()
    before = copy.deepcopy(head.state_dict())
    features, index = batch(0)
    assert head(features, index).item() > 0
    head.update_(index, features.detach())
    after = head.state_dict()
    after["memory.lists.products"] = before["memory.lists.products"]  # that labels were asked for counts
    assert "memory.lists.columns" in before and before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_tangent_is_refused_before_anything_is_written():
    head = make_head(threshold=0.5)
    (features, index), before = batch(0), head.pseudo_labels.to_dense()
    with torch.autograd.forward_ad.dual_level():
        live = torch.autograd.forward_ad.make_dual(features.detach(), torch.ones_like(features))
        with pytest.raises(NotImplementedError, match="has a forward-mode tangent"):
            head(live, index)
    assert torch.equal(head.pseudo_labels.to_dense(), before)
    head(features, index)
    assert not torch.equal(head.pseudo_labels.to_dense(), before)


def test_statistics_are_those_of_the_label_matrices():
    head = make_head(threshold=0.5)
    one_step(head, 0)
    one_step(head, 1)
    features, index = batch(0)
    before = head.pseudo_labels.to_dense()
    head(features, index)
    y = head.pseudo_labels.to_dense()[index]
    e = head.memory.nearest(index)[0][:, 0]
    statistics = head.label_statistics()
    for key, other in (("agreement_symmetric", before[:, index].t()), ("agreement_neighbor", before[e])):
        expected = ((y & other).sum(1) / (y | other).sum(1)).mean()
        assert statistics[key].item() == pytest.approx(expected.item(), rel=1e-6)
    assert statistics["positives"].item() == pytest.approx(y.sum(1).float().mean().item(), rel=1e-6)


def reused(head: sk.SNNetHead, features: torch.Tensor) -> bool:
    return head._similarity_of(features) is not None


def test_a_stale_similarity_is_noticed():
    head = make_head()
    first, index = batch(0)
    head(first, index)
    assert reused(head, first.detach())
    assert not reused(head, first.detach().clone())  # other features, even if equal
    second, other_index = batch(1)
    head(second, other_index)  # two forwards before one update: only the last is at hand
    assert not reused(head, first.detach())
    assert reused(head, second.detach())
    head.update_(index, first.detach())
    assert not reused(head, second.detach())  # M has changed
    head(second, other_index)
    with torch.no_grad():
        head.memory.features[0].mul_(1.0)
    assert not reused(head, second.detach())  # also when written from outside
    head(second, other_index)
    with torch.no_grad():
        second.mul_(1.0)
    assert not reused(head, second.detach())  # the features were overwritten in place


def test_update_without_forward_and_accumulation_keep_lists_exact():
    head = make_head(neighbors=40)
    (first, a), (second, b) = batch(0), batch(1)
    head.update_(a, first.detach())
    for features, index in ((first, a), (second, b)):
        head(features, index).backward()
    for features, index in ((first, a), (second, b)):
        head.update_(index, features.detach())
    check_lists(head.memory.lists.tables, exact(head.memory), 1e-6)


def test_types_stay_under_half():
    head = make_head()
    head.memory.build_lists_()
    head = head.half().bfloat16()
    assert head.memory.lists.tables is not None
    types = {name: buffer.dtype for name, buffer in head.named_buffers()}
    assert (
        types["memory.features"]
        == types["memory.lists.values"]
        == types["memory.lists.floors"]
        == torch.float32
    )
    assert types["memory.lists.columns"] == types["memory.lists.mirrors"] == torch.int32
    assert types["memory.lists.products"] == torch.int64 and types["_momentum"] == torch.float32
    assert types["pseudo_labels.row_bits"] == types["pseudo_labels.column_bits"] == torch.uint8
    features, index = batch(0)
    assert torch.isfinite(head(features.detach().bfloat16(), index))


@pytest.mark.parametrize(("storage", "traced"), [("bits", False), ("bits", True), ("lists", False)])
def test_features_that_are_not_finite_leave_no_trace_in_p(storage, traced):
    """With labels from features: P is as after a batch without them, also where an image is in it twice."""
    torch._dynamo.reset()
    options = {"label_source": "feature", "threshold": 0.4, "min_rank": 3, "label_storage": storage}
    spoiled, skipped = (make_head(neighbors=N, **options) for _ in range(2))
    for head in (spoiled, skipped):
        head.memory.build_lists_()
        one_step(head, 5)
    call = torch.compile(spoiled, fullgraph=True, backend="aot_eager") if traced else spoiled
    features, index = batch(5)
    features = features.detach()
    index[4] = index[3]
    features[0, 2], features[4], features[7] = torch.nan, torch.inf, -torch.inf
    kept = torch.tensor([1, 2, 3, 5, 6, 8, 9, 10, 11])
    before = spoiled.pseudo_labels.rows(index)
    assert not torch.isfinite(call(features, index))
    spoiled.update_(index, features)
    skipped(features[kept], index[kept])
    skipped.update_(index[kept], features[kept])
    assert torch.equal(spoiled.pseudo_labels.to_dense(), skipped.pseudo_labels.to_dense())
    assert torch.equal(spoiled.pseudo_labels.columns(index), skipped.pseudo_labels.columns(index))
    assert torch.equal(spoiled.pseudo_labels.rows(index)[0], before[0])
    assert sk.unpack_labels(before, N).sum() > len(index)  # there was more to lose than the image itself
    assert torch.equal(spoiled.memory.features, skipped.memory.features)
    assert torch.equal(one_step(spoiled, 6), one_step(skipped, 6))


def test_features_that_are_not_finite_change_no_label_from_the_memory():
    spoiled, other = make_head(), make_head()
    features, index = batch(0)
    spoiled(torch.full_like(features, torch.nan), index)
    other(features, index)
    spoiled.update_(index, torch.full_like(features, torch.nan))
    assert torch.equal(spoiled.pseudo_labels.row_bits, other.pseudo_labels.row_bits)
    assert torch.equal(one_step(spoiled, 1), one_step(other, 1))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_fewer_images_than_anything(size):
    head = sk.SNNetHead(size, 4)
    head.initialize_(normalize(torch.ones(size, 4), dim=1))
    features = normalize(torch.randn(size, 4), dim=1).requires_grad_()
    loss = head(features, torch.arange(size))
    loss.backward()
    head.update_(torch.arange(size), features.detach())
    assert torch.isfinite(loss) and torch.isfinite(features.grad).all()
    assert torch.isfinite(head.memory.features).all()


def test_loss_module_equals_the_function():
    similarity = torch.rand(3, 50) * 2 - 1
    labels = [sk.pack_labels(torch.rand(3, 50) < 0.1) for _ in range(2)]
    module = sk.MutualLabelLoss((1.0, 0.5), kind="l2")
    assert torch.equal(
        module(similarity, labels), sk.mutual_label_loss(similarity, labels, [1.0, 0.5], kind="l2")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": (0, 0, 0)}, "not all zero"),
        ({"weights": (1, -1, 1)}, "none negative"),
        ({"weights": (1, 1)}, "weights must be 3"),
        ({"label_source": "both"}, "label_source must be"),
        ({"loss_kind": "l1"}, "kind must be"),
        ({"neighbors": -1}, "neighbors must be an integer of at least 0"),
        ({"label_storage": "disk"}, "storage must be"),
        ({"min_rank": -1}, "min_rank must be"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sk.SNNetHead(N, D, **arguments)


def test_moving_the_module_makes_lists_afresh():
    """A moved buffer counts its writes from 0 again: the old count must not vouch for the old lists."""
    head = make_head()
    one_step(head, 0)
    head._apply(torch.clone)  # what .to("cuda") does
    head.initialize_(clustered_features(N, D, seed=7))
    check_lists(head.memory.current_lists().tables, exact(head.memory), 1e-6)
    one_step(head, 1)
    head.to("meta")
    assert head.memory.lists.tables is None  # cheaper to build than to move


def test_compiled_forward_sees_a_new_memory():
    torch._dynamo.reset()
    head = make_head()
    features, index = batch(0)
    head.memory.build_lists_()
    compiled = torch.compile(head.eval(), backend="aot_eager")
    compiled(features, index)
    head.initialize_(clustered_features(N, D, seed=7))
    traced = compiled(features, index)
    assert traced.item() == pytest.approx(head(features, index).item(), rel=1e-6)


def test_inference_mode():
    head = make_head()
    features, index = batch(0)
    expected = head(features, index).item()
    with torch.inference_mode():
        live = features * 1.0
        for mode in (head.eval(), head.train()):
            head.pseudo_labels.write_(torch.arange(N), sk.PseudoLabelMemory(N).row_bits)
            assert mode(live, index).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("initialized", [True, False])
def test_a_default_head_is_traced_whole(initialized):
    """Without lists, which are built in eager mode; and with them."""
    torch._dynamo.reset()
    head, expected = sk.SNNetHead(N, D), sk.SNNetHead(N, D, neighbors=0)
    for module in (head, expected):
        (module.initialize_ if initialized else module.memory.features.copy_)(clustered_features(N, D))
    features, index = batch(0)
    if initialized:
        head.memory.build_lists_()
    loss = torch.compile(head, backend="aot_eager", fullgraph=True)(features, index)
    assert loss.item() == pytest.approx(expected(features, index).item(), rel=1e-6)
    assert torch.equal(head.pseudo_labels.row_bits, expected.pseudo_labels.row_bits)


def test_a_compiled_iteration_reads_and_writes_the_lists():
    torch._dynamo.reset()
    heads = [make_head(neighbors=40) for _ in range(2)]
    for head in heads:
        head.memory.build_lists_()
    compiled = torch.compile(heads[1], fullgraph=True, backend="aot_eager")
    compiled_update = torch.compile(heads[1].update_, fullgraph=True, backend="aot_eager")
    for step in range(3):
        features, index = batch(step)
        assert torch.equal(heads[0](features, index), compiled(features, index))
        heads[0].update_(index, features.detach())
        compiled_update(index, features.detach())
    check_lists(heads[1].memory.lists.tables, exact(heads[1].memory), 1e-6)
    for one, other in zip(*(head.memory.lists.tables for head in heads), strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())
        assert (one.nan_to_num(0, 9, -9) - other.nan_to_num(0, 9, -9)).abs().max() < 1e-6


def compiled_steps(head: sk.SNNetHead, count: int) -> None:
    """Whole iterations in one graph. ``head.label_statistics()`` then has "products" if lists were read."""
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def step(features, index):
        loss = head(features, index)
        head.update_(index, features)
        return loss

    for number in range(count):
        features, index = batch(number)
        step(features.detach(), index)


def reads_lists(head: sk.SNNetHead) -> bool:
    """Whether a compiled iteration does, and leaves lists that are right."""
    compiled_steps(head, 1)
    if "products" not in head.label_statistics():
        return False
    check_lists(head.memory.lists.tables, exact(head.memory), 1e-6)
    return True


@pytest.mark.parametrize(
    "look",
    [
        lambda head: head.state_dict(),
        lambda head: head.memory.version,
        lambda head: (
            head.memory.version,
            head.state_dict(),
            head.memory.renew_lists_(),
            head.memory.version,
        ),
    ],
    ids=["state", "version", "both"],
)
def test_a_look_at_the_state_leaves_the_lists_of_compiled_steps(builds, look):
    head = make_head(neighbors=N)
    head.memory.build_lists_()
    version = head.memory.version
    compiled_steps(head, 2)
    look(head)
    assert reads_lists(head)
    assert not any("lists" in name for name in head.state_dict())  # they may be those of no known memory
    assert head.memory.version > version
    assert len(builds) == 1
    head.memory.features.copy_(
        clustered_features(N, D, seed=7)
    )  # an eager call trusts no list of a compiled step
    look(head)
    every = torch.arange(N)
    expected = reference.mplp(
        head.memory.features, every, cache=head.memory.features @ head.memory.features.t()
    )
    assert torch.equal(head.memory.predict_labels(every), expected)
    assert any("lists" in name for name in head.state_dict())


@pytest.mark.parametrize("look", [lambda head: head.state_dict(), lambda head: head.memory.version])
def test_a_change_by_hand_that_is_seen_leaves_compiled_steps_no_stale_lists(look):
    head = make_head(neighbors=N)
    head.memory.build_lists_()
    head.memory.features.copy_(clustered_features(N, D, seed=7))
    look(head)
    assert not reads_lists(head)
    head.memory.renew_lists_()
    assert reads_lists(head)
    head.memory.features[3] = head.memory.features[4].clone()
    head.mark_written_()
    assert reads_lists(head)


def test_a_compiled_loop_reads_the_lists_that_are_built_after_its_warmup(builds):
    """The loop of docs/using-the-ops.md, compiled, with the line that it asks for."""
    head = make_head(neighbors=N)
    found = []
    for epoch in range(4):
        head.warmup = epoch < 2
        head.memory.renew_lists_()
        if epoch == 2:
            head.memory.build_lists_()
        compiled_steps(head, 2)
        found.append("products" in head.label_statistics())
    assert found == [False, False, True, True] and len(builds) == 1
    head.warmup = True  # moves the memory and not the lists
    compiled_steps(head, 1)
    head.warmup = False
    head.memory.renew_lists_()
    assert reads_lists(head) and len(builds) == 2


def test_products_are_those_of_the_last_batch():
    """A list of three places tells little, one of all images everything."""
    for neighbors, few in ((3, False), (N, True)):
        head = make_head(neighbors=neighbors)
        features, index = batch(0)
        for _ in range(2):
            before = 0 if head.memory.lists.tables is None else int(head.memory.lists.products)
            head(features, index)
            made = int(head.memory.lists.products) - before
            assert head.label_statistics()["products"].item() == made and (made == 0) == few
    head = make_head(neighbors=0)
    head(*batch(0))
    assert "products" not in head.label_statistics()


def test_a_momentum_keeps_no_graph():
    head = make_head()
    momentum = torch.tensor(0.25, requires_grad=True)
    head.momentum = momentum * 2
    assert not head._momentum.requires_grad
    one_step(head, 0)
    assert torch.equal(copy.deepcopy(head).momentum, torch.tensor(0.5))
    head.memory.update_(torch.arange(3), clustered_features(3, D), momentum)
    assert not head.memory.features.requires_grad


def test_a_momentum_that_is_refused_changes_nothing():
    head = make_head()
    head.momentum = 0.9
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], got 1.1"):
        head.momentum += 0.2
    assert head.momentum.item() == pytest.approx(0.9)
    head.momentum -= 0.2
    assert head._momentum.item() == pytest.approx(0.7)


def test_wrong_features_are_named():
    head = make_head()
    with pytest.raises(TypeError, match="momentum must be a number or a 0-d tensor, got str"):
        head.momentum = "x"
    with pytest.raises(ValueError, match=r"features must have shape \[B, 16\]"):
        head(torch.zeros(3, 5), torch.arange(3))
    with pytest.raises(TypeError, match="features must be a tensor"):
        head.initialize_([[1.0]])

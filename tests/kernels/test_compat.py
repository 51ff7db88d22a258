"""A trainer in the style of the MMCL authors', on the package: their classes, their call order, their numbers."""

import copy
import pickle
import threading

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels import memory_lists
from snnet_kernels.compat import MMCL, MPLP, Memory, followed_lists, mmcl
from snnet_kernels.ops.list_labels import mplp_from_lists
from snnet_kernels.testing import clustered_features
from tests.kernels.inputs import memory_of


def test_a_training_step_gives_the_goldens(golden):
    n, d = golden["memory"].shape
    inputs = golden["features"].clone().requires_grad_()
    targets = golden["index"]
    memory = Memory(d, n)
    memory.mem.data.copy_(golden["memory"])
    criterion, labelpred = MMCL(), MPLP(float(golden["threshold"]))
    epoch = float(golden["momentum"]) * 60 / 0.5

    logits = memory(inputs, targets, epoch=epoch)
    multilabel = labelpred.predict(memory.mem.detach().clone(), targets.detach().clone())
    loss = criterion(logits, multilabel, is_vec=True)
    assert torch.equal(memory.mem.data, golden["memory"])  # unchanged until backward
    loss.backward()

    assert multilabel.dtype == torch.float32
    assert torch.equal(multilabel.bool(), golden["multilabel"])
    assert loss.item() == pytest.approx(golden["mmcl_loss"].item(), rel=1e-5)
    scale = golden["mmcl_grad_features"].abs().max()
    assert (inputs.grad - golden["mmcl_grad_features"]).abs().max() < 1e-5 * scale
    assert (memory.mem.data - golden["memory_after"]).abs().max() < 1e-6


def test_single_class_targets():
    """Before labels are predicted the original trains on instance numbers."""
    inputs = torch.rand(4, 300, generator=torch.Generator().manual_seed(0)) * 2 - 1
    targets = torch.tensor([7, 0, 299, 7])
    loss = MMCL()(inputs, targets)
    expected = 0.0
    for row, target in zip(inputs, targets.tolist(), strict=True):
        negatives = torch.cat([row[:target], row[target + 1 :]])
        hard = negatives.sort(descending=True).values[:2]  # floor(0.01 * 299)
        expected += (5 * (1 - row[target]) ** 2 + (1 + hard).square().mean()).item() / 4
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_soft_labels_are_positive_above_one_half():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(4, 300, generator=generator) * 2 - 1
    labels = torch.tensor([0.0, 0.3, 0.49, 0.51, 0.6, 1.0])[torch.randint(6, (4, 300), generator=generator)]
    expected = 0.0
    for row, label in zip(inputs, labels, strict=True):
        positives, negatives = row[label > 0.5], row[label < 0.5]
        hard = negatives.sort(descending=True).values[: int(0.01 * len(negatives))]
        expected += (5 * (1 - positives).square().mean() + (1 + hard).square().mean()).item() / 4
    assert MMCL()(inputs, labels, is_vec=True).item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(MMCL()(inputs, labels > 0.5, is_vec=True), MMCL()(inputs, labels, is_vec=True))
    half = torch.where(labels == 0.49, 0.5, labels)  # in the original neither: here negative
    assert torch.equal(MMCL()(inputs, half, is_vec=True), MMCL()(inputs, labels, is_vec=True))


def test_memory_starts_empty_and_takes_features_up():
    memory = Memory(8, 20)
    assert not memory.mem.any() and not memory.mem.requires_grad
    inputs = torch.nn.functional.normalize(torch.randn(3, 8), dim=1).requires_grad_()
    memory(inputs, torch.tensor([4, 5, 4]), epoch=0).sum().backward()
    assert torch.equal(memory.mem.any(1).nonzero().flatten(), torch.tensor([4, 5]))
    assert (memory.mem[4] - inputs[2].detach()).abs().max() < 1e-6  # α = 0: the last one stays
    assert not inputs.grad.any()  # the memory was empty when the logits were made


def test_wrong_arguments_are_named():
    inputs, targets = torch.rand(6, 50), torch.arange(6)
    with pytest.raises(ValueError, match=r"targets must have the shape of inputs \(6, 50\), got \(6, 49\)"):
        MMCL()(inputs, torch.zeros(6, 49), is_vec=True)
    with pytest.raises(TypeError, match=r"targets must be torch\.int64, got torch\.float32"):
        MMCL()(inputs, torch.zeros(6, 50))
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 50\), got 54"):
        MMCL()(inputs, targets + 49)
    memory = Memory(8, 20)
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 20\), got 24"):
        memory(torch.rand(6, 8), targets + 19)
    with pytest.raises(ValueError, match="epoch must be at least 0, got -5"):
        memory(torch.rand(6, 8), targets, epoch=-5)


INPUTS, TARGETS = torch.rand(4, 8), torch.arange(4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Memory(-1, 5), ValueError, "num_features must be an integer of at least 1, got -1"),
        (lambda: Memory(8.0, 5), TypeError, "num_features must be an integer, got float"),
        (lambda: Memory(8, -2), ValueError, "num_classes must be an integer of at least 0, got -2"),
        (lambda: Memory(8, 20, alpha=2), ValueError, r"alpha must lie in \[0, 1\], got 2"),
        (lambda: Memory(8, 20, alpha="a"), TypeError, "alpha must be a number, got str"),
        (
            lambda: Memory(8, 20)(INPUTS, TARGETS, float("nan")),
            ValueError,
            "epoch must be at least 0, got nan",
        ),
        (lambda: Memory(8, 20)(INPUTS, TARGETS, "3"), TypeError, "epoch must be a number, got str"),
        (lambda: Memory(8, 20)([1], TARGETS), TypeError, r"inputs must be a tensor \[B, d\], got list"),
        (lambda: Memory(8, 20)(INPUTS[0], TARGETS), ValueError, r"inputs must have 2 dimensions \[B, d\]"),
        (
            lambda: Memory(7, 20)(INPUTS, TARGETS),
            ValueError,
            r"inputs must have shape \[B, 7\], got \(4, 8\)",
        ),
        (lambda: Memory(8, 20)(INPUTS.int(), TARGETS), TypeError, "inputs must be a floating point tensor"),
        (lambda: MMCL()(INPUTS[0], TARGETS), ValueError, r"inputs must have 2 dimensions \[B, n\]"),
        (lambda: MMCL()([[0.1]], TARGETS), TypeError, r"inputs must be a tensor \[B, n\], got list"),
        (lambda: MMCL()(INPUTS.int(), TARGETS), TypeError, "inputs must be a floating point tensor"),
        (lambda: MMCL(r=2)(INPUTS, TARGETS), ValueError, r"r must lie in \[0, 1\], got 2"),
        (lambda: MMCL(delta=-1)(INPUTS, TARGETS), ValueError, "delta must be finite and not negative"),
        (lambda: MMCL()(INPUTS, [[1]], True), TypeError, r"targets must be a tensor \[B, n\], got list"),
        (
            lambda: MMCL()(INPUTS, torch.eye(8)[:4].to_sparse(), True),
            TypeError,
            r"targets must be a dense tensor \[B, n\], got a torch\.sparse_coo one",
        ),
        (lambda: MPLP(float("nan")).predict(INPUTS, TARGETS), ValueError, "t must be finite, got nan"),
        (
            lambda: MPLP().predict(INPUTS, TARGETS.to("meta")),
            ValueError,
            r"targets must be on the device of memory \(cpu\), got meta",
        ),
        (lambda: MPLP("0.6").predict(INPUTS, TARGETS), TypeError, "t must be a number, got str"),
    ],
)
def test_each_wrong_argument_is_named_as_the_class_names_it(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (2, ValueError, r"alpha must lie in \[0, 1\], got 2"),
        ("a", TypeError, "alpha must be a number, got str"),
    ],
)
def test_an_alpha_that_is_set_later_is_checked_in_the_forward_pass(value, error, message):
    memory = Memory(8, 20)
    memory.alpha = value
    with pytest.raises(error, match=f"^{message}$"):
        memory(INPUTS, TARGETS)
    memory(INPUTS, TARGETS, epoch=3)  # which gives the alpha


def steps(changes=lambda step, memory: None):
    """Six steps of a trainer with the authors' calls: multilabels, and the memory in the end."""
    n, d = 80, 12
    features = memory_of("clustered", n, d, seed=0)
    memory, criterion, labelpred = Memory(d, n), MMCL(), MPLP(0.5)
    memory.mem.data.copy_(features)
    found = []
    for step in range(6):
        changes(step, memory)
        index = torch.randint(n, (10,), generator=torch.Generator().manual_seed(step))
        inputs = torch.nn.functional.normalize(
            features[index] + 0.2 * torch.randn(10, d, generator=torch.Generator().manual_seed(step)), dim=1
        ).requires_grad_()
        logits = memory(inputs, index, epoch=20)
        snapshot = memory.mem.detach().clone()
        multilabel = labelpred.predict(snapshot, index)
        assert torch.equal(multilabel, sk.unpack_labels(sk.mplp(snapshot, index, 0.5), n).float())
        found.append(multilabel)
        criterion(logits, multilabel, is_vec=True).backward()
        before = snapshot
        sk.update_memory_(before, index, inputs.detach(), 20 / 60 / 2)
        assert torch.equal(memory.mem.data, before)
    return found, memory


def test_a_copy_of_the_memory_is_recognised(builds):
    """The authors' trainer asks about a detached clone: lists are built once, and follow."""
    steps()
    assert len(builds) == 1


@pytest.mark.parametrize("row", [slice(0, 80), slice(3, 4)])
def test_whatever_writes_the_memory_is_noticed(builds, row):
    def write(step, memory):
        if step == 3:
            memory.mem.data[row] = memory.mem.data[row].flip(1)

    steps(write)
    assert len(builds) == 2


def test_lists_are_not_built_at_every_step_where_a_trainer_writes_the_memory_itself(builds):
    n, d = 1200, 12
    memory, labelpred, features = Memory(d, n), MPLP(0.5), clustered_features(n, d)
    memory.mem.data.copy_(features)
    for step in range(10):
        index = torch.randint(n, (40,), generator=torch.Generator().manual_seed(step))
        memory.mem.data[index] = features[index].flip(0)
        expected = sk.unpack_labels(sk.mplp(memory.mem.detach(), index, 0.5), n).float()
        assert torch.equal(labelpred.predict(memory.mem.clone(), index), expected)
    assert len(builds) == 1
    for _ in range(10):  # nothing writes it any more: labels of 100 images cost as much as lists
        assert torch.equal(labelpred.predict(memory.mem.clone(), index), expected)
    assert len(builds) == 2


def test_shallow_copies_share_the_memory_and_its_lists():
    n, d = 80, 12
    features, index = clustered_features(n, d), torch.arange(20)
    memory, labelpred = Memory(d, n), MPLP(0.5)
    memory.mem.data.copy_(features)
    labelpred.predict(memory.mem, index)
    other = copy.copy(memory)
    one, two = (features[index + k].flip(0).requires_grad_() for k in (0, 30))
    losses = [memory(one, index, epoch=20).sum(), other(two, index + 30, epoch=20).sum()]
    for loss in reversed(losses):
        loss.backward()
    expected = sk.unpack_labels(sk.mplp(memory.mem.detach(), torch.arange(n), 0.5), n).float()
    assert torch.equal(labelpred.predict(memory.mem.clone(), torch.arange(n)), expected)


def test_a_copied_module_keeps_lists_of_its_own(builds):
    _, memory = steps()
    other = pickle.loads(pickle.dumps(memory))
    assert list(other.state_dict()) == ["mem"]
    index = torch.arange(80)
    assert torch.equal(MPLP(0.5).predict(other.mem.clone(), index), MPLP(0.5).predict(memory.mem, index))
    assert len(builds) == 1


@pytest.mark.parametrize("through_data", [False, True])
def test_logits_that_were_changed_are_not_taken_for_similarities(builds, through_data):
    n, d = 60, 8
    memory = Memory(d, n)
    memory.mem.data.copy_(memory_of("clustered", n, d, seed=0))
    labelpred, index = MPLP(0.5), torch.arange(12)
    labelpred.predict(memory.mem, index)
    inputs = memory_of("clustered", n, d, seed=1)[index].requires_grad_()
    logits = memory(inputs, index, epoch=20)
    if through_data:
        logits.data /= 0.05
    else:
        logits /= 0.05
    logits.sum().backward()
    expected = sk.unpack_labels(sk.mplp(memory.mem.detach(), index, 0.5), n).float()
    assert torch.equal(labelpred.predict(memory.mem, index), expected)
    assert len(builds) == 1


def collapsed(n, d):
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(1 + 0.3 * noise, dim=1)


@pytest.mark.filterwarnings("ignore:neighbour lists of")
def test_lists_are_made_afresh_where_floors_have_risen(builds):
    """Every image was a candidate of every other when lists were made; then features spread."""
    n, d = 600, 16
    memory, labelpred, spread = Memory(d, n), MPLP(0.6), clustered_features(n, d)
    memory.mem.data.copy_(collapsed(n, d))
    labelpred.predict(memory.mem, torch.tensor([0]))
    batches = torch.randperm(n, generator=torch.Generator().manual_seed(0)).split(60)
    for index in batches:
        memory(spread[index].clone().requires_grad_(), index, epoch=0).sum().backward()
    built = len(builds)
    for index in batches:
        tables = memory._followed.lists.tables
        products = int(mplp_from_lists(memory.mem.detach(), index, *tables[:4], None, 0.6, 10)[1])
        expected = sk.unpack_labels(sk.mplp(memory.mem.detach(), index, 0.6), n).float()
        assert torch.equal(labelpred.predict(memory.mem.clone(), index), expected)
    assert products < len(index) and len(builds) == built + 1


def test_lists_start_below_the_threshold(builds):
    n = 600
    memory = Memory(64, n)
    memory.mem.data.copy_(clustered_features(n, 64))
    index = torch.arange(40)
    for threshold, floor, made in ((0.7, 0.4, 1), (0.5, 0.4, 1), (0.35, 0.05, 2), (0.7, 0.05, 2)):
        expected = sk.unpack_labels(sk.mplp(memory.mem.detach(), index, threshold), n).float()
        assert torch.equal(MPLP(threshold).predict(memory.mem, index), expected)
        assert memory._followed.lists.floor == pytest.approx(floor) and len(builds) == made


def test_an_interrupted_build_leaves_no_lists(monkeypatch):
    memory, index = Memory(8, 80), torch.arange(80)
    memory.mem.data.copy_(clustered_features(80, 8))
    MPLP(0.7).predict(memory.mem, index)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(memory_lists.MemoryLists, "_take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        MPLP(0.3).predict(memory.mem, index)
    monkeypatch.undo()
    assert memory._followed.lists.tables is None


@pytest.mark.parametrize("wrong", [-1, 80])
def test_targets_are_checked_before_lists_are_built(wrong):
    memory = Memory(8, 80)
    memory.mem.data.copy_(clustered_features(80, 8))
    for rows in (memory.mem, clustered_features(80, 8, seed=1)):  # with lists, and without
        with pytest.raises(ValueError, match=rf"targets must lie in \[0, 80\), got {wrong}"):
            MPLP(0.5).predict(rows, torch.tensor([3, wrong]))
    assert memory._followed.lists.tables is None


def test_a_threshold_below_many_similarities_is_told_to_the_caller(monkeypatch):
    monkeypatch.setattr(followed_lists, "PLACES", 4)
    monkeypatch.setattr(memory_lists, "FAR_TOO_MANY", 64)
    memory = Memory(8, 80)
    memory.mem.data.copy_(collapsed(80, 8))
    with pytest.warns(UserWarning, match="first 3 images have .* Raise the threshold") as caught:
        MPLP(0.5).predict(memory.mem, torch.arange(3))
    assert [warning.filename for warning in caught] == [__file__]


def test_lists_that_are_too_short_are_told(monkeypatch):
    monkeypatch.setattr(followed_lists, "PLACES", 4)
    memory = Memory(8, 80)
    memory.mem.data.copy_(clustered_features(80, 8))
    with pytest.warns(
        UserWarning, match="neighbour lists of 4 places are too short .*slow. Raise the threshold t"
    ):
        MPLP(0.2).predict(memory.mem, torch.arange(80))


def test_lists_that_equal_memories_share_stand_still_while_a_thread_reads_them(monkeypatch):
    n, d = 80, 12
    features, index = memory_of("clustered", n, d, seed=0), torch.arange(20)
    labelpred, memories = MPLP(0.5), [Memory(d, n), Memory(d, n)]
    for memory in memories:
        memory.mem.data.copy_(features)
    expected = labelpred.predict(features, index)  # of lists that one of the two keeps
    (owner,) = (memory for memory in memories if memory._followed._sums is not None)
    loss = owner(features[index].flip(0).requires_grad_(), index, epoch=0).sum()
    training = threading.Thread(target=loss.backward)
    found = mmcl._lists_of

    def found_and_then_written(memory):
        lists = found(memory)
        training.start()
        training.join(0.2)  # it waits for the reader
        return lists

    monkeypatch.setattr(mmcl, "_lists_of", found_and_then_written)
    assert torch.equal(labelpred.predict(features, index), expected)
    training.join()
    monkeypatch.undo()
    now = sk.unpack_labels(sk.mplp(owner.mem.detach(), index, 0.5), n).float()
    assert torch.equal(labelpred.predict(owner.mem, index), now) and not torch.equal(now, expected)


def test_lists_that_were_made_in_inference_mode_follow_updates(builds):
    features, index = memory_of("clustered", 60, 8, seed=0), torch.arange(9)
    memory, labelpred = Memory(8, 60), MPLP(0.5)
    memory.mem.data.copy_(features)
    with torch.inference_mode():
        labelpred.predict(memory.mem, index)
    memory(features[index].flip(0).requires_grad_(), index, epoch=20).sum().backward()
    expected = sk.unpack_labels(sk.mplp(memory.mem.detach(), index, 0.5), 60).float()
    assert torch.equal(labelpred.predict(memory.mem, index), expected) and len(builds) == 1

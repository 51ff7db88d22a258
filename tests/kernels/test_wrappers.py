"""Memories and head stay outside of wrappers that would overwrite them."""

import copy

import pytest
import torch
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels.compat import cluster_contrast, hybrid, mmcl
from snnet_kernels.testing import clustered_features

N, D = 300, 32
FIRST, SECOND = clustered_features(N, D), clustered_features(N, D, seed=1)
EVERY = torch.arange(N)


class Network(torch.nn.Module):
    def __init__(self, head: torch.nn.Module, inside: bool) -> None:
        super().__init__()
        self.backbone = torch.nn.Linear(D, D)
        self.head = head if inside else None
        self.outside = (head,)

    def forward(self, images, index):
        return self.outside[0](normalize(self.backbone(images), dim=1), index)


def test_a_head_stays_outside_of_data_parallel_wrappers(one_process_group):
    head = sk.SNNetHead(N, D)
    head.initialize_(FIRST)
    before = head.memory.features.clone()
    index = torch.arange(4)
    wrapped = torch.nn.parallel.DistributedDataParallel(Network(head, inside=False))
    wrapped.module.head = head
    with pytest.raises(
        RuntimeError, match="SNNetHead must stay outside of DistributedDataParallel, which overwrites"
    ):
        wrapped(FIRST[:4], index)
    assert torch.equal(head.pseudo_labels.to_dense(), torch.eye(N, dtype=torch.bool))
    wrapped.module.head = None
    loss = wrapped(FIRST[:4], index)
    loss.backward()
    assert loss.item() > 0 and wrapped.module.backbone.weight.grad.norm() > 0
    head.update_(index, SECOND[:4])
    assert not torch.equal(head.memory.features, before)
    replica = head._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match="SNNetHead must stay outside of DataParallel"):
        replica(FIRST[:4], index)


MEMORIES = [
    lambda: sk.SNNetHead(N, D),
    lambda: sk.ExemplarMemory(N, D),
    lambda: sk.PseudoLabelMemory(N),
    lambda: mmcl.Memory(D, N),
    lambda: cluster_contrast.ClusterMemory(D, N),
    lambda: hybrid.HybridMemory(D, N),
    lambda: hybrid.ClusterMemory(D, N),
]


@pytest.mark.parametrize("make", MEMORIES)
def test_what_has_memories_cannot_be_wrapped(one_process_group, make):
    """The wrapper overwrites them before each of its forward passes, also where the memory is called elsewhere."""
    memory = make()
    name = type(memory).__name__
    with pytest.raises(RuntimeError, match=f"^{name} must stay outside of DistributedDataParallel"):
        torch.nn.parallel.DistributedDataParallel(Network(memory, inside=True))


@pytest.mark.parametrize("make", MEMORIES[:3])
def test_what_changes_its_tensors_cannot_be_averaged(make):
    memory = make()
    with pytest.raises(RuntimeError, match=f"^{type(memory).__name__} must stay outside of AveragedModel"):
        torch.optim.swa_utils.AveragedModel(Network(memory, inside=True))


@pytest.mark.parametrize("storage", ["bits", "lists"])
def test_a_head_is_copied_beside_the_averaged_network(storage):
    head = sk.SNNetHead(N, D, threshold=0.4, label_storage=storage)
    head.initialize_(FIRST)
    network = Network(head, inside=False)
    average, copied = torch.optim.swa_utils.AveragedModel(network.backbone), copy.deepcopy(head)
    for step in range(2):
        index = torch.arange(16) + step
        head(FIRST[index], index)
        head.update_(index, SECOND[index])
        average.update_parameters(network.backbone)
        copied.load_state_dict(head.state_dict())
        assert torch.equal(copied.pseudo_labels.to_dense(), head.pseudo_labels.to_dense())
        assert torch.equal(copied.eval()(SECOND[:9], EVERY[:9]), head.eval()(SECOND[:9], EVERY[:9]))
        head.train()


@pytest.mark.parametrize("make", MEMORIES[3:])
def test_memories_of_public_code_are_not_replicated(make):
    memory = make()
    with pytest.raises(RuntimeError, match=f"^{type(memory).__name__} must stay outside of DataParallel"):
        memory._replicate_for_data_parallel()(FIRST[:2], EVERY[:2])


@pytest.mark.parametrize("make", MEMORIES)
def test_memories_are_of_float32_whatever_the_default(make):
    torch.set_default_dtype(torch.float64)
    try:
        memory = make()
    finally:
        torch.set_default_dtype(torch.float32)
    kept = [*memory.buffers(), *memory.parameters()]
    assert {tensor.dtype for tensor in kept if tensor.is_floating_point()} <= {torch.float32}


@pytest.mark.parametrize(("module", "call"), [
    (sk.ExemplarMemory(N, D), lambda memory: memory.predict_labels(EVERY[:2])),
    (sk.ExemplarMemory(N, D), lambda memory: memory.nearest(EVERY[:2])),
    (sk.ExemplarMemory(N, D), lambda memory: memory.similarity(FIRST[:2])),
    (sk.ExemplarMemory(N, D), lambda memory: memory.update_(EVERY[:2], FIRST[:2], 0.5)),
    (sk.PseudoLabelMemory(N), lambda bits: bits.write_(EVERY[:2], sk.mplp(FIRST, EVERY[:2], 0.4))),
    (sk.PseudoLabelMemory(N), lambda bits: bits.rows(EVERY[:2])),
    (sk.PseudoLabelMemory(N), lambda bits: bits.columns(EVERY[:2])),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_memories_stay_outside_too(module, call):
    with pytest.raises(RuntimeError, match=f"{type(module).__name__} must stay outside of DataParallel"):
        call(module._replicate_for_data_parallel())


def compat_memories() -> list[torch.nn.Module]:
    bank, images = mmcl.Memory(D, N), hybrid.HybridMemory(D, N)
    centers, proxies = cluster_contrast.ClusterMemory(D, 20), hybrid.ClusterMemory(D, 10)
    bank.mem.data.copy_(FIRST)
    images.features, images.labels = FIRST.clone(), EVERY // 30
    centers.features, proxies.features = FIRST[:20].clone(), FIRST[:20].clone()
    return [bank, images, centers, proxies]


@pytest.mark.parametrize("change", ["half", "bfloat16", "double"])
def test_memories_of_public_code_keep_their_types_in_a_cast_model(change):
    """``model.half()`` of a trainer that holds one in its model."""
    cast, others = torch.nn.ModuleList(compat_memories()), compat_memories()
    getattr(cast, change)()
    index = torch.arange(8)
    for memory, other in zip(cast, others, strict=True):
        losses = []
        for one in (memory, other):
            inputs = getattr(SECOND[:8].clone(), change)().requires_grad_()
            losses.append(one(inputs, index).float().square().mean())
            losses[-1].backward()
        assert torch.equal(*losses)
        assert_same_state(memory, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_memories_of_public_code_keep_their_types_when_a_state_of_others_is_assigned(dtype):
    index = torch.arange(8)
    for memory, other in zip(compat_memories(), compat_memories(), strict=True):
        types = {name: tensor.dtype for name, tensor in memory.state_dict().items()}
        state = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor.clone()
            for name, tensor in memory.state_dict().items()
        }
        given = {name: tensor.dtype for name, tensor in state.items()}
        trained = [name for name, parameter in memory.named_parameters() if parameter.requires_grad]
        memory.load_state_dict(state, assign=True)
        other.load_state_dict(state)
        assert {name: tensor.dtype for name, tensor in memory.state_dict().items()} == types
        assert {name: tensor.dtype for name, tensor in state.items()} == given
        assert [name for name, parameter in memory.named_parameters() if parameter.requires_grad] == trained
        assert dict(memory.named_parameters()).keys() == dict(other.named_parameters()).keys()
        inputs = SECOND[:8].clone().requires_grad_()
        for one in (memory, other):
            one(inputs, index).square().mean().backward()
        assert_same_state(memory, other)


def assert_same_state(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for ours, theirs in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)

"""What the docs say of torch.compile: which calls are traced whole, and which are not."""

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

import snnet_kernels as sk
from snnet_kernels import compat
from snnet_kernels.testing import clustered_features


def _of_compat() -> dict[str, Callable[[], torch.Tensor]]:
    """Each call makes what it needs."""
    n, d = 60, 16
    memory, index = clustered_features(n, d), torch.arange(8)
    bank, images = compat.Memory(d, n), compat.hybrid.HybridMemory(d, n)
    centers, proxies = compat.cluster_contrast.ClusterMemory(d, 6), compat.hybrid.ClusterMemory(d, 6)
    bank.mem.data.copy_(memory)
    images.features, images.labels = memory.clone(), torch.arange(n) // 10
    centers.features, proxies.features = memory[:6].clone(), memory[:12].clone()
    inputs, targets = memory[:8].clone().requires_grad_(), index % 6
    return {
        "Memory": lambda: bank(inputs, index),
        "MPLP": lambda: compat.MPLP().predict(memory, index),
        "HybridMemory": lambda: images(inputs, index),
        "ClusterMemory of cluster-contrast": lambda: centers(inputs, targets),
        "ClusterMemory of DCMIP": lambda: proxies(inputs, targets),
        "compute_jaccard_distance": lambda: torch.from_numpy(
            compat.cluster_contrast.compute_jaccard_distance(memory, k1=5, k2=2, print_flag=False).toarray()
        ),
    }


def _others() -> dict[str, Callable[[], object]]:
    n, d = 60, 16
    memory, index, cameras = clustered_features(n, d), torch.arange(8), torch.arange(n) % 3
    stored, labels = sk.PseudoLabelMemory(n, storage="lists"), sk.mplp(memory, index)
    head = sk.SNNetHead(n, d, process_group=torch.distributed.group.WORLD)
    head.initialize_(memory)
    return {
        "jaccard_graph": lambda: sk.jaccard_graph(memory, k1=5, k2=2, cameras=cameras, camera_k1=(3, 5)),
        "PseudoLabelMemory.write_": lambda: stored.write_(index, labels),
        "ShardedHead": lambda: head(memory[:8], index),
        "ShardedHead.update_": lambda: head.update_(index, memory[:8]),
        "ShardedExemplarMemory": lambda: head.memory.predict_labels(index),
        "ShardedPseudoLabelMemory": lambda: head.pseudo_labels.rows(index),
    }


def test_what_the_docs_name_is_not_traced_whole(one_process_group):
    for name, call in (_others() | _of_compat()).items():
        torch._dynamo.reset()
        with pytest.raises((TorchDynamoException, GuardOnDataDependentSymNode)):
            torch.compile(call, fullgraph=True, backend="eager")()
            raise AssertionError(f"{name} is traced whole")


@pytest.mark.parametrize("name", _of_compat())
def test_what_is_in_compat_runs_in_parts(name):
    torch._dynamo.reset()
    expected = _of_compat()[name]()
    assert torch.equal(torch.compile(_of_compat()[name], backend="eager")(), expected)


def test_what_stands_beside_the_exceptions_is_traced_whole():
    torch._dynamo.reset()
    memory, index = clustered_features(60, 16), torch.arange(8)
    graph = torch.compile(
        lambda: sk.jaccard_graph(memory, k1=5, k2=2).values, fullgraph=True, backend="eager"
    )()
    assert torch.equal(graph, sk.jaccard_graph(memory, k1=5, k2=2).values)
    logits = memory[:8] @ memory.t()
    loss = torch.compile(lambda: compat.MMCL()(logits, index), fullgraph=True, backend="eager")()
    assert loss.item() == pytest.approx(compat.MMCL()(logits, index).item(), rel=1e-6)
    stored = sk.PseudoLabelMemory(60, storage="lists")
    rows = torch.compile(
        lambda: stored.rows(index) + stored.columns(index), fullgraph=True, backend="eager"
    )()
    assert torch.equal(rows, stored.rows(index) + stored.columns(index))

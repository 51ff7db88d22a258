"""Which backend serves, forced backends, and the fallback without compiled libraries."""

import os
import subprocess
import sys

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels import backends, reference
from snnet_kernels.schemas import OPERATIONS


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_info_names_every_operation():
    info = sk.backend_info()
    assert set(info.operations) == set(OPERATIONS)
    assert {library.name for library in info.libraries} == {"_C", "_C_cuda"}
    table = str(info)
    assert all(name in table for name in OPERATIONS)
    for devices in info.operations.values():
        assert devices["cpu"] in ("cpu", "reference")
        assert set(devices["cuda"].split(", ")) <= {"cuda", "triton", "reference"}


def test_compiled_and_reference_agree():
    compiled = {library.name: library.loaded for library in sk.backend_info().libraries}
    served = sk.backend_info().operations["pack_labels"]["cpu"]
    assert served == ("cpu" if compiled["_C"] else "reference")
    flags = torch.rand(9, 1003, generator=torch.Generator().manual_seed(0)) < 0.4
    assert torch.equal(sk.pack_labels(flags), reference.pack_labels(flags))
    assert sk.pack_labels(flags).sum(dtype=torch.int64) == reference.pack_labels(flags).sum(dtype=torch.int64)


def test_forced_reference_loads_nothing():
    result = run(
        "import snnet_kernels as sk, torch; info = sk.backend_info();"
        "print({d for o in info.operations.values() for d in o.values()},"
        " [l.loaded for l in info.libraries], int(sk.pack_labels(torch.ones(1, 9) > 0)[0].sum()))",
        SNNET_BACKEND="reference",
    )
    assert result.stdout.strip() == "{'reference'} [False, False] 256", result.stderr


def test_forced_backend_that_cannot_serve_raises():
    code = "import torch, snnet_kernels as sk; sk.pack_labels(torch.ones(1, 9) > 0)"
    result = run(code, SNNET_BACKEND="triton")
    assert result.returncode == 1 and "SNNET_BACKEND=triton does not serve pack_labels" in result.stderr
    result = run("import snnet_kernels", SNNET_BACKEND="gpu")
    assert result.returncode == 1 and "SNNET_BACKEND must be one of" in result.stderr


def test_operation_outside_a_forced_backend_raises(monkeypatch):
    monkeypatch.setattr(backends, "FORCED", "cuda")
    with pytest.raises(
        NotImplementedError, match="SNNET_BACKEND=cuda does not serve pack_labels for cpu tensors"
    ):
        sk.pack_labels(torch.zeros(1, 5, dtype=torch.bool))


@pytest.mark.skipif(backends.serving_backend("mplp", "cpu") != "cpu", reason="the CPU library is not loaded")
def test_a_forced_cpu_backend_serves_an_iteration():
    code = (
        "import torch, snnet_kernels as sk; f = torch.eye(6)[:, :4] + 0.1; "
        "head = sk.SNNetHead(6, 4); head.initialize_(torch.nn.functional.normalize(f)); "
        "x = torch.nn.functional.normalize(f[:2]).requires_grad_(); i = torch.arange(2); "
        "loss = head(x, i); loss.backward(); head.update_(i, x.detach()); print(bool(loss > 0))"
    )
    result = run(code, SNNET_BACKEND="cpu")
    assert result.stdout.strip() == "True", result.stderr


def test_command_prints_the_table():
    result = subprocess.run(
        [sys.executable, "-m", "snnet_kernels"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0
    assert result.stdout.splitlines()[0].startswith("snnet_kernels on torch ")
    assert len(result.stdout.splitlines()) == 4 + len(OPERATIONS)

"""Which backend serves, forced backends, and the fallback without compiled libraries."""

import errno
import importlib.util
import io
import os
import re
import runpy
import sys
import types

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.__main__ import main
from snnet_kernels.backends import cuda_library, gpu, loaded, table, usable
from snnet_kernels.backends.loaded import servers_on
from snnet_kernels.backends.usable import has_code_for
from snnet_kernels.ops.operation import OPERATIONS
from tests.forks import Answer, python
from tests.kernels.inputs import needs_cpu_library
from tests.paths import ROOT


def run(code: str, **environment: str) -> Answer:
    return python("-c", code, environment={**os.environ, **environment})


def test_info_names_every_operation():
    info = sk.backend_info()
    assert set(info.operations) == set(OPERATIONS) >= set(table.TABLE)
    assert {library.name for library in info.libraries} == {"_C", "_C_cuda"}
    printed = str(info)
    assert all(name in printed for name in OPERATIONS)
    for devices in info.operations.values():
        assert devices["cpu"] in ("cpu", "reference")
        assert set(devices["cuda"].split(", ")) <= {"cuda", "triton", "reference"}


def test_what_gpu_kernels_serve(monkeypatch):
    """As the README says: what a training step of one process calls, and nothing else."""
    monkeypatch.setattr(table, "AVAILABLE", {"cuda": True, "triton": True})
    names: dict[tuple[str, ...], set[str]] = {}
    for name in OPERATIONS:
        names.setdefault(table.servers(name, "cuda"), set()).add(name)
    assert names.pop(("cuda", "triton")) == {"nearest_neighbors", "fused_mutual_label_loss"}
    assert names.pop(("triton",)) == {"mplp"}
    assert names.pop(("cuda",)) == {
        "pack_labels", "unpack_labels", "write_labels_", "gather_labels", "mutual_label_loss",
        "neighbor_lists", "mplp_from_lists", "nearest_from_lists", "update_memory_", "update_memory_lists_",
    }  # fmt: skip
    assert set(names) == {("reference",)} and len(names["reference",]) == len(OPERATIONS) - 13


@needs_cpu_library
def test_torch_knows_what_the_cpu_library_has():
    registered = {name for name in OPERATIONS if table.servers(name, "cpu") == ("cpu",)}
    registered = registered - {"neighbor_lists"} | {"take_band_"}  # the former calls the latter for each band
    assert registered == set(stems(r'm\.impl\("(\w+)"', "csrc/cpu/*.cpp"))


def test_the_cuda_library_has_the_arguments_of_the_operations():
    """Less the memory, where similarities are at hand."""
    for name in set(cuda_library.OPERATIONS) - {"sparse_label_loss", "take_products_"}:
        contract = getattr(torch.ops.snnet, name).default._schema
        compiled = getattr(torch.ops.snnet_cuda, name).default._schema
        dropped = len(contract.arguments) - len(compiled.arguments)
        assert dropped == (name == "nearest_neighbors")
        ours = [argument.name for argument in compiled.arguments]
        assert ours == [argument.name for argument in contract.arguments][dropped:]
    assert set(cuda_library.OPERATIONS) == set(stems(r'm\.impl\("(\w+)"', "csrc/cuda/*.cu"))


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


@pytest.mark.parametrize("forced", ["cuda", "triton"])
def test_operation_outside_a_forced_backend_raises(monkeypatch, forced):
    monkeypatch.setattr(table, "FORCED", forced)
    with pytest.raises(
        NotImplementedError, match=f"SNNET_BACKEND={forced} does not serve pack_labels for cpu tensors"
    ):
        sk.pack_labels(torch.zeros(1, 5, dtype=torch.bool))


@pytest.mark.parametrize("forced", ["cuda", "triton"])
def test_a_forced_gpu_backend_leaves_to_torch_what_every_one_does(monkeypatch, forced):
    monkeypatch.setattr(table, "FORCED", forced)
    monkeypatch.setattr(table, "AVAILABLE", {"cuda": True, "triton": True})
    plain = [name for name, row in table.TABLE.items() if row.plain]
    assert {"symmetric_lists", "checksums"} <= set(plain)
    for name in plain:
        table.require_forced_backend(name, "cuda")
        assert table.choose(name) == table.choose(name, at_hand=False, without_code={"cuda"}) == "reference"


@pytest.mark.parametrize("forced", ["reference", pytest.param("cpu", marks=needs_cpu_library)])
def test_calls_of_a_forced_backend_are_traced(forced):
    code = """
import torch
import snnet_kernels as sk
features = torch.nn.functional.normalize(torch.randn(40, 8), dim=1)
index = torch.arange(5)
compiled = torch.compile(sk.nearest_neighbors, fullgraph=True, backend="eager")
assert torch.equal(compiled(features, index, 2)[0], sk.nearest_neighbors(features, index, 2)[0])
print("equal")
"""
    result = run(code, SNNET_BACKEND=forced)
    assert result.stdout.strip() == "equal", result.stderr


def test_a_backend_that_there_is_not_raises(monkeypatch):
    """At import; that a command says so in one line is tested with the commands."""
    monkeypatch.setenv("SNNET_BACKEND", "gpu")
    with pytest.raises(
        ValueError, match="SNNET_BACKEND must be one of reference, cpu, cuda, triton, got 'gpu'"
    ):
        table.forced_backend()


@needs_cpu_library
def test_a_forced_cpu_backend_serves_an_iteration():
    code = (
        "import torch, snnet_kernels as sk; f = torch.eye(6)[:, :4] + 0.1; "
        "head = sk.SNNetHead(6, 4); head.initialize_(torch.nn.functional.normalize(f)); "
        "x = torch.nn.functional.normalize(f[:2]).requires_grad_(); i = torch.arange(2); "
        "loss = head(x, i); loss.backward(); head.update_(i, x.detach()); print(bool(loss > 0))"
    )
    result = run(code, SNNET_BACKEND="cpu")
    assert result.stdout.strip() == "True", result.stderr


def test_command_prints_the_table(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["snnet_kernels"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("snnet_kernels", run_name="__main__")
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("snnet_kernels on torch ")
    assert len(lines) == 4 + len(OPERATIONS)


def stems(pattern: str, files: str) -> dict[str, set[str]]:
    """The stems of the files in which each name that ``pattern`` finds stands; ``loop`` has what others have too."""
    found: dict[str, set[str]] = {}
    for path in ROOT.glob(files):
        for name in re.findall(pattern, path.read_text("utf-8"), re.MULTILINE):
            found.setdefault(name, set()).add(path.stem)
    return {name: where - {"loop"} for name, where in found.items()}


def test_whoever_knows_an_operation_knows_its_files():
    """Contract and reference of an operation lie in files of one stem, its backends there or in files of its name."""
    contracts = stems(r'(?:^def _?|name=")(\w+)', "snnet_kernels/ops/*.py")
    oracles = stems(r"^def (\w+?)(?:_with_grad)?\(", "snnet_kernels/reference/*.py")
    cpu = stems(r'm\.impl\("(\w+)"', "csrc/cpu/*.cpp")
    cuda = stems(r'm\.impl\("(\w+)"', "csrc/cuda/*.cu")
    triton = stems(r"^def (\w+)\(", "snnet_kernels/triton/*.py")
    for name in OPERATIONS:
        compiled = set().union(*(found.get(name, ()) for found in (cpu, cuda, triton)))
        assert (name, oracles[name], compiled - {name} - contracts[name]) == (name, contracts[name], set())
        assert len(contracts[name]) == 1


class Lost(io.StringIO):
    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def write(self, text: str) -> int:
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize(
    ("stdout", "status", "message"),
    [
        (Lost(errno.EPIPE), 141, ""),
        (Lost(errno.ENOSPC), 2, "error: cannot write to stdout: No space left on device\n"),
        (None, 2, "error: cannot write to stdout: Bad file descriptor\n"),
    ],
)
def test_a_table_that_cannot_be_written_is_one_line(stdout, status, message, monkeypatch, capsys):
    redirected = []
    monkeypatch.setattr(os, "dup2", lambda source, target: redirected.append(target))
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main() == status and redirected == [1]
    monkeypatch.undo()
    assert capsys.readouterr().err == message


def test_the_table_takes_no_arguments(capsys):
    assert main(["--device", "cpu"]) == 2
    told = "error: unexpected argument '--device': python -m snnet_kernels takes none\n"
    assert capsys.readouterr() == ("", told)
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "which backend serves each operation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("capability", "compiled", "runs"),
    [
        ((9, 0), "8.0 9.0 10.0+PTX", True),
        ((8, 6), "8.0 9.0 10.0+PTX", True),  # later in the same major number
        ((12, 0), "8.0 9.0 10.0+PTX", True),  # from PTX
        ((7, 5), "8.0 9.0 10.0+PTX", False),
        ((9, 0), "8.0 10.0", False),
        ((9, 0), "9.0a", True),
        ((9, 1), "9.0a", False),
        ((9, 0), "Hopper", True),
    ],
)
def test_devices_that_the_cuda_library_has_code_for(capability, compiled, runs):
    assert has_code_for(capability, compiled) is runs


@pytest.fixture
def two_gpus(monkeypatch):
    """A library for 8.0 and 9.0, and devices of 8.9 and 7.0, the second of which is the current one."""
    library = sk.LibraryInfo("_C_cuda", True, "CUDA 13.0 for 8.0 9.0, nvcc, torch 2.14")
    monkeypatch.setattr(loaded, "_LOADED", (library,))
    monkeypatch.setattr(table, "AVAILABLE", {"cuda": True, "triton": True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ((8, 9), (7, 0))[device])
    loaded.without_code.cache_clear()
    yield
    loaded.without_code.cache_clear()


ON_FIRST, ON_SECOND = (types.SimpleNamespace(get_device=lambda own=device: own) for device in (0, 1))


def test_each_device_is_served_by_what_has_code_for_it(two_gpus, recwarn):
    assert gpu.choose("pack_labels", ON_FIRST) == "cuda" and not recwarn
    told = "compiled for 8.0 9.0, and cuda:1 has compute capability 7.0: other kernels serve"
    with pytest.warns(UserWarning, match=f"{re.escape(told)}$"):
        assert gpu.choose("pack_labels", ON_SECOND) == "reference"
    assert gpu.choose("nearest_neighbors", ON_SECOND) == "triton"
    assert gpu.choose("nearest_neighbors", ON_FIRST) == "cuda"
    assert not recwarn


def test_triton_has_no_code_for_old_devices(two_gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    own = "Triton compiles for compute capability 7.0 and later"
    with (
        pytest.warns(UserWarning, match="the CUDA library is compiled for 8.0 9.0, and cuda:1 has"),
        pytest.warns(UserWarning, match=f"{own}, and cuda:1 has compute capability 6.1: other kernels"),
    ):
        assert gpu.choose("nearest_neighbors", ON_SECOND) == "reference"
    assert servers_on(torch.device("cuda:1"))["mplp"] == ("reference",)
    monkeypatch.setattr(table, "FORCED", "triton")
    with pytest.raises(NotImplementedError, match=r"there are: none\)"):
        gpu.choose("mplp", ON_SECOND)


def test_a_forced_library_without_code_for_a_device_raises(two_gpus, monkeypatch):
    monkeypatch.setattr(table, "FORCED", "cuda")
    with pytest.warns(UserWarning), pytest.raises(NotImplementedError, match=r"there are: triton\)"):
        gpu.choose("nearest_neighbors", ON_SECOND)


def test_a_device_that_the_library_can_be_compiled_for(two_gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.warns(UserWarning, match=r"\(install with 7\.5 in TORCH_CUDA_ARCH_LIST to compile for it\)$"):
        assert gpu.choose("pack_labels", ON_FIRST) == "reference"


@pytest.mark.parametrize(
    ("batch_size", "n", "rows"), [(1024, 1_000_000, 64), (1000, 300_000, 192), (100, 2**23, 8)]
)
def test_a_sparse_loss_makes_each_similarity_once(two_gpus, monkeypatch, batch_size, n, rows):
    """In one product of each part; the dense gradient takes two products, and Triton three."""
    made = []

    def similarity(features, memory):
        made.append(len(features))
        return torch.empty(1).expand(len(features), len(memory))

    def loss(s, memory, labels, weights, delta, ratio):
        assert len(labels[0]) == len(s)
        return torch.tensor(float(len(made))), torch.full((len(s), 2), float(len(made)))

    compiled = types.SimpleNamespace(sparse_label_loss=types.SimpleNamespace(default=loss))
    monkeypatch.setattr(gpu, "similarity_of", similarity)
    monkeypatch.setattr(gpu, "_compiled", compiled)
    features, memory = torch.empty(batch_size, 2), torch.empty(1, 2).expand(n, 2)
    labels = torch.empty(batch_size, 1)
    value, grad = gpu._fused_mutual_label_loss(features, memory, None, [labels], [1.0], "mmcl", 5.0, 0.01)
    assert sum(made) == batch_size and set(made[:-1]) == {rows} and rows * n <= 2**26
    number = torch.arange(batch_size) // rows + 1.0  # of its part
    torch.testing.assert_close(value, number.mean())
    torch.testing.assert_close(grad[:, 0], number * torch.tensor(made)[number.long() - 1] / batch_size)


def test_what_is_told_is_what_runs(two_gpus, capsys):
    """Nothing has been looked at before; the table is that of the current device."""
    with pytest.warns(UserWarning, match="cuda:1 has compute capability 7.0"):
        assert main() == 0
    assert re.search(r"pack_labels +\w+ +reference\n", capsys.readouterr().out)
    assert sk.backend_info().operations["nearest_neighbors"]["cuda"] == "triton"
    served = [
        servers_on(torch.device(name))["nearest_neighbors"] for name in ("cuda", "cuda:0", "cuda:1", "cpu")
    ]
    assert served == [("triton",), ("cuda", "triton"), ("triton",), table.servers("nearest_neighbors", "cpu")]


def test_a_gpu_that_does_not_start_leaves_the_table(two_gpus, monkeypatch, capsys, recwarn):
    """It shows what the libraries would serve; a call on such a device raises torch's own error."""

    def refuse(*_):
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "current_device", refuse)
    monkeypatch.setattr(torch.cuda, "get_device_capability", refuse)
    assert main() == 0 and not recwarn
    assert re.search(r"pack_labels +\w+ +cuda\n", capsys.readouterr().out)
    assert servers_on(torch.device("cuda"))["nearest_neighbors"] == ("cuda", "triton")
    with pytest.raises(RuntimeError, match="busy or unavailable"):
        servers_on(torch.device("cuda:0"))


def test_triton_needs_what_it_compiles_with(monkeypatch, tmp_path):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    for name in ("CC", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(usable.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "clang" else None)
    monkeypatch.setattr(usable.sysconfig, "get_path", lambda *_: str(tmp_path))
    assert usable.triton_problem() == "it needs the headers of Python"
    (tmp_path / "Python.h").touch()
    assert usable.triton_problem() is None
    monkeypatch.setattr(usable.shutil, "which", lambda name: None)
    assert usable.triton_problem() == "it needs a C compiler"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert usable.triton_problem() is None

"""Free memory under the limits of control groups, of version 1, of version 2 and nested."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from snnet_kernels import memory_size

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def group(folder: Path, names: tuple[str, str, str], limit: object, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache 99999\n{names[2]} {cached}\nanon 5\n")


def process(folder: Path, memberships: str, mounts: str) -> Path:
    (folder / "cgroup").write_text(memberships)
    (folder / "mountinfo").write_text(mounts)
    return folder


def v1(point: Path, root: str = "/") -> str:
    return (
        f"30 25 0:26 {root} {point} rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
        f"31 25 0:27 / {point}cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    )


def v2(point: Path, root: str = "/") -> str:
    return f"24 20 0:22 / /proc rw - proc proc rw\n30 25 0:26 {root} {point} rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(("names", "mount", "line"), [(V1, v1, "9:memory:"), (V2, v2, "0::")])
def test_the_least_that_a_group_or_its_ancestors_leave(
    names: tuple[str, str, str], mount: Callable[..., str], line: str, tmp_path: Path
) -> None:
    point = tmp_path / "mounted"
    group(point / "a" / "b", names, 10_000, 4_000, 1_000)
    group(point / "a", names, 9_000, 4_000, 500)
    me = process(tmp_path, f"1:name=systemd:/a/b\n{line}/a/b\n", mount(point))
    assert memory_size._container_memory(me) == 5_500
    group(point / "a", names, 1 << 62, 4_000, 500)  # version 1 writes "no limit" as a huge number
    assert memory_size._container_memory(me) == 7_000
    group(point / "a" / "b", names, "max", 4_000, 1_000)
    group(point / "a", names, 3_000, 4_000, 500)  # more is in use than a limit that was lowered since
    assert memory_size._container_memory(me) == 0


@pytest.mark.parametrize(("names", "mount", "line"), [(V1, v1, "9:cpu,memory:"), (V2, v2, "0::")])
def test_a_container_that_sees_its_own_part_of_the_hierarchy(
    names: tuple[str, str, str], mount: Callable[..., str], line: str, tmp_path: Path
) -> None:
    point = tmp_path / "mounted"
    group(point, names, 1 << 30, 1 << 20, 0)
    for root in ("/docker/0123", "/other"):  # with the host's path in /proc, and with one that says nothing
        me = process(tmp_path, f"{line}/docker/0123\n", mount(point, root))
        assert memory_size._container_memory(me) == (1 << 30) - (1 << 20)


def test_a_limit_that_only_slows_down_counts_too(tmp_path: Path) -> None:
    group(tmp_path / "m" / "job", V2, 9_000, 1_000, 0)
    (tmp_path / "m" / "job" / "memory.high").write_text("8000\n")
    group(tmp_path / "m", V2, "max", 1_000, 0)
    (tmp_path / "m" / "memory.high").write_text("max\n")
    me = process(tmp_path, "0::/job\n", v2(tmp_path / "m"))
    assert memory_size._container_memory(me) == 7_000


def test_what_torch_holds_unused_is_free_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 1)
    counts = {"mem_get_info": (1_000, 80_000), "memory_reserved": 60_000, "memory_allocated": 20_000}
    for name, count in counts.items():
        answer = {gpu: count}
        monkeypatch.setattr(torch.cuda, name, answer.__getitem__)
    assert memory_size.free_memory(gpu) == 1_000 + 40_000


def test_both_versions_at_once_and_none(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    group(one / "job", V1, 5_000, 1_000, 0)
    group(two / "job", V2, 6_000, 3_000, 0)
    me = process(tmp_path, "4:memory:/job\n0::/job\n", v1(one) + v2(two))
    assert memory_size._container_memory(me) == 3_000
    assert memory_size._container_memory(process(tmp_path, "0::/\n", v2(tmp_path / "gone"))) == sys.maxsize
    assert memory_size._container_memory(tmp_path / "nothing") == sys.maxsize

"""Settings of the whole suite.

The process that only hands tests out to others loads this file too: what takes long is imported where it is used.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    import torch

    from snnet_kernels.memory_lists import MemoryLists

# A check that decides over a change tries the same examples every time; a developer's run looks for new ones.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def pytest_configure() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended from outside, it reports what it has
    # A job that a shell put into the background ignores these, and so would the processes that tests send them to.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


# The longest come first, so that the processes which share the tests end together.
LONGEST = (
    "test_triton_interpreted",
    "test_gpu_on_cpu",
    "test_triton_",
    "cuda_on_cpu",
    "test_cuda_",
    "test_export",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(
        key=lambda item: next((i for i, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST))
    )
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Places and images of the neighbour lists that were built."""
    from snnet_kernels.memory_lists import MemoryLists

    made: list[tuple[int, int]] = []
    build = MemoryLists.build_

    def counted(lists: MemoryLists, features: torch.Tensor) -> None:
        made.append((lists.capacity, len(features)))
        build(lists, features)

    monkeypatch.setattr(MemoryLists, "build_", counted)
    return made

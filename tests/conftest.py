"""Settings of the whole suite."""

import os
import signal

import hypothesis
import pytest
import torch

# A check that decides over a change tries the same examples every time; a developer's run looks for new ones.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def pytest_configure() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended from outside, it reports what it has


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))

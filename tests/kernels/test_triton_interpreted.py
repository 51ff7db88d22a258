"""The Triton kernels, interpreted on CPU tensors in processes of their own; and that these tests test something.

The cases are ``triton_label_cases.py`` and ``triton_loss_cases.py``. To run some of them alone::

    TRITON_INTERPRET=1 python -m pytest -p tests.kernels.triton_bounds tests/kernels/triton_loss_cases.py -k digit
"""

import importlib.util
import os
import pathlib
import shutil

import pytest

from tests.forks import run_pytest
from tests.paths import ROOT

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run_cases(name: str, *options: str, packages: pathlib.Path = ROOT) -> tuple[int, str]:
    """What ``run_pytest`` gives; ``packages`` is where snnet_kernels is imported from."""
    words = ("--import-mode=append", "-p", "tests.kernels.triton_bounds", f"tests/kernels/{name}", *options)
    path = os.pathsep.join([str(packages), str(ROOT)])
    return run_pytest(*words, TRITON_INTERPRET="1", PYTHONPATH=path)


@pytest.mark.parametrize(
    ("name", "chosen", "tests"),
    [
        # In parts, so that no process is left with all of it.
        ("triton_label_cases.py", "neighbors", 41),
        ("triton_label_cases.py", "labels", 45),
        ("triton_label_cases.py", "not neighbors and not labels", 64),
        ("triton_loss_cases.py", "digit", 12),
        ("triton_loss_cases.py", "not digit", 53),
    ],
)
def test_cases(name, chosen, tests):
    passed, output = run_cases(name, "-k", chosen)
    assert passed >= tests, output


@pytest.mark.parametrize(
    ("file", "mask", "without", "cases"),
    [
        ("similarity.py", " & (column < n)[:, None]", "", "test_similarity"),
        ("common/candidates.py", "inside = (column < n)", "inside = (column >= 0)", "test_candidates"),
        ("common/rank_counts.py", "(column < end)", "(column >= 0)", "test_labels_with_columns"),
    ],
)
def test_cases_fail_without_a_mask(file, mask, without, cases, tmp_path):
    """The same after the edit of a copy of the package."""
    shutil.copytree(ROOT / "snnet_kernels", tmp_path / "snnet_kernels")
    edited = tmp_path / "snnet_kernels" / "triton" / file
    before = edited.read_text()
    edited.write_text(before.replace(mask, without))
    assert edited.read_text() != before
    _, output = run_cases("triton_label_cases.py", "-x", "-k", cases, packages=tmp_path)
    assert "1 failed" in output, output

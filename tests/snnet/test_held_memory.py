"""What commands hold beside the features that they have in memory, or read."""

from __future__ import annotations

import json
from pathlib import Path

from tests.forks import python
from tests.memory import needs_proc

pytestmark = needs_proc

# Prints by name the middle of five peaks, in sizes of the features.
PROGRAM = """
import ctypes, json, sys
from pathlib import Path
import numpy as np, torch
from snnet import checks
from snnet.extract import _joined
from snnet.label import _of_length_one
from snnet.retrieval.feature_files import FeatureSet, load_features, save_features
from snnet.system.processes import ALONE
from snnet.system.progress import set_quiet
from snnet.training.pieces import clear_pieces, write_pieces
from tests.memory import peak_of

ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back to the system
set_quiet(True)
checks.NUMBERS_AT_A_TIME = 1 << 16
n, d = 2048, 2048
size = 4 * n * d
unit = np.full((n, d), d ** -0.5, np.float32)
folder, parts = Path(sys.argv[1]), []

def load(name, rows=None):
    return lambda: load_features(folder / name, rows=rows).features.fill(2)

def pieces():
    write_pieces(folder, 1, range(n), {"memory.features": torch.from_numpy(unit)}, ALONE)

def split():
    parts[:] = [unit[first : first + n // 4].copy() for first in range(0, n, n // 4)]

# What is done before, what is measured, and how many times the features it makes.
calls = {
    "save .npz": (None, lambda: save_features(folder / "f.npz", FeatureSet(unit)), 2**24 / size),  # of numpy
    "save .safetensors": (None, lambda: save_features(folder / "f.safetensors", FeatureSet(unit)), 0),
    "load .npz": (None, load("f.npz"), 1),
    "load .safetensors": (None, load("f.safetensors"), 1),
    "check": (None, lambda: checks.check_unit_rows("features", torch.from_numpy(unit), ""), 0),
    "normalise": (lambda: np.multiply(unit, 3, out=unit), lambda: _of_length_one(FeatureSet(unit), ALONE), 0),
    "pieces": (lambda: clear_pieces(folder, []), pieces, 0),
    "join": (split, lambda: _joined(parts), 0),
}
found = {}
for name, (before, call, made) in calls.items():
    peaks = []
    for _ in range(5):
        if before:
            before()
        peaks.append(peak_of(call) / size - made)
    found[name] = sorted(peaks)[2]
print(json.dumps(found))
"""


def test_little_is_held_beside_the_features(tmp_path: Path) -> None:
    answer = python("-c", PROGRAM, str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    peaks = json.loads(answer.stdout)
    assert len(peaks) == 8 and {name: peak for name, peak in peaks.items() if peak > 0.5} == {}

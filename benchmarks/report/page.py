"""The page ``docs/benchmarks.md``, from the committed results of all machines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..growth import curves
from ..results import Run
from . import tables, words

INTRODUCTION = """\
# Benchmarks

Written by `python -m benchmarks.report` from the results in `benchmarks/results/`; the numbers are not edited.

```console
make bench                                                    # about a quarter of an hour on 2 cores
python -m pytest benchmarks --benchmark-only --size msmt17    # other sizes; --dim, --device cuda, --threads
python -m benchmarks.report --add build/benchmarks.json       # the results into this page
make bench-check                                              # the stated ratios, in short
```

**Inputs** are the same for all contenders of an operation: clustered features like those of a re-identification
network in training (`snnet_kernels.testing.clustered_features`: unequal clusters, hubs between them, about 17
images above the threshold for each image, of which at least a fifth fail the cycle check), so that thresholding
alone gives wrong labels. `market` has 12,936 images, `duke` 16,522, `msmt17` 32,621, `large` 100,000, `million`
1,000,000; d and the batch size stand in each column's name.

**Equality first.** Before a contender is timed its answer is compared with the reference: labels, neighbours
and bits exactly (where products of another shape round differently, float64 has to show that rounding decides),
loss, gradient, memory, lists and S within float32 rounding. No list may miss an entry above its floor. A contender
that fails is an error, not a row.

**Timing** is pytest-benchmark's, one contender after the other on the same batches, with the same number of threads
on the same cores; figures are medians. Before each call what the contender writes is put back, and the last-level
cache is flushed (cold); the figure in brackets is an immediate second call (warm). On a GPU times are between two
events on the stream, launches left out. The loop over samples runs on a part of the batch, and its time is scaled.

**Contenders** are what one would write instead: the loop over samples of the code bases of this field;
vectorised PyTorch that counts ranks instead of sorting, without and with the matrix S = M Mᵀ, which it keeps and
updates by the recurrence; `torch.compile` of each, also of a form with static shapes written for it (on a GPU with
max-autotune); faiss, numpy, scipy where they apply.

**The hardware floor** is the larger of the least bytes over this machine's measured copy bandwidth and the
least operations of matrix products over its measured matmul rate. No implementation that reads M and multiplies can
be below it, or over 1 × in its row; one that keeps MᵀM (the Gram form) does neither. **Peak MB** is the memory of one
call beyond what was there before, its results included; **kept MB** what the form keeps between calls beside the
exemplar memory.
"""

ABOUT_GROWTH = """\
The label work of a batch, d 256, clusters of the same sizes: time, as a multiple of ours at the smallest n; the
exponent p of time ~ nᵖ fitted to all points; the time an image at the largest n over that at n 12,936 (1 is linear
growth); and the bend, the time of each further image between the last two sizes over that between the two before (1
is a line, whatever a batch costs at n 0). Forms that keep S, or P as a matrix, end where these do not fit.
"""

ABOUT_INSTRUCTIONS = """\
## Instructions of the CPU kernels

Instructions executed inside the compiled library by one call at a small size, one thread, counted by callgrind
(which has no AVX-512): a measure that noise does not move. `python -m benchmarks.instructions` counts again and
fails where an operation takes 2 % more than stated here; a different compiler shifts all of them.
"""

ABOUT_PREDICTIONS = """\
## What a GPU is expected to do

The floors for a GPU (an H200), and beside each the time of ours (or its memory) as counted from bytes and operations,
at 4 TB/s, 60 TFLOP/s in float32 and 400 in TF32, 2 µs a launch. **Counted, not measured**: see `CONTRIBUTING.md`,
"Testing with a GPU", for how to measure it.
"""
CAPTIONS = {"time": "Time of the label step against n", "memory": "Memory of the label step against n"}


def page(runs: Mapping[str, Run], figures: Mapping[str, Mapping[str, Path]], folder: Path) -> str:
    """The page for ``runs`` and their ``figures`` by machine; ``folder`` is where it will lie."""
    parts = [INTRODUCTION]
    for name, run in runs.items():
        parts += _machine(run, figures.get(name, {}), folder)
    parts += [ABOUT_PREDICTIONS, tables.predicted() + "\n"]
    counts = tables.instructions()
    if counts:
        parts += [ABOUT_INSTRUCTIONS, counts + "\n"]
    return "\n".join(parts)


def title(run: Run) -> str:
    machine = run.machine
    if machine["device"] == "cuda":
        return machine["gpu"]
    return f"{machine['cpu']}, {machine['threads']} threads"


def _machine(run: Run, figures: Mapping[str, Path], folder: Path) -> list[str]:
    parts = [f"## {title(run)}\n", _versions(run), "### The stated ratios\n", tables.stated(run) + "\n"]
    if curves(run):
        parts += ["### Growth with n\n", ABOUT_GROWTH, tables.growth(run) + "\n"]
        parts += [f"![{CAPTIONS[kind]}]({path.relative_to(folder)})\n" for kind, path in figures.items()]
    parts.append("### Every operation\n")
    for name, operation in words.OPERATIONS.items():  # what a file has of others is not this program's
        if found := tables.operation(run, name):
            parts += [f"#### {operation}\n", found + "\n"]
    return parts


def _versions(run: Run) -> str:
    machine = run.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}; "
        f"torch {machine['torch']}, Python {machine['python']}; {versions}",
        "; ".join(f"`{name}`: {detail}" for name, detail in machine["libraries"].items()),
    ]
    if machine["device"] == "cuda":
        lines.append(
            f"{machine['gpu']}, {machine['gpu_memory_gb']} GB, compute capability {machine['capability']}, "
            f"CUDA {machine['cuda']}. " + " / ".join(machine["driver_and_clocks"].splitlines())
        )
    rates = [
        f"copy {rate / 1e9:,.0f} GB/s" if name == "copy" else f"{name} products {rate / 1e12:.2f} TFLOP/s"
        for name, rate in run.rates.items()
    ]
    if rates:
        lines.append(f"Measured rates: {', '.join(rates)}.")
    lines.append(f"Measured {', '.join(sorted(set(run.dates)))}.")
    return "\n\n".join(lines) + "\n"

"""What tests and stated figures do not show of a GPU: rounding, the time of each kernel.

python scripts/gpu_probe.py [market|tiny] [KERNEL]: each part stands by itself and prints as it goes, 80 s in all. With
the name of a kernel only that one is launched, three times, for a profiler. ``tiny`` runs on a CPU too.
"""

from __future__ import annotations

import statistics
import sys
import traceback
from collections.abc import Callable

import torch

import snnet_kernels as sk
from benchmarks.case import THRESHOLD, Case
from benchmarks.clock import clock_of
from benchmarks.operation import setting
from benchmarks.ours import Head, Ours
from benchmarks.shapes import SIZES, Shape
from snnet_kernels.exemplar_memory import FLOOR
from snnet_kernels.ops.list_labels import mplp_from_lists, nearest_from_lists

PRECISIONS = ("ieee", "tf32x3", "tf32")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOCK = clock_of(DEVICE)


def microseconds(call: Callable[[], object], rounds: int = 15) -> float:
    call()
    return round(1e6 * statistics.median(CLOCK.cold(call) for _ in range(rounds)), 1)


def rounding_of_tf32(case: Case) -> None:
    """Operands that are cut off give a mean error of about -4e-4 where s > 0.5, rounded ones of 1e-6 or less."""
    features, memory = case.memory[:512], case.memory
    exact = features.double() @ memory.double().t()
    high = exact > 0.5
    for precision in PRECISIONS:
        with setting(precision):
            error = sk.memory_similarity(features, memory).double() - exact
        print(precision, f"largest {float(error.abs().max()):.2e}, mean {float(error[high].mean()):.2e}")
    streamed = {p: _streamed_labels(memory, p) for p in PRECISIONS}
    for precision, labels in streamed.items():
        print(
            precision,
            "streaming: rows changed",
            int((labels != streamed["ieee"]).any(1).sum()),
            "of",
            len(labels),
        )


def _streamed_labels(memory: torch.Tensor, precision: str) -> torch.Tensor:
    with setting(precision):
        return sk.mplp(memory, torch.arange(min(512, len(memory)), device=memory.device), THRESHOLD, 10)


def ways_to_write_s(case: Case) -> None:
    """Of torch's product and ours, µs."""
    features, memory = case.batches[0].features, case.memory
    print("f @ M.t()", microseconds(lambda: features @ memory.t()))
    print("(M @ f.t()).t()", microseconds(lambda: (memory @ features.t()).t()))
    for precision in PRECISIONS:
        with setting(precision):
            print(precision, microseconds(lambda: sk.memory_similarity(features, memory)))


def building_lists(case: Case) -> None:
    """µs of the lists of all images, and how many of their places are filled."""
    lists = case.lists
    print("build", microseconds(lambda: _build(case), 3))
    print(f"entries {int(lists.counts.sum())} of {lists.columns.numel()}")


def _build(case: Case) -> sk.NeighborLists:
    return sk.neighbor_lists(case.memory, case.lists.capacity, floor=FLOOR, symmetric=True)


def pieces_of_a_step(case: Case) -> None:
    """µs of labels, neighbours, P, of the update, of both losses with s at hand; rows multiplied beside the lists."""
    batch, bits = case.batches[0], case.label_memory
    inquiry = (case.memory, batch.index, *case.lists[:4])
    print("labels", microseconds(lambda: _labels(case)))
    print("neighbours", microseconds(lambda: nearest_from_lists(*inquiry, 1)))
    made = mplp_from_lists(*inquiry, None, THRESHOLD, 10)[1], nearest_from_lists(*inquiry, 1)[2]
    print("rows multiplied for labels and for neighbours", *map(int, made))
    labels = sk.mplp(case.memory, batch.index, THRESHOLD, 10, lists=case.lists)
    print("P", microseconds(lambda: (bits.columns(batch.index), bits.rows(batch.index))))
    print("writing P", microseconds(lambda: bits.write_(batch.index, labels)))
    print("update", microseconds(_updating(case)))
    sets = [bits.rows(batch.index)] * 3
    for kind in ("mmcl", "l2"):
        print(
            kind,
            microseconds(
                lambda kind=kind: sk.fused_mutual_label_loss(
                    batch.features,
                    case.memory,
                    sets,
                    (1.0, 0.8, 0.6),
                    similarity=batch.similarity,
                    kind=kind,
                )
            ),
        )


def _labels(case: Case) -> object:
    return sk.mplp(case.memory, case.batches[0].index, THRESHOLD, 10, lists=case.lists)


def _updating(case: Case) -> Callable[[], object]:
    form, batch = Ours(case), case.batches[0]
    return lambda: form.update_(batch.index, batch.features, batch.similarity)


def kernels_of_an_iteration(case: Case) -> None:
    """µs of each kernel in replays of an iteration, in three precisions."""
    if DEVICE.type != "cuda":
        return
    from torch.profiler import ProfilerActivity, profile

    for precision in PRECISIONS:
        with setting(precision):
            replay = Head(case, captured=precision).iteration
        print(precision, "replay", microseconds(lambda replay=replay: replay(case.batches[2])))
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            for batch in case.batches[:10]:
                replay(batch)
            torch.cuda.synchronize()
        for event in sorted(found.key_averages(), key=lambda event: -event.device_time_total)[:16]:
            print(f"  {event.device_time_total / 10:8.1f} µs {event.count / 10:4.1f} ×  {event.key[:90]}")


def tiles_chosen(case: Case) -> None:
    """Which tile was the fastest, by kernel and size."""
    from snnet_kernels.triton.common import launching

    for key, tile in launching._fastest.items():
        print(*key, "->", tile)


PARTS = (
    rounding_of_tf32,
    ways_to_write_s,
    building_lists,
    pieces_of_a_step,
    kernels_of_an_iteration,
    tiles_chosen,
)


def launch_of(kernel: str, case: Case) -> Callable[[], object]:
    """A call that launches this kernel."""
    batch = case.batches[0]
    if kernel == "follow_lists_kernel":
        return _updating(case)
    if kernel == "mplp_lists_look_kernel":
        return lambda: _labels(case)
    if kernel == "similarity_kernel":
        sk.set_matmul_precision("tf32x3")
        return lambda: sk.memory_similarity(batch.features, case.memory)
    if kernel == "rank_count_kernel":
        return lambda: sk.mplp(case.memory, batch.index, THRESHOLD, 10)
    raise SystemExit(f"no call is known that launches {kernel}")


def main() -> int:
    size, *kernel = sys.argv[1:] or ["market"]
    market = size != "tiny"
    case = Case(Shape(size, SIZES[size], 2048 if market else 64, 128 if market else 8), DEVICE)
    if kernel:
        call = launch_of(kernel[0], case)
        for _ in range(3):
            call()
        return 0
    failed = 0
    for part in PARTS:
        print(f"\n--- {part.__name__}", flush=True)
        try:
            part(case)
        except Exception:  # the parts after it are still of use
            traceback.print_exc(file=sys.stdout)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())

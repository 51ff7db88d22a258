"""How many pseudo labels change when the products behind them are rounded: python -m benchmarks.label_flips

Makes operands TF32 (10 bits of mantissa) and cuts sums off to float32 after every eight products, as tensor cores do,
on any machine, and compares the labels of all images with those of float32 products: the share of rows with a changed
label, and of the label bits that changed. S = M Mᵀ is made of such products (``SNNET_MATMUL_PRECISION``). "tf32" and
"tf32x3" round to nearest, as the Triton kernels do; "tf32, cut off" is what tensor cores make of float32 operands that
nobody has rounded. "tf32x3" adds up the sums of 128 dimensions in float32, as the kernel of ``memory_similarity`` does.
Takes some minutes.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.testing import clustered_features

AT_ONCE = 8  # products that a tensor core adds to a sum
SUMMED_BY_TENSOR_CORES = 128  # dimensions, of "tf32x3"


def round_to_tf32(x: Tensor) -> Tensor:
    """float32 with the last 13 bits of the mantissa rounded away, ties away from zero as the hardware converts."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def cut_to_tf32(x: Tensor) -> Tensor:
    """float32 with the last 13 bits of the mantissa cut off."""
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


def cut_sums(a: Tensor, b: Tensor, dimensions: int) -> Tensor:
    """a bᵀ float32 [p, q] of sums of so many dimensions that tensor cores cut off; these are added up in float32.

    a float32 [p, d], b float32 [q, d], both of few enough bits that a product of two entries is exact in float64.
    """
    product = a.new_zeros(len(a), len(b))
    transposed = b.double().t().contiguous()
    for rows, result in zip(a.double().split(64), product.split(64), strict=True):  # what caches hold
        for start in range(0, a.shape[1], dimensions):
            end = min(start + dimensions, a.shape[1])
            total = torch.zeros(result.shape, dtype=torch.float64)
            for first in range(start, end, AT_ONCE):
                part = slice(first, min(first + AT_ONCE, end))
                total.addmm_(rows[:, part], transposed[part])
                total.view(torch.int64).bitwise_and_(-1 << 29)  # the bits that float32 has not
            result += total.float()
    return product


def similarity(memory: Tensor, precision: str) -> Tensor:
    """M Mᵀ [n, n] as the tensor cores would make it."""
    high = (cut_to_tf32 if precision == "tf32, cut off" else round_to_tf32)(memory)
    product = cut_sums(high, high, SUMMED_BY_TENSOR_CORES if precision == "tf32x3" else memory.shape[1])
    if precision == "tf32x3":
        low = round_to_tf32(memory - high)
        cross = low @ high.t()  # so small that it does not matter how it is summed
        product += cross
        product += cross.t()
    return product


def label_flips(memory: Tensor, precision: str, batch: int = 512) -> tuple[float, float]:
    """(share of rows with a changed label, changed bits per set bit) of ``precision`` against float32."""
    n = memory.shape[0]
    exact, rounded = memory @ memory.t(), similarity(memory, precision)
    rows = bits = changed = 0
    for index in torch.arange(n).split(batch):
        before = sk.unpack_labels(reference.mplp(memory, index, cache=exact), n)
        after = sk.unpack_labels(reference.mplp(memory, index, cache=rounded), n)
        different = before ^ after
        rows += int(different.any(1).sum())
        changed += int(different.sum())
        bits += int(before.sum())
    return rows / n, changed / bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=12_936)
    parser.add_argument("--d", type=int, nargs="+", default=[512, 2048])
    arguments = parser.parse_args()
    print("| d | products | rows with a changed label | changed bits per set bit |\n|---|---|---|---|")
    for d in arguments.d:
        memory = clustered_features(arguments.n, d)
        for precision in ("tf32x3", "tf32", "tf32, cut off"):
            rows, bits = label_flips(memory, precision)
            print(f"| {d} | {precision} | {100 * rows:.2f} % | {100 * bits:.3f} % |")


if __name__ == "__main__":
    main()

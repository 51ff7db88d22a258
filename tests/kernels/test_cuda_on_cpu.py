"""The emulation of CUDA itself: what threads exchange is right in any order, what a GPU leaves undefined is told."""

import ctypes

import pytest
import torch

from tests.kernels import cuda_on_cpu as emulator


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(emulator.build([emulator.HERE / "self_test.cu"], emulator.cuda_sources()[1])))
    loaded.self_test.restype = ctypes.c_char_p
    return loaded


def run(library: ctypes.CDLL, name: str, count: int = 0, seed: int = 0, blocks: int = 1) -> torch.Tensor:
    """The words that a test's kernel fills, with so many blocks at once; an error of the launch is raised."""
    out = torch.full((max(count, 1024),), -77)
    library.cuda_on_cpu_seed(ctypes.c_uint64(seed))
    library.cuda_on_cpu_blocks_at_once(ctypes.c_int64(blocks))
    error = library.self_test(name.encode(), ctypes.c_void_p(out.data_ptr()), ctypes.c_int64(count)).decode()
    if error:
        raise RuntimeError(error)
    return out[:count]


@pytest.mark.parametrize("seed", range(5))
def test_barriers_order_shared_memory(library, seed):
    sums = run(library, "tree", 7, seed)
    assert sums.tolist() == [256 * 255 // 2 + 256 * block for block in range(7)]


def test_a_missing_barrier_gives_another_sum(library):
    right = run(library, "tree", 7)
    for seed in range(5):
        assert not torch.equal(run(library, "tree without a barrier", 7, seed), right)


@pytest.mark.parametrize("seed", range(3))
def test_warp_operations(library, seed):
    found = run(library, "warp", 64 * 12, seed).view(2, 32, 12)
    lane = torch.arange(32)
    for warp in range(2):
        value = (lane + 32 * warp) * 3 - 20
        down = torch.where(lane % 8 < 6, lane + 2, lane)
        expected = [
            value[5].expand(32),
            value[torch.where(lane < 2, lane, lane - 2)],
            value[down],
            torch.ones(32),
            torch.tensor(sum(1 << i for i in range(0, 32, 3))).expand(32),
            torch.ones(32),
            0xFF << (lane // 8 * 8),
            value.sum().expand(32),
            value.min().expand(32),
            torch.tensor(max(v % 2**32 for v in value.tolist())).expand(32),
            torch.where(lane < 8, 0xFF, 0xFFFFFF00),
            lane // 16 * 16 + (lane + 1) % 16,
        ]
        for operation, row in enumerate(expected):
            assert torch.equal(found[warp, :, operation], row.long()), operation


def test_barriers_that_count(library):
    assert run(library, "block", 1).item() == 34 + 1000 * 1 + 10000 * 0


@pytest.mark.parametrize("words", [200, 20000])
def test_dynamic_shared_memory(library, words):
    expected = torch.arange(words).flip(0) ** 2
    assert torch.equal(run(library, "dynamic", words), expected)


def test_tickets_are_claimed_in_the_order_of_blocks_that_the_seed_gives(library):
    orders = [run(library, "ticket", 40, seed).tolist() for seed in range(3)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert run(library, "ticket", 40, 1).tolist() == orders[1]


@pytest.mark.parametrize("seed", range(3))
def test_blocks_take_turns(library, seed):
    """Blocks that wait for each other end where all of them run at once, and their shared memory is their own."""
    sums = run(library, "together", 6, seed, blocks=3)
    warps = torch.tensor([sum(range(32, 64)), sum(range(32))])
    assert torch.equal(sums, (warps + 3200 * torch.arange(3)[:, None]).flatten())
    with pytest.raises(RuntimeError, match="waits for something that never comes"):
        run(library, "together", 6, seed, blocks=2)
    assert run(library, "tree", 7, seed, blocks=4).tolist() == run(library, "tree", 7).tolist()


def test_the_seed_orders_the_threads(library):
    orders = [run(library, "order", 64, seed).tolist() for seed in range(3)]
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert run(library, "order", 64, 1).tolist() == orders[1]


@pytest.mark.parametrize("seed", range(3))
def test_atomics(library, seed):
    # 100 threads flip each of 32 bits three times, four of them once more.
    flipped = (1 << 32) - 1 - 0b1111
    expected = [200, 99, -1, flipped - (1 << 32), -99, 4950, 9900]
    assert run(library, "atomics", 7, seed).tolist() == expected


def test_shared_memory_starts_as_garbage(library):
    assert (run(library, "garbage", 128) != 0).all()


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("skipped barrier", "left the kernel"),
        ("two barriers", "while others wait at self_test.cu"),
        ("left lane", "left the kernel"),
        ("apart", "wait for each other for ever: .*(__shfl_sync|__ballot_sync)"),
        ("foreign mask", "not in its own mask at __shfl_sync"),
        ("unread lane", "reads lane 20, which is not in the mask"),
        ("out of bounds", "an index out of bounds at self_test.cu"),
        ("misaligned", "a misaligned address at self_test.cu"),
        ("past the dynamic shared memory", "past the end of the dynamic shared memory"),
        ("too much shared memory", "invalid argument"),
        ("too many threads", "invalid configuration"),
        ("endless", "waits for something that never comes"),
        ("trap", "a trap at self_test.cu"),
    ],
)
def test_what_a_gpu_leaves_undefined_is_reported(library, name, report):
    for seed in range(3):
        with pytest.raises(RuntimeError, match=report):
            run(library, name, 1, seed)
    assert run(library, "tree", 1).item() == 256 * 255 // 2  # the next launch works

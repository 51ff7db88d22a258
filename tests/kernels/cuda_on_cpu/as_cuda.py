"""A pytest plugin: CPU tensors are served as CUDA tensors are, by the emulated library and interpreted Triton.

Needs SNNET_BACKEND=reference (nothing else serves CPU tensors then) and TRITON_INTERPRET=1 in the environment.
"""

import tests.kernels.triton_interpreter  # noqa: F401
from snnet_kernels import neighbor_list_layout
from snnet_kernels.backends import gpu, table
from snnet_kernels.triton.common import pairs
from tests.kernels.cuda_on_cpu import emulation

emulation()
table.FORCED = None
neighbor_list_layout.MIRRORED.clear()
pairs.PAIRS_AT_ONCE = 256  # the interpreter takes its time for each tile,
pairs.PROGRAMS_PER_PROCESSOR = 1  # and for each program that has none
gpu.register("CPU")
assert table.AVAILABLE["cuda"]

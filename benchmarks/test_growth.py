"""The label work of an iteration as the memory grows, with clusters of the same sizes; d and B stay.

The report fits the exponent of each contender's time over n. What torch.compile makes is compiled anew for each n,
which takes minutes: with ``--size`` only.
"""

from __future__ import annotations

from .label_step import label_step
from .shapes import growth_shapes


@label_step.benchmark(shapes=growth_shapes, leave_out=("compile", "compile-cache", "compile-static"))
def test_growth_of_label_step(race, contender, benchmark):
    race.report(contender, benchmark)

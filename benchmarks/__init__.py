"""What the operations cost beside what a user would write instead; ``pytest benchmarks --benchmark-only``.

Commands of their own, by ``python -m benchmarks.NAME``: ``check`` (do the stated ratios hold?), ``report`` (the page),
``instructions``, ``label_flips`` and ``several_processes``. All other modules are parts of the benchmarks.
"""

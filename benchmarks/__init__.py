"""What the operations cost beside what a user would write instead; ``pytest benchmarks --benchmark-only``."""

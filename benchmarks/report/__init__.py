"""Results as a page: ``python -m benchmarks.report``."""

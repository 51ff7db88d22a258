"""Results as a page (``python -m benchmarks.report``) and as lines of text."""

from .summary import summary_lines

__all__ = ["summary_lines"]

"""A headless browser for tests: playwright with its own Chromium, or one that is installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def browser() -> Iterator[Any]:
    """A playwright browser; skips the test where playwright or every browser is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as tools:
        own = tools.chromium.executable_path
        path = own if os.path.exists(own) else next(filter(None, map(shutil.which, NAMES)), None)
        if path is None:
            pytest.skip("no Chromium was found: playwright install chromium, or that of the system")
        # The sandbox needs rights that containers often lack; the page is our own.
        opened = tools.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()

"""Where the tests' data lie."""

import pathlib

DATA = pathlib.Path(__file__).parent / "data"

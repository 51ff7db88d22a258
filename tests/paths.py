"""Where the repository and the tests' data lie."""

import pathlib

DATA = pathlib.Path(__file__).parent / "data"
ROOT = pathlib.Path(__file__).parent.parent

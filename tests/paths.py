"""Where things lie in the checkout."""

import pathlib

DATA = pathlib.Path(__file__).parent / "data"
ROOT = pathlib.Path(__file__).parent.parent

"""Attacks on the packages that take minutes; ``python -m tests.hard --help``. ``tests/test_hard.py`` tries each."""

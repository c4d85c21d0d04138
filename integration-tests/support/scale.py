"""How much of a row of the reliability table a run does.

The bounds are the row's in every run; the counts and times that it asks for would take CI hours. So a test
does a part of them, and LORIKEET_TEST_SCALE multiplies it, up to the whole row: with 100, all are whole, and
pytest needs `--timeout 7200`.
"""

from __future__ import annotations

import os

SCALE = int(os.environ.get("LORIKEET_TEST_SCALE", "1"))


def scaled(part: int, whole: int) -> int:
    """`part`, times the scale, but not more than the row's `whole`."""
    return min(part * SCALE, whole)

"""How much load a run of the reliability tests makes.

The bounds are the same in every run; the counts and times of a full run would take CI hours. So a test does a
part of them, and LORIKEET_TEST_SCALE multiplies it: with 100, all are whole, and pytest needs
`--timeout 7200`.
"""

from __future__ import annotations

import os

SCALE = int(os.environ.get("LORIKEET_TEST_SCALE", "1"))


def scaled(part: int, whole: int) -> int:
    """`part`, times the scale, but not more than `whole`."""
    return min(part * SCALE, whole)

"""Lock files pin every package to one version and its hashes, and say nothing about where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = [*ROOT.glob("requirements/*.txt"), *ROOT.glob("integration-tests/clients/*/requirements.txt")]
PIN = re.compile(r"[a-z0-9-]+==[a-zA-Z0-9.+]+( ; [^\\]+)? \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_versions_and_hashes_only(lock: Path) -> None:
    lines = lock.read_text().splitlines()
    assert [line for line in lines if not PIN.fullmatch(line) and not HASH.fullmatch(line)] == []
    pinned = [index for index, line in enumerate(lines) if PIN.fullmatch(line)]
    assert pinned and all(HASH.fullmatch(lines[index + 1]) for index in pinned)

"""The identity of base weights, cheap enough to compute at every start.

Hashing 16 GB takes tens of seconds on a cold disk, so the digest covers every header byte (names, types,
shapes, metadata), every file size, and three samples of each tensor: its beginning, middle and end. Training
or quantising a model again changes nearly every value of nearly every tensor, so the samples tell any two
real models apart; they do not guard against someone who edits a few values on purpose. It separates caches of
different bases, it does not authenticate a download. A GGUF's header holds its tokenizer, so that is covered
in full.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Extent:
    """Where one tensor's bytes lie in a file: `begin..end`, from the file's start."""

    begin: int
    end: int


class BaseDigest:
    """A sha256 under construction. Every part is length-prefixed, so parts cannot run into each other."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"lorikeet-base-1")

    def add(self, part: bytes) -> None:
        """Adds bytes in full."""
        self._hash.update(len(part).to_bytes(8, "little"))
        self._hash.update(part)

    def add_file(self, path: Path, header_bytes: int, tensors: Iterable[Extent]) -> None:
        """Adds a file by its size, its first `header_bytes` in full and samples of its tensors, in file
        order."""
        with path.open("rb") as file:
            self.add(os.fstat(file.fileno()).st_size.to_bytes(8, "little"))
            self.add(file.read(header_bytes))
            for tensor in sorted(tensors, key=lambda extent: extent.begin):
                for offset in _sample_offsets(tensor):
                    file.seek(offset)
                    self.add(file.read(min(SAMPLE_BYTES, tensor.end - offset)))

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _sample_offsets(tensor: Extent) -> list[int]:
    last = max(tensor.begin, tensor.end - SAMPLE_BYTES)
    return sorted({tensor.begin, (tensor.begin + last) // 2, last})

"""A byte-level BPE written from the definition, to check tokenizer files against: slow and short."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import regex

_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for a byte: itself if printable, else the next one from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + index) for index, byte in enumerate(others)
    }


class ReferenceBpe:
    """Token ids straight from a GGUF's vocabulary and merges, for the `smollm` way of cutting words."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        tokens = metadata["tokenizer.ggml.tokens"]
        self._ids = {token: index for index, token in enumerate(tokens)}
        self._ranks = {
            tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["tokenizer.ggml.merges"])
        }
        kinds = metadata["tokenizer.ggml.token_type"]
        special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
        longest_first = sorted(special, key=len, reverse=True)
        self._special = regex.compile("(" + "|".join(regex.escape(token) for token in longest_first) + ")")
        self._letters = byte_letters()

    def has_every_byte_of(self, text: str) -> bool:
        return all(self._letters[byte] in self._ids for byte in text.encode("utf-8"))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for index, piece in enumerate(self._special.split(text)):
            if index % 2:
                ids.append(self._ids[piece])
                continue
            # Every numeric character stands alone; the rest is cut as GPT-2 cuts it.
            for run in regex.split(r"(\p{N})", piece):
                for word in _WORDS.findall(run):
                    ids += [self._ids[part] for part in self._merged(word)]
        return ids

    def _merged(self, word: str) -> list[str]:
        # SmolLM2 has no token for some bytes (16 and F1, say): transformers leaves them out before it merges.
        letters = [self._letters[byte] for byte in word.encode("utf-8")]
        parts = [letter for letter in letters if letter in self._ids]
        while len(parts) > 1:
            ranked = [
                (self._ranks[pair], index)
                for index, pair in enumerate(pairwise(parts))
                if pair in self._ranks
            ]
            if not ranked:
                break
            _, index = min(ranked)
            parts[index : index + 2] = [parts[index] + parts[index + 1]]
        return parts

"""Adapters that are one random change away from a good one, as a bad disk or a cut download makes them."""

from __future__ import annotations

import random
from pathlib import Path

from support.models import write_adapter

FILES = ("adapter_config.json", "adapter_model.safetensors")


def write_mutant(directory: Path, seed: int) -> None:
    """A good adapter in which `seed` has changed one place of a file, most often in front of the data."""
    chance = random.Random(seed)
    write_adapter(directory, seed=77)
    path = directory / chance.choice(FILES)
    data = bytearray(path.read_bytes())
    front = len(data)
    if path.name == FILES[1] and chance.random() < 0.8:
        front = 8 + int.from_bytes(data[:8], "little")
    at, length = chance.randrange(front), chance.choice((1, 2, 8, 100))
    match chance.choice(("flip", "replace", "cut", "remove", "repeat", "number")):
        case "flip":
            data[at] ^= 1 << chance.randrange(8)
        case "replace":
            data[at : at + length] = chance.randbytes(length)
        case "cut":
            del data[at:]
        case "remove":
            del data[at : at + length]
        case "repeat":
            data[at:at] = data[at : at + length]
        case "number":
            digits = [index for index in range(front) if data[index : index + 1].isdigit()]
            data[chance.choice(digits or [at])] = ord(chance.choice("0123456789-.e"))
    path.write_bytes(data)

"""The header of a safetensors file: its tensors' shapes and where they lie.

The format is specified in https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

from lorikeet_server.weights.digest import Extent
from lorikeet_server.weights.error import WeightsError

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own bound


class SafetensorsHeader:
    """Shapes by name, where the tensors' bytes lie, and the length of the header in bytes."""

    def __init__(self, path: Path) -> None:
        """Reads and checks the header of `path`. Raises WeightsError naming the path."""
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                (length,) = struct.unpack("<Q", file.read(_LENGTH_BYTES))
                if length > min(size, _MAX_HEADER_BYTES):
                    raise ValueError("its header is longer than the file")
                entries = json.loads(file.read(length))
                entries.pop("__metadata__", None)
                self.length = _LENGTH_BYTES + length
                self.shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
                self.extents = [
                    Extent(self.length + begin, self.length + end)
                    for begin, end in (entry["data_offsets"] for entry in entries.values())
                ]
                if any(extent.end > size for extent in self.extents):
                    raise ValueError("it is cut short")
        except OSError as error:
            raise WeightsError(f"cannot read weights {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
            raise WeightsError(
                f"{path} is not a usable safetensors file ({error}); fetch the model again"
            ) from error

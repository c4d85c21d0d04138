"""Makers of adapter directories that must be refused: each spoils one thing of a good adapter."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from safetensors.torch import save

from support.models import adapter_tensors, write_adapter


def weights(directory: Path, data: bytes) -> None:
    write_adapter(directory)
    (directory / "adapter_model.safetensors").write_bytes(data)


def config(directory: Path, text: str | bytes) -> None:
    write_adapter(directory)
    (directory / "adapter_config.json").write_bytes(text.encode() if isinstance(text, str) else text)


def tensors(directory: Path, **changed: torch.Tensor) -> None:
    """The good tensors with some replaced; a dot in a name is written as two underscores."""
    tensors = adapter_tensors(4, 0)
    prefix = "base_model.model.model.layers.0.self_attn."
    tensors |= {prefix + name.replace("__", "."): value for name, value in changed.items()}
    write_adapter(directory, tensors=tensors)


def without(directory: Path, file: str) -> None:
    write_adapter(directory)
    (directory / file).unlink()


def good() -> bytes:
    return save(adapter_tensors(4, 0))


def header(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def sparse_config(directory: Path) -> None:
    write_adapter(directory)
    sparse(directory / "adapter_config.json", 1 << 30)

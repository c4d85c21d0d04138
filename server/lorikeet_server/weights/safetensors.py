"""Base weights from a directory of safetensors files, one file or many behind an index."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from lorikeet_server.weights.digest import BaseDigest, Extent
from lorikeet_server.weights.error import WeightsError
from lorikeet_server.weights.source import Slice

if TYPE_CHECKING:
    import torch

WHOLE = "model.safetensors"
INDEX = f"{WHOLE}.index.json"
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own bound


class SafetensorsSource:
    """The tensors of a Hugging Face model directory, in their stored dtype. Implements `WeightSource`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._config = read_json(directory / "config.json")
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._headers: dict[Path, _Header] = {}
        wanted = _indexed(directory)
        for path in _weight_files(directory, wanted):
            header = _Header(path)
            self._headers[path] = header
            for name, shape in header.shapes.items():
                # A consolidated copy beside the shards repeats their names; the index says which file counts.
                if wanted is not None and wanted.get(name) != path.name:
                    continue
                if name in self._files:
                    raise WeightsError(
                        f"{self._files[name]} and {path.name} both hold {name}; leave one of them there"
                    )
                self._files[name] = path
                self._shapes[name] = shape
        missing = sorted(set(wanted or ()) - set(self._files))
        if missing:
            raise WeightsError(
                f"{directory / INDEX} names {missing[0]}, which its file does not hold; fetch the model again"
            )

    @property
    def config(self) -> dict[str, Any]:
        return dict(self._config)

    @property
    def digest(self) -> str:
        digest = BaseDigest()
        digest.add(json.dumps(self._config, sort_keys=True).encode())
        for path, header in sorted(self._headers.items()):
            digest.add(path.name.encode())
            digest.add_file(path, header.length, header.extents)
        return digest.hexdigest()

    def names(self) -> list[str]:
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        self._file(name)
        return self._shapes[name]

    def load(self, name: str, part: Slice | None = None) -> torch.Tensor:
        path, shape = self._file(name), self._shapes[name]
        if part is not None and (part.dim >= len(shape) or part.stop > shape[part.dim]):
            raise WeightsError(
                f"{name} of shape {shape} has no slice {part.start}..{part.stop} of dimension {part.dim}"
            )
        try:
            # Opened for each tensor: the mapping is cheap, and a mapping kept open would count as our memory.
            with safe_open(path, framework="pt") as file:
                if part is None:
                    tensor: torch.Tensor = file.get_tensor(name)
                else:
                    piece = file.get_slice(name)
                    span = slice(part.start, part.stop)
                    tensor = piece[span] if part.dim == 0 else piece[:, span]
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"cannot read {name} from {path}: {error}") from error
        return tensor.contiguous()

    def _file(self, name: str) -> Path:
        if name not in self._files:
            raise WeightsError(f"model directory {self.directory} has no tensor {name}")
        return self._files[name]


class _Header:
    """One file's tensors: shapes by name and where their bytes lie."""

    def __init__(self, path: Path) -> None:
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
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise WeightsError(
                f"{path} is not a usable safetensors file ({error}); fetch the model again"
            ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model directory. Raises WeightsError naming the path."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(
            f"cannot read {path}: {error.strerror or error}; --model-id wants a model directory"
        ) from error
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON ({error}); fetch the model again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is not a JSON object; fetch the model again")
    return content


def _indexed(directory: Path) -> dict[str, str] | None:
    """File name by tensor name, if the model has an index. As in transformers, it says nothing where there is
    one whole file."""
    if (directory / WHOLE).is_file() or not (directory / INDEX).is_file():
        return None
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise WeightsError(f"{directory / INDEX} has no weight_map; fetch the model again")
    return weight_map


def _weight_files(directory: Path, wanted: dict[str, str] | None) -> list[Path]:
    if wanted is not None:
        names = sorted(set(wanted.values()))
        if any(Path(name).name != name for name in names):
            raise WeightsError(f"{directory / INDEX} names a file outside its directory")
        return [directory / name for name in names]
    if (directory / WHOLE).is_file():  # whatever lies beside it: an average, an adapter, another precision
        return [directory / WHOLE]
    files = sorted(directory.glob("*.safetensors"))
    files = [file for file in files if file.name != "adapter_model.safetensors"]
    if not files:
        raise WeightsError(
            f"model directory {directory} has no .safetensors files; pickled .bin weights are not read"
        )
    return files

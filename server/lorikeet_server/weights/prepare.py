"""Turns what `--model-id` names into files on this machine: weights to load and a tokenizer directory to
read."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from lorikeet_server.config import cache_directory
from lorikeet_server.weights.demo import DEMO_ID, demo_model
from lorikeet_server.weights.error import WeightsError
from lorikeet_server.weights.hub import fetch, is_hub_id
from lorikeet_server.weights.json_file import read_json
from lorikeet_server.weights.safetensors import SafetensorsSource

TOKENIZER_JSON = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model ready to serve. `model_path` is a directory or a .gguf file for `open_source`; `tokenizer_path`
    is a directory with tokenizer.json, tokenizer_config.json, config.json and generation_config.json."""

    model_id: str
    model_path: Path
    tokenizer_path: Path

    def to_json(self) -> str:
        """One line, as the launcher reads it."""
        return json.dumps(
            {
                "model_id": self.model_id,
                "model_path": str(self.model_path),
                "tokenizer_path": str(self.tokenizer_path),
            }
        )


def prepare(model_id: str, revision: str | None = None, cache_dir: Path | None = None) -> Prepared:
    """Resolves `model_id`: `smollm2`, a .gguf file, a directory, or a hub id (which is fetched).

    `cache_dir` holds what has to be generated or fetched; by default the user's cache. Raises WeightsError
    with one line that names the path or flag and the remedy.
    """
    path = demo_model() if model_id == DEMO_ID else Path(model_id).expanduser()
    if path.suffix == ".gguf":
        return Prepared(
            model_id, path.resolve(), _gguf_tokenizer(path.resolve(), cache_dir or cache_directory())
        )
    if not path.is_dir():
        if path.exists():
            raise WeightsError(f"--model-id {model_id} is neither a directory nor a .gguf file")
        if not is_hub_id(model_id):
            raise WeightsError(f"--model-id {model_id}: no such directory or .gguf file")
        path = fetch(model_id, revision, cache_dir)
    return _directory(model_id, path.resolve())


def _directory(model_id: str, directory: Path) -> Prepared:
    # Opening reads every header, so that a broken download is told now and not by a shard.
    SafetensorsSource(directory)
    if not (directory / TOKENIZER_JSON).is_file():
        raise WeightsError(
            f"model directory {directory} has no {TOKENIZER_JSON}; save the fast tokenizer there"
        )
    return Prepared(model_id, directory, directory)


def _gguf_tokenizer(path: Path, cache_dir: Path) -> Path:
    """Writes the tokenizer directory of a GGUF file; a tokenizer.json beside it goes first."""
    # Imported here: a safetensors model needs no gguf package.
    from lorikeet_server.weights.gguf import GgufSource
    from lorikeet_server.weights.gguf_config import generation_config
    from lorikeet_server.weights.tokenizer import tokenizer_config, tokenizer_json

    source = GgufSource(path)
    own = path.parent / TOKENIZER_JSON
    objects = {
        "config.json": source.config,
        "generation_config.json": generation_config(source.header),
        TOKENIZER_JSON: read_json(own) if own.is_file() else tokenizer_json(source.header, path),
        "tokenizer_config.json": tokenizer_config(source.header),
    }
    files = {name: json.dumps(content, ensure_ascii=False, indent=1) for name, content in objects.items()}
    return _stored(files, cache_dir)


def _stored(files: dict[str, str], cache_dir: Path) -> Path:
    """A directory of the cache with just `files`. Its name is their digest: it is never out of date."""
    key = sha256(json.dumps(files).encode()).hexdigest()[:32]
    target = cache_dir / "tokenizers" / key
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place whole: a reader beside us sees all files or none.
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            draft = Path(temporary) / "draft"
            draft.mkdir()
            for name, content in files.items():
                (draft / name).write_text(content, encoding="utf-8")
            try:
                draft.rename(target)
            except OSError:
                if not target.is_dir():  # otherwise another process was first
                    raise
    except OSError as error:
        raise WeightsError(f"cannot write to cache {cache_dir}: {error.strerror}; set --cache-dir") from error
    return target

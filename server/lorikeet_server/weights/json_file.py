"""JSON files of a model directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorikeet_server.weights.error import WeightsError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model directory. Raises WeightsError naming the path."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(
            f"cannot read {path}: {error.strerror or error}; --model-id wants a model directory"
        ) from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON ({error}); fetch the model again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is not a JSON object; fetch the model again")
    return content

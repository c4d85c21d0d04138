"""Models from the Hugging Face hub: only the files that are read here, and never a pickle."""

from __future__ import annotations

import re
from pathlib import Path

from lorikeet_server.weights.error import WeightsError

_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer*"]
_UNWANTED = [
    *("*.bin", "*.pt", "*.pth", "*.pkl", "consolidated*", "adapter_model.safetensors"),
    *("*/*.safetensors", "*/*.json", "*/tokenizer*"),  # of folders, templates alone
]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_hub_id(model_id: str) -> bool:
    """Whether `model_id` can name a hub repository: `name` or `owner/name`."""
    return _HUB_ID.fullmatch(model_id) is not None and not model_id.endswith(".gguf")


def fetch(model_id: str, revision: str | None, cache_dir: Path | None) -> Path:
    """Fetches a model into the hub's cache (or `cache_dir`) and returns its directory. Progress goes to
    stderr.

    Works offline if the model is in the cache. Raises WeightsError with one line.
    """
    # Imported here: a local model needs no hub client.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"--model-id {model_id}"
    try:
        directory = snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
        )
    except GatedRepoError as error:
        raise WeightsError(
            f"{at}: access to this model is restricted; accept its terms and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsError(f"{at} has no revision {revision}; check --revision") from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"{at}: no such directory, nor such a model on the hub (private ones want HF_TOKEN)"
        ) from error
    except LocalEntryNotFoundError as error:
        raise WeightsError(
            f"{at} is not a local path, not cached, and the hub cannot be reached; give a directory"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{at} cannot be fetched from the hub: {reason}") from error
    return Path(directory)

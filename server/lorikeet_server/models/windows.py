"""Sliding attention windows, as config.json gives them: whole models, or some of the layers."""

from collections.abc import Sequence
from typing import Any

from lorikeet_server.errors import ModelError

# Of each layer: how many keys a query sees, its own included; None for all before it.
LayerWindows = tuple[int | None, ...]


def no_windows(raw: dict[str, Any]) -> LayerWindows:
    """Llama's: full attention in every layer."""
    return (None,) * int(raw["num_hidden_layers"])


def one_window(raw: dict[str, Any]) -> LayerWindows:
    """Mistral's: `sliding_window` holds in every layer. Null is none; left out, transformers' own."""
    given = raw.get("sliding_window", 4096)
    return (None if given is None else _window(given),) * int(raw["num_hidden_layers"])


def some_windows(raw: dict[str, Any]) -> LayerWindows:
    """Qwen's: where `use_sliding_window` is set, `sliding_window` holds in the layers that `layer_types` has,
    or from `max_window_layers` on. What is left out has the values that transformers gives it."""
    layers = int(raw["num_hidden_layers"])
    given = raw.get("sliding_window", 4096) if raw.get("use_sliding_window") else None
    window = None if given is None else _window(given)
    full = layers if window is None else int(raw.get("max_window_layers", 28))
    types = ["full_attention" if layer < full else "sliding_attention" for layer in range(layers)]
    return _by_type(raw.get("layer_types") or types, layers, window)


def alternating_windows(raw: dict[str, Any]) -> LayerWindows:
    """Gemma 2's: `sliding_window` holds in the layers that `layer_types` has, or in every other from the
    first on."""
    layers, window = int(raw["num_hidden_layers"]), _window(raw["sliding_window"])
    types = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
    return _by_type(raw.get("layer_types") or types, layers, window)


def _by_type(types: Sequence[str], layers: int, window: int | None) -> LayerWindows:
    if len(types) != layers:
        raise ModelError(f"layer_types in config.json names {len(types)} layers, the model has {layers}")
    if unknown := set(types) - {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"layer type {min(unknown)!r} in config.json is not supported; known: full_attention, "
            "sliding_attention"
        )
    if window is None and "sliding_attention" in types:
        raise ModelError("config.json has layers of sliding_attention, but no sliding_window in use")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _window(given: Any) -> int:
    window = int(given)
    if window < 1:
        raise ModelError(f"sliding_window {window} in config.json hides every key; it must be at least 1")
    return window

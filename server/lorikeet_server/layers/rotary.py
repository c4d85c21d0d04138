"""Rotary position tables, computed in the float32 steps that transformers uses, so that the values are
equal."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from lorikeet_server.errors import ModelError


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary settings. Kinds: `default`, `linear`, `llama3`."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Rope":
        """Reads both spellings: `rope_theta` with `rope_scaling`, and the newer `rope_parameters`. Which
        counts if both are there, and where the original length comes from, is as in transformers."""
        settings = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if not isinstance(settings, dict):
            raise ModelError(f"{settings!r} in config.json are no rotary settings; they must be an object")
        if any(isinstance(value, dict) for value in settings.values()):
            raise ModelError("rope_parameters in config.json differ by layer, which is not supported")
        kind = settings.get("rope_type", settings.get("type", "default"))
        if kind not in ("default", "linear", "llama3"):
            raise ModelError(
                f"rope scaling {kind!r} in config.json is not supported; known: default, linear, llama3"
            )
        if float(settings.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))) != 1.0:
            raise ModelError("partial_rotary_factor in config.json is not supported; heads must rotate whole")
        theta = float(settings.get("rope_theta", config.get("rope_theta", 10000.0)))
        if kind == "default":
            return cls(theta)
        factor = float(settings["factor"])
        if kind == "linear":
            return cls(theta, kind, factor)
        length = "original_max_position_embeddings"
        original = config.get(length) or settings.get(length) or config["max_position_embeddings"]
        low, high = float(settings["low_freq_factor"]), float(settings["high_freq_factor"])
        return cls(theta, kind, factor, low, high, int(original))


def cos_sin_table(rope: Rope, head_dim: int, positions: int) -> torch.Tensor:
    """`[positions, head_dim]` float32: cosines in the first half of a row, sines in the second."""
    angles = torch.arange(positions, dtype=torch.float32).unsqueeze(1) * _frequencies(rope, head_dim)
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def _frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequency = 1.0 / (rope.theta**exponent)  # [head_dim / 2]
    if rope.kind == "linear":
        return frequency / rope.factor
    if rope.kind == "llama3":
        return _llama3(frequency, rope)
    return frequency


def _llama3(frequency: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    wavelength = 2 * math.pi / frequency
    longest = rope.original_positions / rope.low_freq_factor
    shortest = rope.original_positions / rope.high_freq_factor
    stretched = torch.where(wavelength > longest, frequency / rope.factor, frequency)
    smooth = (rope.original_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - smooth) * stretched / rope.factor + smooth * stretched
    return torch.where((wavelength >= shortest) & (wavelength <= longest), between, stretched)

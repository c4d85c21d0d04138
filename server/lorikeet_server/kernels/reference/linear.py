"""Weights of linears as torch multiplies by them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lorikeet_server.kernels.packed_linear import LinearMode


@dataclass(frozen=True, slots=True)
class ReferenceLinear:
    """A rounded weight in the dtype of activations."""

    weight: Tensor  # [out, in]
    mode: LinearMode

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]


def round_weight(weight: Tensor, mode: LinearMode) -> Tensor:
    """`weight` [out, in] in the dtype that `mode` names. Raises `ValueError` if a finite one would
    overflow."""
    if weight.dim() != 2 or mode not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"cannot pack a weight of shape {list(weight.shape)} as {mode}")
    rounded = weight.to(getattr(torch, mode))
    if mode == "float16" and bool((rounded.isinf() & weight.isfinite()).any()):
        raise ValueError("a weight is beyond the range of float16; use bfloat16 or float32")
    return rounded

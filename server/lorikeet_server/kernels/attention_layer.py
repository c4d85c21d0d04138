"""The part of a layer's attention that is the same for every step."""

from dataclasses import dataclass

from torch import Tensor

from lorikeet_server.kernels.attention_shape import AttentionShape


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class AttentionLayer:
    """Heads, cache and rotary table, on the backend's device. The tensors never move."""

    shape: AttentionShape
    k_cache: Tensor  # as `Kernels.kv_layout` says
    v_cache: Tensor
    # f32 [max_position, D]: cosines in the first half of a row, sines in the second (the "rotate half" layout
    # of Hugging Face).
    cos_sin: Tensor

"""Adapter tables for the definition of the LoRA product."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from lorikeet_server.device.base import Parcel
from lorikeet_server.device.parcel import Singly
from lorikeet_server.kernels.lora_batch import LoraBatch, LoraSegments, RowSlots
from lorikeet_server.kernels.lora_layout import LoraModule
from lorikeet_server.kernels.lora_tables import LoraBatcher, LoraTables


class TorchLoraTables(LoraTables):
    """Tables that are read on the host, for adapters on any device."""

    def __init__(
        self, modules: Sequence[LoraModule], num_slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(modules, num_slots, dtype)
        self._device = device

    def batcher(self, parcel: Parcel | None = None) -> LoraBatcher:
        parcel = parcel or Singly(self._device)

        def build(row_slots: RowSlots, most: int | None = None) -> LoraBatch:
            segments = LoraSegments.build(row_slots)
            return replace(segments, permutation=parcel.add(segments.permutation.numpy()))

        return build

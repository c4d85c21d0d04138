"""One adapter as the kernels read it: all of its matrices in one piece of memory, and where in it they are.

It knows nothing of files, names or LRU, and a slot of the tables is filled by copying its `entries`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lorikeet_server.kernels.lora_layout import LoraForm

# One slice of one adapter, as `LoraEntry` of both csrc/cpu/types.h and csrc/cuda/lorikeet/tables.h.
ENTRY = np.dtype(
    [
        ("a", np.int64),  # address of A; 0: the adapter does not target the slice
        ("b", np.int64),  # address of B
        ("g", np.int64),  # address of DoRA's scale per channel, f32; 0: none
        ("rank", np.int32),  # as stored
        ("scale", np.float32),
    ]
)
Entries = npt.NDArray[np.void]

_ALIGN = 64  # bytes; every matrix starts on a cache line


class LoraMatrices(NamedTuple):
    """What an adapter does to a slice: y = channel_scale (y + scale x A^T B^T)."""

    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    scale: float  # alpha / rank or its like
    channel_scale: Tensor | None = None  # f32 [out], DoRA's m / ||W + scale B A||


def zeros(size: int) -> Tensor:
    """`size` bytes of host memory."""
    return torch.zeros(size, dtype=torch.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class LoraAdapter:
    """Entries point into `memory`, which they keep alive. A stored rank may be larger than the adapter's:
    what is beyond is zero."""

    form: LoraForm
    memory: Tensor  # u8 [bytes], padding included; on any device
    entries: Entries  # `ENTRY` [slices]

    @classmethod
    def allocate(
        cls,
        form: LoraForm,
        ranks: npt.NDArray[np.int64],
        scales: npt.NDArray[np.float32],
        take: Callable[[int], Tensor] = zeros,
        dora: npt.NDArray[np.bool_] | None = None,
    ) -> Self:
        """Room for an adapter whose slices have these `ranks` (0: not targeted) and `scales` [slices]; `dora`
        says which have a scale per channel. `take` gives at least as many bytes as it is asked for."""
        unit, size = form.layout.rank_unit, form.dtype.itemsize
        stored = -(-ranks // unit) * unit
        outputs = np.array(form.outputs)
        channels = np.zeros_like(outputs) if dora is None else outputs * dora
        sizes = np.stack((stored * form.inputs * size, stored * outputs * size, channels * 4), axis=1)
        padded = -(-sizes // _ALIGN) * _ALIGN
        ends = padded.cumsum()
        memory = take(int(ends[-1]))
        places = np.where(sizes > 0, memory.data_ptr() + ends.reshape(sizes.shape) - padded, 0)
        entries = np.zeros(len(stored), ENTRY)
        entries["a"], entries["b"], entries["g"] = places.T
        entries["rank"], entries["scale"] = stored, np.where(stored > 0, scales, 0)
        return cls(form, memory, entries)

    @classmethod
    def of(cls, form: LoraForm, matrices: Mapping[int, LoraMatrices]) -> Self:
        """A copy of the matrices of some slices, in host memory. Raises `ValueError` if one does not fit."""
        ranks, scales = np.zeros(len(form.inputs), np.int64), np.zeros(len(form.inputs), np.float32)
        dora = np.zeros(len(ranks), np.bool_)
        for index, (a, b, scale, g) in matrices.items():
            rank, out = len(a), form.outputs[index]
            shapes = [list(each.shape) for each in (a, b, *(() if g is None else (g,)))]
            wanted = [[rank, form.inputs[index]], [out, rank], [out]]
            if rank == 0 or shapes != wanted[: len(shapes)]:
                raise ValueError(f"slice {index} takes A, B of the shapes {wanted[:2]}, not {shapes}")
            ranks[index], scales[index], dora[index] = rank, scale, g is not None
        adapter = cls.allocate(form, ranks, scales, dora=dora)
        for index, (a, b, _, g) in matrices.items():
            held = adapter.get(index)
            assert held is not None
            held.a[: len(a)].copy_(a)
            for outputs, part in adapter._b_parts(index):
                part[..., : len(a)] = b[outputs].reshape(*part.shape[:2], len(a))
            if held.channel_scale is not None and g is not None:
                held.channel_scale.copy_(g)
        return adapter

    def at(self, memory: Tensor) -> Self:
        """The same adapter where its bytes have been copied to: `memory` u8, of equal size, on any device."""
        entries = self.entries.copy()
        for name in ("a", "b", "g"):
            entries[name] += (entries[name] != 0) * (memory.data_ptr() - self.memory.data_ptr())
        return replace(self, memory=memory, entries=entries)

    def get(self, index: int) -> LoraMatrices | None:
        """The matrices of a slice, the stored rank high and wide; None if it is not targeted. Views, but for
        a B in panels."""
        entry, form = self.entries[index], self.form
        if not entry["a"]:
            return None
        rank, out = int(entry["rank"]), form.outputs[index]
        a = self._view(entry["a"], (rank, form.inputs[index]), form.dtype)
        parts = [part.reshape(-1, rank) for _, part in self._b_parts(index)]
        b = parts[0] if len(parts) == 1 else torch.cat(parts)
        g = self._view(entry["g"], (out,), torch.float32) if entry["g"] else None
        return LoraMatrices(a, b, float(entry["scale"]), g)

    def _b_parts(self, index: int) -> Iterator[tuple[slice, Tensor]]:
        entry, form = self.entries[index], self.form
        rank = int(entry["rank"])
        return form.layout.b_parts(self._view(entry["b"], (form.outputs[index] * rank,), form.dtype), rank)

    def _view(self, address: np.int64, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        at = int(address) - self.memory.data_ptr()
        return self.memory[at : at + np.prod(shape) * dtype.itemsize].view(dtype).view(shape)

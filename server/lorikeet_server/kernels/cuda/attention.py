"""Paged attention by FlashInfer: from the tables of a step to its plans, one for all layers of a shape.

Decodes that are captured have wrappers for each number of sequences, with buffers that stay in their place;
everything else goes through wrappers that take any mixture of prompts and decodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorikeet_server.device.base import Parcel
from lorikeet_server.kernels.attention_layer import AttentionLayer
from lorikeet_server.kernels.attention_shape import AttentionShape
from lorikeet_server.kernels.cuda.attention_scratch import scratch_bytes
from lorikeet_server.kernels.sequence_tables import SequenceTables

HEAD_DIMS = (64, 128, 256)  # that FlashInfer's templates are made for
PLAN_BYTES = 8 << 20
# Those for Hopper are said to be half as fast again, which few prompts are long enough to notice beside the
# base products; but one module of them compiles for 14 minutes of one core, of these for 2 (nvcc 13.2).
TEMPLATES = "fa2"
TENSOR_CORE_GROUP = 4  # query heads per key head from which tensor cores pay in a decode


@dataclass(frozen=True, slots=True)
class FlashInferPlan:
    """The wrappers that have been planned for the step."""

    wrappers: dict[AttentionShape, Any]

    def attend(self, q: Tensor, layer: AttentionLayer) -> Tensor:
        """`q` [T, H * D], rows may be strided -> [T, H * D]."""
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        heads = q.shape[0], layer.shape.num_heads, layer.shape.head_dim
        caches = layer.k_cache, layer.v_cache
        self.wrappers[layer.shape].run(q.view(heads), caches, out=out.view(heads))
        return out


@dataclass(frozen=True, slots=True)
class Pages:
    """The cache blocks of all sequences, one after the other."""

    indptr: Tensor  # i32 [S + 1], host
    indices: Tensor  # i32, device
    last_page_len: Tensor  # i32 [S], host
    lengths: Tensor  # i32 [S], host
    size: int  # keys of a page

    @staticmethod
    def of(sequences: SequenceTables, size: int, parcel: Parcel, device: torch.device) -> "Pages":
        """From block tables. FlashInfer reads the indices when it runs, and copies the rest by itself."""
        tables, lengths = sequences.block_tables.numpy(), sequences.context_len.numpy()
        pages = -(-lengths // size)
        indptr = np.zeros(lengths.size + 1, np.int32)
        np.cumsum(pages, out=indptr[1:])
        indices = parcel.add(tables[np.arange(tables.shape[1]) < pages[:, None]])
        last = ((lengths - 1) % size + 1).astype(np.int32)
        starts, ends = (pinned(torch.from_numpy(array), device) for array in (indptr, last))
        return Pages(starts, indices, ends, pinned(sequences.context_len, device), size)

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """As FlashInfer takes them."""
        return self.indptr, self.indices, self.last_page_len


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """In memory that FlashInfer's own copies to `device` do not wait for."""
    return tensor if device.type == "cpu" else tensor.pin_memory()


class FlashInferAttention:
    """Makes plans. `library` is the module `flashinfer`, or what behaves like it."""

    def __init__(self, library: Any, device: torch.device, dtype: torch.dtype, processors: int) -> None:
        self._library, self._device, self._dtype = library, device, dtype
        self._processors = processors
        # One layer runs at a time, so all wrappers may share their scratch memory.
        self._scratch = torch.zeros(0, dtype=torch.uint8, device=device)
        # One step runs at a time, so all wrappers of a shape may share the memory of their plans.
        self._plans: dict[AttentionShape, Tensor] = {}
        self._any: dict[AttentionShape, Any] = {}
        self._fixed: dict[tuple[AttentionShape, int], tuple[int, int, Any]] = {}
        self._copied: torch.cuda.Event | None = None

    @staticmethod
    def supports(shape: AttentionShape) -> bool:
        """Whether there are kernels for heads of this width."""
        return shape.head_dim in HEAD_DIMS

    def reserve(self, shapes: Sequence[AttentionShape], sequences: int) -> None:
        """See `ops.Kernels.reserve`."""
        size = max(scratch_bytes(shape, sequences, self._processors) for shape in shapes)
        if size > self._scratch.nbytes:
            self._any.clear()
            self._fixed.clear()
            self._scratch = torch.zeros(size, dtype=torch.uint8, device=self._device)

    def plan(
        self,
        sequences: SequenceTables,
        shapes: Sequence[AttentionShape],
        block_size: int,
        parcel: Parcel,
        fixed: bool,
    ) -> FlashInferPlan:
        """See `ops.Kernels.plan`."""
        if self._copied is not None:
            # A wrapper writes its plan into one pinned buffer, whose copy for the last step must have begun.
            # The router sends a step once the step before the last is answered: this hardly ever waits.
            self._copied.synchronize()
        pages = Pages.of(sequences, block_size, parcel, self._device)
        if fixed:
            planned = FlashInferPlan({shape: self._plan_decodes(shape, sequences, pages) for shape in shapes})
        else:
            starts = sequences.query_start
            longest, starts = int(starts.diff().max()), pinned(starts, self._device)
            planned = FlashInferPlan(
                {shape: self._plan_any(shape, starts, longest, pages) for shape in shapes}
            )
        if self._device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        return planned

    def _plan_any(self, shape: AttentionShape, starts: Tensor, longest: int, pages: Pages) -> Any:
        """For sequences whose queries begin at `starts` [S + 1], at most `longest` of one."""
        if shape not in self._any:
            wrapper = self._library.BatchPrefillWithPagedKVCacheWrapper
            self._any[shape] = self._shared(wrapper(self._scratch, "NHD", backend=TEMPLATES), shape)
        sizes = shape.num_heads, shape.num_kv_heads, shape.head_dim, pages.size
        options = {"causal": True, "max_token_per_sequence": longest, **self._options(shape, pages)}
        self._any[shape].plan(starts, *pages.tables, *sizes, **options)
        return self._any[shape]

    def _plan_decodes(self, shape: AttentionShape, sequences: SequenceTables, pages: Pages) -> Any:
        """For one query each. The first call for a number of sequences has the widest tables."""
        count, width = sequences.block_tables.shape
        address, room, wrapper = self._fixed.get((shape, count), (0, 0, None))
        if room < width or address != pages.indices.data_ptr():
            wrapper = self._shared(self._decode_wrapper(shape, count, width, pages.indices), shape)
            self._fixed[shape, count] = pages.indices.data_ptr(), width, wrapper
        sizes = shape.num_heads, shape.num_kv_heads, shape.head_dim, pages.size
        wrapper.plan(*pages.tables, *sizes, **self._options(shape, pages))
        return wrapper

    def _decode_wrapper(self, shape: AttentionShape, count: int, width: int, indices: Tensor) -> Any:
        """It would copy indices into a buffer of its own: this one is where they are, with room for more."""
        starts, ends = (torch.empty(n, dtype=torch.int32, device=self._device) for n in (count + 1, count))
        return self._library.BatchDecodeWithPagedKVCacheWrapper(
            self._scratch,
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=shape.num_heads // shape.num_kv_heads >= TENSOR_CORE_GROUP,
            paged_kv_indptr_buffer=starts,
            paged_kv_indices_buffer=indices.as_strided((count * width,), (1,)),
            paged_kv_last_page_len_buffer=ends,
        )

    def _options(self, shape: AttentionShape, pages: Pages) -> dict[str, Any]:
        kinds = {"q_data_type": self._dtype, "kv_data_type": self._dtype}
        # FlashInfer counts the keys to the left of a query's own, and -1 is all.
        left = -1 if shape.window is None else shape.window - 1
        scores = {"sm_scale": shape.scale, "window_left": left, "logits_soft_cap": shape.soft_cap}
        return {"seq_lens": pages.lengths, "non_blocking": True, **scores, **kinds}

    def _shared(self, wrapper: Any, shape: AttentionShape) -> Any:
        if shape not in self._plans:
            self._plans[shape] = torch.empty(PLAN_BYTES, dtype=torch.uint8, device=self._device)
        wrapper.reset_workspace_buffer(self._scratch, self._plans[shape])
        return wrapper

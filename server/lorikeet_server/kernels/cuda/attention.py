"""Paged attention by FlashInfer: from the tables of a step to its plans, one for all layers.

Decodes that are captured have a wrapper for each number of sequences, with buffers that stay in their place;
everything else goes through one wrapper that takes any mixture of prompts and decodes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lorikeet_server.kernels.ops import AttentionShape
from lorikeet_server.kernels.reference_attention import upload

HEAD_DIMS = (64, 128, 256)  # that FlashInfer's templates are made for
WORKSPACE_BYTES = 128 << 20  # as its documentation recommends
PLAN_BYTES = 8 << 20
TENSOR_CORE_GROUP = 4  # query heads per key head from which tensor cores pay in a decode


@dataclass(frozen=True, slots=True)
class FlashInferPlan:
    """A wrapper that has been planned for the step."""

    wrapper: Any

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, heads: int) -> Tensor:
        """`q` [T, H * D], rows may be strided -> [T, H * D]."""
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        shape = q.shape[0], heads, -1
        self.wrapper.run(q.view(shape), (k_cache, v_cache), out=out.view(shape))
        return out


@dataclass(frozen=True, slots=True)
class Pages:
    """The cache blocks of all sequences, one after the other."""

    indptr: Tensor  # i32 [S + 1], host
    indices: Tensor  # i32, device
    last_page_len: Tensor  # i32 [S], host
    lengths: Tensor  # i32 [S], host

    @staticmethod
    def of(tables: npt.NDArray[np.int32], context: Tensor, block_size: int, device: torch.device) -> "Pages":
        """From tables [S, max_blocks], whose entries past a context mean nothing."""
        lengths = context.numpy()
        pages = -(-lengths // block_size)
        indptr = np.zeros(lengths.size + 1, np.int32)
        np.cumsum(pages, out=indptr[1:])
        indices = tables[np.arange(tables.shape[1]) < pages[:, None]]
        last = (lengths - 1) % block_size + 1
        starts, ends = (pinned(torch.from_numpy(array), device) for array in (indptr, last.astype(np.int32)))
        return Pages(starts, upload(torch.from_numpy(indices), device), ends, pinned(context, device))


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """In memory that FlashInfer's own copies to `device` do not wait for."""
    return tensor if device.type == "cpu" else tensor.pin_memory()


class FlashInferAttention:
    """Makes plans. `library` is the module `flashinfer`, or what behaves like it."""

    def __init__(self, library: Any, device: torch.device, dtype: torch.dtype) -> None:
        self._library, self._device, self._dtype = library, device, dtype
        # One step runs at a time, so all wrappers may share their scratch memory.
        self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._plans = torch.empty(PLAN_BYTES, dtype=torch.uint8, device=device)
        self._any = self._shared(library.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD"))
        self._fixed: dict[int, tuple[int, Any]] = {}
        self._copied: torch.cuda.Event | None = None

    @staticmethod
    def supports(shape: AttentionShape) -> bool:
        """Whether there are kernels for heads of this width."""
        return shape.head_dim in HEAD_DIMS

    def plan(
        self,
        block_tables: Tensor,
        query_start: Tensor,
        context_len: Tensor,
        shape: AttentionShape,
        block_size: int,
        fixed: bool,
    ) -> FlashInferPlan:
        """See `ops.Kernels.plan`."""
        if self._copied is not None:
            # A wrapper writes its plan into one pinned buffer, whose copy for the last step must have begun.
            # The router sends a step once the step before the last is answered: this hardly ever waits.
            self._copied.synchronize()
        pages = Pages.of(block_tables.numpy(), context_len, block_size, self._device)
        sizes = shape.num_heads, shape.num_kv_heads, shape.head_dim, block_size
        if fixed:
            count, width = block_tables.shape
            wrapper = self._decode_wrapper(count, width, shape)
            wrapper.plan(
                pages.indptr, pages.indices, pages.last_page_len, *sizes, **self._options(shape, pages)
            )
        else:
            wrapper = self._any
            starts = query_start.numpy()
            wrapper.plan(
                pinned(query_start, self._device),
                pages.indptr,
                pages.indices,
                pages.last_page_len,
                *sizes,
                causal=True,
                max_token_per_sequence=int((starts[1:] - starts[:-1]).max()),
                **self._options(shape, pages),
            )
        if self._device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        return FlashInferPlan(wrapper)

    def _options(self, shape: AttentionShape, pages: Pages) -> dict[str, Any]:
        kinds = {"q_data_type": self._dtype, "kv_data_type": self._dtype}
        return {"sm_scale": shape.scale, "seq_lens": pages.lengths, "non_blocking": True, **kinds}

    def _decode_wrapper(self, count: int, width: int, shape: AttentionShape) -> Any:
        """For `count` sequences of up to `width` blocks; the first call for a count has the largest width."""
        room, wrapper = self._fixed.get(count, (0, None))
        if room < count * width:
            sizes = count + 1, count * width, count
            buffers = (torch.empty(size, dtype=torch.int32, device=self._device) for size in sizes)
            indptr, indices, last_page_len = buffers
            wrapper = self._shared(
                self._library.BatchDecodeWithPagedKVCacheWrapper(
                    self._workspace,
                    "NHD",
                    use_cuda_graph=True,
                    use_tensor_cores=shape.num_heads // shape.num_kv_heads >= TENSOR_CORE_GROUP,
                    paged_kv_indptr_buffer=indptr,
                    paged_kv_indices_buffer=indices,
                    paged_kv_last_page_len_buffer=last_page_len,
                )
            )
            self._fixed[count] = count * width, wrapper
        return wrapper

    def _shared(self, wrapper: Any) -> Any:
        wrapper.reset_workspace_buffer(self._workspace, self._plans)
        return wrapper

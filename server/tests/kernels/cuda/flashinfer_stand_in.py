"""FlashInfer 0.6.7 as it is documented, in torch: what the backend calls, and where the package is
installed, with the signatures of its own functions."""

import inspect
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

PROCESSORS = 132  # of the device


class Wrapper:
    """Attention as FlashInfer 0.6.7 documents it, from indptr, indices and last page lengths."""

    real: ClassVar[Any] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.made = self.bound("__init__", args, kwargs)
        assert self.made["kv_layout"] == "NHD"

    def bound(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name, as the real method takes them."""
        signature = inspect.signature(inspect.unwrap(getattr(self.real or Documented[type(self)], method)))
        call = signature.bind(self, *args, **kwargs)
        call.apply_defaults()
        return call.arguments

    def reset_workspace_buffer(self, *args: Any) -> None:
        given = self.bound("reset_workspace_buffer", args, {})
        self.scratch, self.plans = given["float_workspace_buffer"], given["int_workspace_buffer"]
        assert self.scratch.dtype == self.plans.dtype == torch.uint8

    def plan(self, *args: Any, **kwargs: Any) -> None:
        self.planned = self.bound("plan", args, kwargs)
        assert self.planned["pos_encoding_mode"] == "NONE"
        assert self.planned["q_data_type"] == self.planned["kv_data_type"] in (torch.bfloat16, torch.float16)

    def split(self, queries: Tensor, *, captured: bool) -> None:
        """Splits the keys of sequences with so many `queries` [S], as `scheduler.cuh` does for tensor cores,
        and raises if the scratch memory is too small for it."""
        planned = self.planned
        heads, kv_heads, dim = planned["num_qo_heads"], planned["num_kv_heads"], planned.get("head_dim_qk")
        dim = dim or planned["head_dim"]
        rows = queries * (heads // kv_heads)
        mean = int(rows.max()) if captured else int(rows.sum()) // len(rows)
        tile = (128 if mean > 64 and dim < 256 else 64) if mean > 16 else 16
        page, left = planned["page_size"], planned["window_left"]
        pages = planned["paged_kv_indptr" if "paged_kv_indptr" in planned else "indptr"].diff()
        seen = pages.clamp(1, -(-(left + tile) // page) if left >= 0 else None)
        tiles, most, longest = -(-rows // tile), 2 * PROCESSORS // kv_heads, int(seen.max())
        chunk = next(
            (c for c in range(max(128 // page, 1), longest) if (tiles * -(-seen // c)).sum() <= most), longest
        )
        parts = int((tiles * -(-seen // chunk)).sum())
        if captured:
            parts = max(most, -(-int(rows.sum()) // tile) + len(rows) - 1)
        self.need(parts * tile if captured or chunk < longest else 0)

    def need(self, rows: int) -> None:
        """Partial results of so many rows, each of all heads; raises if the scratch memory is too small."""
        heads, dim = self.planned["num_qo_heads"], self.planned.get("head_dim_qk")
        self.needed = rows * heads * ((dim or self.planned["head_dim"]) + 1) * 4
        if self.needed > self.scratch.nbytes:
            raise RuntimeError("Buffer overflow when allocating memory for tmp_v")

    def attend(
        self, q: Tensor, cache: tuple[Tensor, Tensor], out: Tensor, queries: list[int], plan: Any
    ) -> None:
        indptr, indices, last = plan
        k_cache, v_cache = cache
        groups = self.planned["num_qo_heads"] // self.planned["num_kv_heads"]
        for s in range(len(last)):
            pages = indices[indptr[s] : indptr[s + 1]].long()
            length = (len(pages) - 1) * self.planned["page_size"] + int(last[s])
            k, v = (
                c[pages].flatten(0, 1)[:length].float().repeat_interleave(groups, 1)
                for c in (k_cache, v_cache)
            )
            rows = slice(queries[s], queries[s + 1])
            scores = torch.einsum("nhd,chd->hnc", q[rows].float(), k) * self.planned["sm_scale"]
            if cap := self.planned["logits_soft_cap"]:
                scores = cap * (scores / cap).tanh()
            n = scores.shape[1]
            mask = torch.ones(n, length, dtype=torch.bool).tril(length - n)
            if (left := self.planned["window_left"]) >= 0:
                mask = mask.triu(length - n - left)
            probability = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            out[rows] = torch.einsum("hnc,chd->nhd", probability, v).to(out.dtype)


class Prefill(Wrapper):
    def plan(self, *args: Any, **kwargs: Any) -> None:
        super().plan(*args, **kwargs)
        assert self.planned["causal"] is True
        starts = self.planned["qo_indptr"]
        assert self.planned["max_token_per_sequence"] == int(starts.diff().max())
        self.split(starts.diff(), captured=False)

    def run(self, *args: Any, **kwargs: Any) -> None:
        given, planned = self.bound("run", args, kwargs), self.planned
        plan = planned["paged_kv_indptr"], planned["paged_kv_indices"], planned["paged_kv_last_page_len"]
        queries = planned["qo_indptr"].tolist()
        self.attend(given["q"], given["paged_kv_cache"], given["out"], queries, plan)


class Decode(Wrapper):
    """Reads its buffers when it runs, as captured work does."""

    def plan(self, *args: Any, **kwargs: Any) -> None:
        super().plan(*args, **kwargs)
        self.buffers = [
            self.made[f"paged_kv_{name}_buffer"] for name in ("indptr", "indices", "last_page_len")
        ]
        names = "indptr", "indices", "last_page_len"
        for buffer, name in zip(self.buffers, names, strict=True):
            buffer[: len(self.planned[name])] = self.planned[name]
        assert len(self.buffers[2]) == len(self.planned["last_page_len"])
        assert self.made["use_cuda_graph"]
        if self.made["use_tensor_cores"]:
            self.split(torch.ones_like(self.planned["last_page_len"]), captured=True)
        else:  # of blocks of 128 threads, the most that a processor runs: by registers there may be fewer
            filling = 2048 // 128 * PROCESSORS // self.planned["num_kv_heads"]
            self.need(filling if len(self.buffers[2]) < filling else 0)

    def run(self, *args: Any, **kwargs: Any) -> None:
        given = self.bound("run", args, kwargs)
        queries = list(range(len(self.buffers[2]) + 1))
        self.attend(given["q"], given["paged_kv_cache"], given["out"], queries, self.buffers)


class DocumentedPrefill:
    """The parts of the real signatures that we use, where the package is not installed."""

    def __init__(self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, backend="auto"): ...  # type: ignore[no-untyped-def]
    def reset_workspace_buffer(self, float_workspace_buffer, int_workspace_buffer): ...  # type: ignore[no-untyped-def]
    def plan(  # type: ignore[no-untyped-def]
        self,
        qo_indptr,
        paged_kv_indptr,
        paged_kv_indices,
        paged_kv_last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim_qk,
        page_size,
        causal=False,
        pos_encoding_mode="NONE",
        sm_scale=None,
        window_left=-1,
        logits_soft_cap=None,
        q_data_type="float16",
        kv_data_type=None,
        non_blocking=True,
        seq_lens=None,
        max_token_per_sequence=None,
    ): ...
    def run(self, q, paged_kv_cache, *args, out=None): ...  # type: ignore[no-untyped-def]


class DocumentedDecode:
    """As above."""

    def __init__(  # type: ignore[no-untyped-def]
        self,
        float_workspace_buffer,
        kv_layout="NHD",
        use_cuda_graph=False,
        use_tensor_cores=False,
        paged_kv_indptr_buffer=None,
        paged_kv_indices_buffer=None,
        paged_kv_last_page_len_buffer=None,
    ): ...
    def reset_workspace_buffer(self, float_workspace_buffer, int_workspace_buffer): ...  # type: ignore[no-untyped-def]
    def plan(  # type: ignore[no-untyped-def]
        self,
        indptr,
        indices,
        last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim,
        page_size,
        pos_encoding_mode="NONE",
        window_left=-1,
        logits_soft_cap=None,
        q_data_type="float16",
        kv_data_type=None,
        sm_scale=None,
        non_blocking=True,
        seq_lens=None,
    ): ...
    def run(self, q, paged_kv_cache, *args, out=None): ...  # type: ignore[no-untyped-def]


Documented: dict[type, type] = {Prefill: DocumentedPrefill, Decode: DocumentedDecode}


def rmsnorm(input: Tensor, weight: Tensor, eps: float) -> Tensor:
    assert input.dtype == weight.dtype
    return F.rms_norm(input.float(), weight.shape, weight.float(), eps).to(input.dtype)


def gemma_rmsnorm(input: Tensor, weight: Tensor, eps: float) -> Tensor:
    assert input.dtype == weight.dtype
    return F.rms_norm(input.float(), weight.shape, weight.float() + 1, eps).to(input.dtype)


def gemma_fused_add_rmsnorm(input: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
    residual += input
    input.copy_(gemma_rmsnorm(residual, weight, eps))


def fused_add_rmsnorm(input: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
    residual += input
    input.copy_(rmsnorm(residual, weight, eps))


def top_p_renorm_probs(probs: Tensor, top_p: Tensor, is_deterministic: bool = False) -> Tensor:
    assert probs.dtype == top_p.dtype == torch.float32 and probs.is_contiguous() and is_deterministic
    assert (probs.sum(-1) - 1).abs().max() < 1e-5
    best = probs.sort(dim=-1, descending=True).values
    before = best.cumsum(-1) - best
    last = best.where(before < top_p.unsqueeze(-1), torch.inf).amin(-1, keepdim=True)
    kept = probs.where(probs >= last, 0)
    return kept / kept.sum(-1, keepdim=True)


def silu_and_mul(input: Tensor) -> Tensor:
    gate, up = input.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(input.dtype)


def gelu_tanh_and_mul(input: Tensor) -> Tensor:
    gate, up = input.float().chunk(2, dim=-1)
    return (F.gelu(gate, approximate="tanh") * up).to(input.dtype)


LIBRARY = SimpleNamespace(
    BatchPrefillWithPagedKVCacheWrapper=Prefill,
    BatchDecodeWithPagedKVCacheWrapper=Decode,
    norm=SimpleNamespace(
        rmsnorm=rmsnorm,
        fused_add_rmsnorm=fused_add_rmsnorm,
        gemma_rmsnorm=gemma_rmsnorm,
        gemma_fused_add_rmsnorm=gemma_fused_add_rmsnorm,
    ),
    activation=SimpleNamespace(silu_and_mul=silu_and_mul, gelu_tanh_and_mul=gelu_tanh_and_mul),
    sampling=SimpleNamespace(top_p_renorm_probs=top_p_renorm_probs),
)

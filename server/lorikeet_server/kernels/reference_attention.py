"""Paged attention in plain torch, on any device. The metadata is read on the host, so nothing waits for a
device.

Cache layout: [block, offset, head, width], with one block more than asked for, where padding rows write.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# Keys and values of a decode are gathered for some sequences at a time, to bound the memory: this many
# numbers.
GATHERED = 1 << 25


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """A step's tables, on the device; what decides shapes is on the host."""

    tables: Tensor  # i64 [S, max_blocks], entries past a context clamped to block 0
    contexts: Tensor  # i64 [S]
    starts: Sequence[int]  # [S + 1]
    lengths: Sequence[int]  # [S]

    @property
    def one_query_each(self) -> bool:
        """Whether this is a step of decodes: then no shape depends on a length."""
        return all(b - a == 1 for a, b in zip(self.starts, self.starts[1:], strict=False))


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` of the host on `device`. Pinned first, or the copy would wait for the device."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Planner:
    """Makes plans. Fixed ones of as many sequences share the tensors of the one with the widest tables, which
    comes first."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._fixed: dict[int, ReferencePlan] = {}

    def __call__(
        self, block_tables: Tensor, query_start: Tensor, context_len: Tensor, fixed: bool
    ) -> ReferencePlan:
        tables = upload(block_tables.long().clamp_(min=0), self._device)
        contexts = upload(context_len.long(), self._device)
        new = ReferencePlan(tables, contexts, query_start.tolist(), context_len.tolist())
        if not fixed:
            return new
        plan = self._fixed.get(block_tables.shape[0])
        if plan is None or plan.tables.shape[1] < tables.shape[1]:
            self._fixed[block_tables.shape[0]] = new
            return new
        plan.tables[:, : tables.shape[1]].copy_(tables, non_blocking=True)
        plan.contexts.copy_(contexts, non_blocking=True)
        return plan


def attend(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: ReferencePlan, scale: float, heads: int, kv_heads: int
) -> Tensor:
    """See `ops.Kernels.paged_attention`."""
    decode = _decode if plan.one_query_each else _mixed
    return decode(q, k_cache, v_cache, plan, scale, heads, kv_heads)


def _decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: ReferencePlan, scale: float, heads: int, kv_heads: int
) -> Tensor:
    """One query per sequence: as few gathers as memory allows, over the whole width of the tables."""
    rows, width = q.shape
    gathered = max(1, plan.tables.shape[1] * k_cache[0].numel())
    out = torch.empty(rows, width, dtype=q.dtype, device=q.device)
    step = max(1, GATHERED // gathered)
    for first in range(0, rows, step):
        part = slice(first, first + step)
        k, v = (c[plan.tables[part]].flatten(1, 2).float() for c in (k_cache, v_cache))  # [S, context, K, D]
        seen = torch.arange(k.shape[1], device=q.device) < plan.contexts[part].unsqueeze(1)  # [S, context]
        # A probability of zero does not silence the NaN that an earlier owner of a block may have left.
        v = v.masked_fill(~seen[:, :, None, None], 0)
        queries = q[part].reshape(k.shape[0], kv_heads, heads // kv_heads, -1).float()
        scores = torch.einsum("skgd,sckd->skgc", queries, k) * scale
        probability = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
        out[part] = torch.einsum("skgc,sckd->skgd", probability, v).flatten(1).to(q.dtype)
    return out


def _mixed(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: ReferencePlan, scale: float, heads: int, kv_heads: int
) -> Tensor:
    """Sequence by sequence."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for s, context in enumerate(plan.lengths):
        rows = slice(plan.starts[s], plan.starts[s + 1])
        queries = q[rows].reshape(-1, heads, q.shape[1] // heads).transpose(0, 1).float()  # [H, n, D]
        blocks = plan.tables[s, : -(-context // k_cache.shape[1])]
        k, v = (c[blocks].flatten(0, 1)[:context].float().transpose(0, 1) for c in (k_cache, v_cache))
        k, v = (c.repeat_interleave(heads // kv_heads, 0) for c in (k, v))  # [H, context, D]
        shape = queries.shape[1], context
        mask = torch.ones(shape, dtype=torch.bool, device=q.device).tril(context - queries.shape[1])
        attended = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask, scale=scale)
        out[rows] = attended.transpose(0, 1).flatten(1).to(q.dtype)
    return out

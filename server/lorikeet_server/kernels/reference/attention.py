"""Paged attention in plain torch, on any device. The metadata is read on the host, so nothing waits for a
device.

Cache layout: [block, offset, head, width], with one block more than asked for, where padding rows write.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lorikeet_server.device.base import Parcel
from lorikeet_server.kernels.attention_layer import AttentionLayer
from lorikeet_server.kernels.sequence_tables import SequenceTables

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


class Planner:
    """Makes plans. Fixed ones of as many sequences have tables as wide as the first."""

    def __init__(self) -> None:
        self._widths: dict[int, int] = {}

    def __call__(self, sequences: SequenceTables, parcel: Parcel, fixed: bool) -> ReferencePlan:
        tables, contexts = sequences.block_tables.long().clamp_(min=0), sequences.context_len
        if fixed:
            count, width = tables.shape
            wide = self._widths[count] = max(width, self._widths.get(count, 0))
            tables = F.pad(tables, (0, wide - width))
        lists = sequences.query_start.tolist(), contexts.tolist()
        return ReferencePlan(parcel.add(tables.numpy()), parcel.add(contexts.long().numpy()), *lists)


def attend(q: Tensor, layer: AttentionLayer, plan: ReferencePlan) -> Tensor:
    """See `ops.Kernels.paged_attention`."""
    return (_decode if plan.one_query_each else _mixed)(q, layer, plan)


def _decode(q: Tensor, layer: AttentionLayer, plan: ReferencePlan) -> Tensor:
    """One query per sequence: as few gathers as memory allows, over the whole width of the tables."""
    (rows, width), kv_heads = q.shape, layer.shape.num_kv_heads
    caches = layer.k_cache, layer.v_cache
    gathered = max(1, plan.tables.shape[1] * layer.k_cache[0].numel())
    out = torch.empty(rows, width, dtype=q.dtype, device=q.device)
    step = max(1, GATHERED // gathered)
    for first in range(0, rows, step):
        part = slice(first, first + step)
        k, v = (c[plan.tables[part]].flatten(1, 2).float() for c in caches)  # [S, context, K, D]
        contexts, keys = plan.contexts[part].unsqueeze(1), torch.arange(k.shape[1], device=q.device)
        seen = keys < contexts  # [S, context]
        if layer.shape.window is not None:
            seen &= keys >= contexts - layer.shape.window
        # A probability of zero does not silence the NaN that an earlier owner of a block may have left.
        v = v.masked_fill(~seen[:, :, None, None], 0)
        queries = q[part].reshape(k.shape[0], kv_heads, -1, layer.shape.head_dim).float()
        scores = _scores(torch.einsum("skgd,sckd->skgc", queries, k), layer)
        probability = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
        out[part] = torch.einsum("skgc,sckd->skgd", probability, v).flatten(1).to(q.dtype)
    return out


def _mixed(q: Tensor, layer: AttentionLayer, plan: ReferencePlan) -> Tensor:
    """Sequence by sequence."""
    heads, kv_heads, dim, scale, window, soft_cap = layer.shape
    caches = layer.k_cache, layer.v_cache
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for s, context in enumerate(plan.lengths):
        rows = slice(plan.starts[s], plan.starts[s + 1])
        queries = q[rows].reshape(-1, heads, dim).transpose(0, 1).float()  # [H, n, D]
        blocks = plan.tables[s, : -(-context // layer.k_cache.shape[1])]
        k, v = (c[blocks].flatten(0, 1)[:context].float().transpose(0, 1) for c in caches)
        k, v = (c.repeat_interleave(heads // kv_heads, 0) for c in (k, v))  # [H, context, D]
        shape, before = (queries.shape[1], context), context - queries.shape[1]
        mask = torch.ones(shape, dtype=torch.bool, device=q.device).tril(before)
        if window is not None:
            mask = mask.triu(before - window + 1)
        if soft_cap is None:
            attended = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask, scale=scale)
        else:
            scores = _scores(queries @ k.transpose(1, 2), layer)
            attended = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
        out[rows] = attended.transpose(0, 1).flatten(1).to(q.dtype)
    return out


def _scores(products: Tensor, layer: AttentionLayer) -> Tensor:
    """Products of queries and keys, scaled and capped."""
    scores, cap = products * layer.shape.scale, layer.shape.soft_cap
    return scores if cap is None else cap * (scores / cap).tanh()

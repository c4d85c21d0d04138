"""Other implementations of the same product, on the same rows and weights. Each adds to `y` as a server does.

Torch's own are always there. Those of vLLM and SGLang (0.5.23) are imported from installed packages, or from
the directories that `--peers` names, which hold the packages `vllm` and `sglang`. All but SGLang's read the
largest rank for every adapter.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.kernels.gpu.layers import Layers, Run
from lorikeet_server.kernels.cuda.tiles import DECODE_ROWS

Peer = Callable[[Layers, int], Run]  # prepared for so many layers


def gather_bmm(layers: Layers, count: int) -> Run:
    """A copy of the adapter for each row, then two batched products; the form for decodes."""
    index = torch.tensor(layers.cell.slots, device=layers.x.device)
    weights, columns = _weights(layers, count), _columns(layers)

    def run(layer: int) -> None:
        for (a, b), part in zip(weights[layer], columns, strict=True):
            v = torch.bmm(a[index], layers.x.unsqueeze(2))
            part.add_(torch.bmm(b[index], v).squeeze(2))

    return run


def grouped_mm(layers: Layers, count: int) -> Run:
    """Torch's grouped product over rows in the order of their adapters."""
    slots = torch.tensor(layers.cell.slots, device=layers.x.device)
    order = slots.argsort(stable=True)
    ends = torch.bincount(slots, minlength=layers.cell.adapters).cumsum(0).int()
    product = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    weights, columns = _weights(layers, count), _columns(layers)
    turned = [[(a.transpose(1, 2), b.transpose(1, 2)) for a, b in layer] for layer in weights]

    def run(layer: int) -> None:
        x = layers.x[order]
        for (a, b), part in zip(turned[layer], columns, strict=True):
            part.index_add_(0, order, product(product(x, a, offs=ends), b, offs=ends))

    return run


def vllm_triton(layers: Layers, count: int) -> Run:
    """vLLM's `lora_shrink` and `lora_expand`, as it configures them by itself."""
    from vllm.lora.ops.triton_ops import (  # type: ignore[import-not-found]
        LoRAKernelMeta,
        lora_expand,
        lora_shrink,
        utils,
    )

    # It keeps tables by the addresses of weights, and the weights with them. A server's stay; ours are freed.
    utils._LORA_A_PTR_DICT.clear()
    utils._LORA_B_PTR_DICT.clear()
    cell, device = layers.cell, layers.x.device
    meta = LoRAKernelMeta.make(cell.adapters, cell.rows, device)
    meta.prepare_tensors(torch.tensor(cell.slots, device=device))
    specialise = (False,) if len(inspect.signature(meta.meta_args).parameters) > 1 else ()
    arguments = meta.meta_args(cell.rows, *specialise)
    weights = [
        [[each.unsqueeze(1) for each in side] for side in zip(*layer, strict=True)]
        for layer in _weights(layers, count)
    ]
    v = torch.zeros(len(cell.shape.out_features), cell.rows, layers.tables.max_rank, device=device)

    def run(layer: int) -> None:
        a, b = weights[layer]
        lora_shrink(layers.x, a, v, *arguments, 1.0)
        lora_expand(v, b, layers.y, *arguments, offset_start=0, add_inputs=True)

    return run


def sglang_chunked(layers: Layers, count: int) -> Run:
    """SGLang's chunked SGMV, in chunks of 16 rows: its backend's, at the default of max_lora_chunk_size."""
    from sglang.kernels.ops.lora.dense.chunked_sgmv_expand import (  # type: ignore[import-not-found]
        chunked_sgmv_lora_expand_forward as expand,
    )
    from sglang.kernels.ops.lora.dense.chunked_sgmv_shrink import (  # type: ignore[import-not-found]
        _chunked_lora_shrink_kernel,
    )
    from sglang.kernels.ops.lora.dense.chunked_sgmv_shrink import (
        chunked_sgmv_lora_shrink_forward as shrink,
    )

    # Its cache of launches does not look at the rank, which is one for all of a server. Here it changes.
    getattr(_chunked_lora_shrink_kernel, "kernel_cache", {}).clear()
    cell, device, widths = layers.cell, layers.x.device, layers.cell.shape.out_features
    height = 16
    slots = torch.tensor(cell.slots)
    starts, owners, done = [0], [], 0
    for slot, run_length in enumerate(torch.bincount(slots, minlength=cell.adapters).tolist()):
        for first in range(0, run_length, height):
            owners.append(slot)
            starts.append(done + min(first + height, run_length))
        done += run_length

    def numbers(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    batch = SimpleNamespace(
        bs=len(owners),
        num_segments=len(owners),
        max_len=height,
        use_cuda_graph=False,
        seg_indptr=numbers(starts),
        weight_indices=numbers(owners),
        lora_ranks=numbers([cell.rank_of(slot) for slot in range(cell.adapters)]),
        permutation=slots.argsort(stable=True).int().to(device),
        scalings=torch.ones(cell.adapters, device=device),
    )
    offsets = numbers([0, *itertools.accumulate(widths)])
    weights = [_chunked_weights(layers, each) for each in _weights(layers, count)]

    def run(layer: int) -> None:
        a, b = weights[layer]
        expand(shrink(layers.x, a, batch, len(widths)), b, batch, offsets, max(widths), layers.y)

    return run


def sglang_planned(layers: Layers, count: int) -> Run:
    """SGLang's `triton_v2`, by the plans of its own tables; routes are built once, as for all layers of a
    step."""
    from sglang.srt.lora.dense.plan import DenseLoraKind  # type: ignore[import-not-found]
    from sglang.srt.lora.dense.runner import DenseLoraRunner  # type: ignore[import-not-found]
    from sglang.srt.lora.utils import Phase  # type: ignore[import-not-found]
    from sglang.srt.lora.workspace import LoraWorkspace  # type: ignore[import-not-found]

    cell, device, widths = layers.cell, layers.x.device, layers.cell.shape.out_features
    ranks = [cell.rank_of(slot) for slot in range(cell.adapters)]
    runner = DenseLoraRunner(LoraWorkspace(), max_loras=cell.adapters, device=device)
    runner.begin_batch(
        token_slots=torch.tensor(cell.slots, dtype=torch.int32, device=device),
        lora_ranks=torch.tensor(ranks, dtype=torch.int32, device=device),
        scalings=torch.ones(cell.adapters, device=device),
        num_tokens=cell.rows,
        phase=Phase.DECODE if cell.rows <= DECODE_ROWS else Phase.PREFILL,
        graph_mode=False,
    )
    largest, total = layers.tables.max_rank, sum(widths)
    sizes = largest, cell.shape.in_features, total
    plan = runner.plan_for(DenseLoraKind.LINEAR, *sizes, num_tokens=cell.rows)
    offsets = (0, *itertools.accumulate(widths))
    weights = [_chunked_weights(layers, each) for each in _weights(layers, count)]

    def run(layer: int) -> None:
        a, b = weights[layer]
        bridge = runner.run_a(layers.x, a, stack=len(widths), plan=plan)
        runner.run_b(bridge, b, layers.y, offsets=offsets, plan=plan)

    return run


def _chunked_weights(layers: Layers, pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A [adapters, slices * largest rank, in], an adapter's slices without a gap; B [adapters, out, rank]."""
    a = torch.zeros_like(torch.cat([pair[0] for pair in pairs], 1))
    for slot in range(layers.cell.adapters):
        rank = layers.cell.rank_of(slot)
        for index, (of_slice, _) in enumerate(pairs):
            a[slot, index * rank : (index + 1) * rank] = of_slice[slot, :rank]
    return a, torch.cat([pair[1] for pair in pairs], 1).contiguous()


PEERS: dict[str, Peer] = {
    "torch gather + bmm": gather_bmm,
    "torch grouped_mm": grouped_mm,
    "vLLM Triton": vllm_triton,
    "SGLang csgmv": sglang_chunked,
    "SGLang triton_v2": sglang_planned,
}


def look_in(directories: Sequence[Path]) -> None:
    """Also import peers from these directories."""
    sys.path[:0] = [str(directory) for directory in directories]


def _weights(layers: Layers, count: int) -> list[list[tuple[Tensor, Tensor]]]:
    slices = range(len(layers.cell.shape.out_features))
    return [[layers.stacked(layer, index) for index in slices] for layer in range(count)]


def _columns(layers: Layers) -> tuple[Tensor, ...]:
    return layers.y.split(list(layers.cell.shape.out_features), dim=1)

"""An adapter is staged in the form that the kernels want, whole and as one of two ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import adapter_files as build
import pytest
import torch

from lorikeet_server.kernels import LoraLayout
from lorikeet_server.kernels.cuda import LAYOUT


@pytest.mark.parametrize("rank", [1, 4, 8, 12])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("layout", [LAYOUT, LoraLayout(1, b_by_rank=True), LoraLayout(1, b_by_rank=False)])
def test_staged_as_the_kernels_want_it(tmp_path: Path, layout: LoraLayout, world: int, rank: int) -> None:
    library = build.library(tmp_path, dtype=torch.bfloat16, rank=world - 1, world=world)
    library.model = replace(library.model, layout=layout)
    leaves = ("q_proj", "o_proj")  # one is divided by its outputs, the other by its inputs
    values = build.tensors(leaves, rank)
    build.write(
        tmp_path / "root/a", build.config(r=rank, target_modules=list(leaves)), build.safetensors(values)
    )
    *_, last = library.fetch("local", "a", 0)
    staged = library.stage(last.digest)
    assert len(staged.pairs) == 2 * build.LAYERS
    assert staged.memory_bytes >= sum((pair.a.numel() + pair.b.numel()) * 2 for pair in staged.pairs)
    for pair in staged.pairs:
        a, b = (values[f"base_model.model.{pair.target.name}.lora_{side}.weight"].bfloat16() for side in "AB")
        stored = layout.padded(rank)
        assert pair.rank == rank and pair.a.shape[0] == pair.b.shape[1] == stored
        inputs, outputs = pair.target.inputs, pair.target.outputs
        assert torch.equal(pair.a[:rank], a[:, inputs.start : inputs.stop])
        assert torch.equal(pair.b[:, :rank], b[outputs.start : outputs.stop])
        assert not pair.a[rank:].any() and not pair.b[:, rank:].any()
        placed = layout.place(pair.a, pair.b)
        assert [each.data_ptr() for each in placed] == [pair.a.data_ptr(), pair.b.data_ptr()], "in place"
        assert pair.a.data_ptr() % 16 == pair.b.data_ptr() % 16 == 0

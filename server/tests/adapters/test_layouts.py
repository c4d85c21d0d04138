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
@pytest.mark.parametrize("layout", [LAYOUT, LoraLayout(panel=16), LoraLayout(panel=3)])
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
    found = build.matrices(staged)
    assert build.adapted(staged) == len(found) == 2 * build.LAYERS and staged.max_rank == rank
    assert staged.memory_bytes >= sum((each.a.numel() + each.b.numel()) * 2 for each in found.values())
    for target in build.targets(world - 1, world):
        if (each := found.get(target.name)) is None:
            continue
        a, b = (values[f"base_model.model.{target.name}.lora_{side}.weight"].bfloat16() for side in "AB")
        assert each.a.shape[0] == each.b.shape[1] == -(-rank // layout.rank_unit) * layout.rank_unit
        assert torch.equal(each.a[:rank], a[:, target.inputs.start : target.inputs.stop])
        assert torch.equal(each.b[:, :rank], b[target.outputs.start : target.outputs.stop])
        assert not each.a[rank:].any() and not each.b[:, rank:].any()
        assert each.a.is_contiguous()
        assert each.a.data_ptr() % 16 == 0

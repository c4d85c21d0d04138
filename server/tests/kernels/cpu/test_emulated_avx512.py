"""The emulation of AVX-512, on processors that need none: all other tests leave it out there, and what is
missing would be found by those who have only AVX2."""

import platform
from collections.abc import Callable

import pytest
import torch
from emulated_avx512 import emulated_kernels, flags
from test_attention import Paged, tables
from test_blocks import TYPES, quantised
from torch import Tensor

from lorikeet_server.kernels import Kernels, Product, select
from lorikeet_server.kernels.compiled import run
from lorikeet_server.kernels.cpu import build

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates x86 instructions")


def test_stands_in_for_every_intrinsic() -> None:
    source = build.SOURCES / "isa_avx512.cpp"
    run([build._compiler(), *build.FLAGS, *flags(), "-fsyntax-only", str(source)])


def linear(storage: str) -> Callable[[Kernels], Tensor]:
    def of(kernels: Kernels) -> Tensor:
        weight = quantised(storage, 70, 288) if storage in TYPES else torch.randn(70, 288)
        packed = kernels.pack_linear(weight, "bfloat16" if storage == "bfloat16" else "float16")
        return kernels.linear(torch.randn(19, 288) * torch.logspace(-3, 3, 288), packed)

    return of


def attention(kernels: Kernels) -> Tensor:
    paged, blocks, context = Paged.make(kernels, (4, 2, 32), torch.int16, 8), tables([(3, 40)]), 40
    qkv = torch.randn(context, 8 * 32)
    paged.write(qkv, torch.arange(context), blocks[0])
    return paged.attend(qkv[-3:, : 4 * 32], blocks, [(3, context)])


OPS: dict[str, Callable[[Kernels], Tensor]] = {
    **{storage: linear(storage) for storage in ("float16", "bfloat16", *TYPES)},
    "attention": attention,
    "greedy": lambda kernels: kernels.greedy(torch.randn(3, 9001)).logsumexp,
    "silu_mul": lambda kernels: kernels.silu_mul(Product(torch.randn(3, 200))),
    "rms_norm": lambda kernels: kernels.rms_norm(torch.randn(3, 100), torch.randn(100), 1e-5),
}


@pytest.mark.slow
def test_gives_the_bits_of_the_instructions() -> None:
    try:
        real = select("cpu", "avx512")
    except RuntimeError as error:
        pytest.skip(str(error))
    emulated = emulated_kernels()
    for name, op in OPS.items():
        torch.manual_seed(1)
        expected = op(real)
        torch.manual_seed(1)
        assert torch.equal(op(emulated), expected), name

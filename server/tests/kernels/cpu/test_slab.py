"""Pieces of mappings."""

import torch

from lorikeet_server.kernels.cpu.slab import SLAB_BYTES, Slabs


def test_pieces_are_aligned_and_apart() -> None:
    slabs = Slabs()
    pieces = [slabs.take(size) for size in (1, 64, 65, 0, 1000, SLAB_BYTES + 1, 7)]
    assert [piece.shape[0] for piece in pieces] == [1, 64, 65, 0, 1000, SLAB_BYTES + 1, 7]
    assert all(piece.data_ptr() % 64 == 0 for piece in pieces)
    for value, piece in enumerate(pieces):
        piece.fill_(value)
    assert all(bool((piece == value).all()) for value, piece in enumerate(pieces))


def test_a_piece_outlives_its_source() -> None:
    piece = Slabs().take(4096)
    piece.fill_(3)
    assert int(piece.to(torch.int64).sum()) == 3 * 4096

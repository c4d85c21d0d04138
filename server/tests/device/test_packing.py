"""What a step sends to a device in one copy, and how it is found there."""

import numpy as np
import torch

from lorikeet_server.device.cuda import ALIGNMENT, layout, pack, unpack


def test_arrays_come_back_from_one_buffer() -> None:
    arrays = (
        np.arange(5, dtype=np.int64),
        np.zeros(0, np.int32),
        np.array([[1.5, -2.0], [0.25, 8.0]], np.float32)[:, ::-1],  # not contiguous
        np.arange(7, dtype=np.int32),
        np.array([0.1], np.float64),
    )
    places, size = layout(arrays)
    assert all(place % ALIGNMENT == 0 for place in places) and size % ALIGNMENT == 0
    found = unpack(pack(arrays, places, size, pinned=False), places, arrays)
    for array, tensor in zip(arrays, found, strict=True):
        assert torch.equal(tensor, torch.from_numpy(array.copy()))
        assert tensor.dtype == torch.from_numpy(array.copy()).dtype


def test_equal_shapes_have_equal_places() -> None:
    """Captured work finds a refilled upload where the first one was."""
    first = np.arange(3, dtype=np.int64), np.zeros(5, np.int32)
    second = np.full(3, 9, np.int64), np.ones(5, np.int32)
    assert layout(first) == layout(second)

"""What a step sends to a device, and where it is found there."""

import numpy as np
import pytest
import torch

from lorikeet_server.device.parcel import ALIGNMENT, Singly, StepParcel

CPU = torch.device("cpu")
ARRAYS = (
    np.arange(5, dtype=np.int64),
    np.zeros(0, np.int32),
    np.array([[1.5, -2.0], [0.25, 8.0]], np.float32)[:, ::-1],  # not contiguous
    np.arange(7, dtype=np.int32),
    np.array([0.1], np.float64),
)


@pytest.mark.parametrize("size", [4096, 64, 0], ids=["fits", "goes beyond", "all beyond"])
def test_arrays_are_there_once_it_is_sent(size: int) -> None:
    parcel = StepParcel(size, CPU)
    for _ in range(3):
        parcel.begin()
        found = [parcel.add(array) for array in ARRAYS]
        parcel.send()
        for array, tensor in zip(ARRAYS, found, strict=True):
            assert torch.equal(tensor, torch.from_numpy(array.copy()))
            assert tensor.dtype == torch.from_numpy(array.copy()).dtype


def test_equal_things_in_equal_order_have_equal_addresses() -> None:
    parcel, addresses = StepParcel(4096, CPU), []
    for filled in (1, 9, 4):
        parcel.begin()
        first = parcel.add(np.arange(filled, dtype=np.int32), room=40)
        assert parcel.offset == 48
        addresses.append((first.data_ptr(), parcel.add(np.ones(3)).data_ptr()))
        parcel.send()
    assert len(set(addresses)) == 1
    assert all(address % ALIGNMENT == 0 for address in addresses[0])


def test_the_next_step_is_filled_while_the_last_is_read() -> None:
    parcel = StepParcel(4096, CPU)
    parcel.begin()
    kept = parcel.add(np.array([1, 2]))
    parcel.send()
    parcel.begin()
    parcel.add(np.array([3, 4]))
    assert kept.tolist() == [1, 2]
    parcel.send()
    assert kept.tolist() == [3, 4]


def test_nothing_is_added_to_what_has_been_sent() -> None:
    parcel = StepParcel(4096, CPU)
    parcel.begin()
    parcel.send()
    with pytest.raises(RuntimeError, match="has been sent"):
        parcel.add(np.zeros(1))


def test_there_is_room_behind_what_needs_it() -> None:
    """Kernels read what may be there before they know whether it is."""
    parcel, array = StepParcel(256, CPU), np.arange(5, dtype=np.int32)
    parcel.begin()
    behind = [parcel.add(array, room=64), parcel.add(array)]
    assert behind[1].data_ptr() - behind[0].data_ptr() == 64
    alone = Singly(CPU).add(array.reshape(5, 1), room=64)
    assert alone.untyped_storage().nbytes() == 64 and alone.tolist() == array.reshape(5, 1).tolist()


def test_a_host_has_nothing_to_copy() -> None:
    array = np.arange(4)
    assert Singly(CPU).add(array).data_ptr() == array.ctypes.data

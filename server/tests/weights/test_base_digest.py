"""The base digest reads little, and still sees any header change and any retrained tensor."""

from __future__ import annotations

from pathlib import Path

from lorikeet_server.weights.digest import SAMPLE_BYTES, BaseDigest, Extent


def digest_of(path: Path, header: int, *tensors: Extent) -> str:
    digest = BaseDigest()
    digest.add_file(path, header, tensors)
    return digest.hexdigest()


def test_beginning_middle_and_end_of_each_tensor_count(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    size = 10 * SAMPLE_BYTES
    tensor = Extent(100, 100 + size)
    content = bytes(100 + size)
    path.write_bytes(content)
    original = digest_of(path, 100, tensor)
    for position in (0, 99, 100, 100 + size // 2, 100 + size - 1):
        changed = bytearray(content)
        changed[position] = 1
        path.write_bytes(changed)
        assert digest_of(path, 100, tensor) != original, position


def test_order_of_tensors_does_not_matter_but_their_place_does(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(200)))
    first, second = Extent(10, 50), Extent(50, 200)
    assert digest_of(path, 10, first, second) == digest_of(path, 10, second, first)
    assert digest_of(path, 10, first, second) != digest_of(path, 10, Extent(10, 60), Extent(60, 200))


def test_small_and_empty_tensors_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    original = digest_of(path, 1, Extent(1, 3), Extent(3, 3))
    path.write_bytes(b"abd")
    assert digest_of(path, 1, Extent(1, 3), Extent(3, 3)) != original


def test_parts_do_not_run_into_each_other() -> None:
    one, two = BaseDigest(), BaseDigest()
    one.add(b"ab")
    one.add(b"c")
    two.add(b"a")
    two.add(b"bc")
    assert one.hexdigest() != two.hexdigest()

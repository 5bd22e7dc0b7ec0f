"""Prepared tensors in shared memory: as they lie there, and removed only from under the root."""

import numpy as np
import pytest

from legit_embedding.errors import (
    InvalidItemError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceTooLargeError,
)
from legit_embedding.sources.shm import DTYPES, discard, read_tensor, tensor_nbytes
from legit_embedding.values import ShmSource


@pytest.fixture
def root(tmp_path):
    """An allowed folder, and a neighbour that is not."""
    (tmp_path / "shm").mkdir()
    (tmp_path / "other").write_bytes(b"x" * 12)
    return tmp_path / "shm"


def prepared(path, dtype="float32", shape=(3, 2, 2)):
    """A tensor written as the old worker wrote it, and its source."""
    values = np.arange(np.prod(shape)).reshape(shape).astype(DTYPES[dtype])
    path.write_bytes(values.tobytes())
    return values, ShmSource(str(path), dtype, shape)


def read(source, root, *, max_bytes=10_000):
    return read_tensor(source, root=root, max_bytes=max_bytes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_is_read_in_its_shape_and_dtype(root, dtype):
    values, source = prepared(root / "a", dtype, (3, 4, 5))
    tensor = read(source, root)
    assert tensor.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(tensor, values)
    assert tensor_nbytes(source) == tensor.nbytes


def test_without_a_root_nothing_is_read_or_removed(root):
    _, source = prepared(root / "a")
    for work in (lambda: read(source, None), lambda: discard(source, root=None)):
        with pytest.raises(SourceNotAllowedError, match="LEGIT_SHM_ROOT"):
            work()
    assert (root / "a").exists()


def test_a_tensor_outside_the_root_is_not_read(root):
    with pytest.raises(SourceNotAllowedError, match="LEGIT_SHM_ROOT"):
        read(ShmSource(str(root / ".." / "other"), "uint8", (3, 2, 2)), root)


def test_an_unknown_dtype_is_named(root):
    source = ShmSource(str(root / "a"), "object", (3, 2, 2))
    with pytest.raises(InvalidItemError, match="'object' is unknown; there are float32, float16, uint8"):
        read(source, root)
    assert tensor_nbytes(source) == 0


@pytest.mark.parametrize("shape", [(3, 2, 3), (3, 2, 1), (1, 1, 1)])
def test_a_file_of_another_size_is_an_invalid_item(root, shape):
    prepared(root / "a", shape=(3, 2, 2))
    with pytest.raises(InvalidItemError, match="has 48 bytes, a float32 tensor of shape"):
        read(ShmSource(str(root / "a"), "float32", shape), root)


def test_a_file_that_is_gone_is_not_found(root):
    with pytest.raises(SourceNotFoundError):
        read(ShmSource(str(root / "a"), "float32", (3, 2, 2)), root)


def test_the_limit_holds_for_the_tensor_and_for_the_file(root):
    _, source = prepared(root / "a")
    assert read(source, root, max_bytes=48).nbytes == 48
    with pytest.raises(SourceTooLargeError, match="LEGIT_MAX_SOURCE_BYTES"):
        read(source, root, max_bytes=47)
    with pytest.raises(SourceTooLargeError, match="LEGIT_MAX_SOURCE_BYTES"):
        read(ShmSource(str(root / "a"), "uint8", (1, 1, 1)), root, max_bytes=47)


def test_a_shape_beyond_all_bounds_is_only_too_large(root):
    """Its size has more digits than Python prints."""
    source = ShmSource(str(root / "a"), "float32", (10**4200, 10**4200, 3))
    with pytest.raises(SourceTooLargeError) as caught:
        read(source, root)
    assert len(str(caught.value)) < 300


def test_discard_removes_the_file_once(root):
    _, source = prepared(root / "a")
    discard(source, root=root)
    assert not (root / "a").exists()
    discard(source, root=root)


@pytest.mark.parametrize("spelling", ["{root}/../other", "{other}", "relative", "{root}/link", "{root}/door/other"])
def test_discard_removes_nothing_outside_the_root(root, spelling):
    other = root.parent / "other"
    (root / "link").symlink_to(other)
    (root / "door").symlink_to(root.parent)
    with pytest.raises(SourceNotAllowedError):
        discard(ShmSource(spelling.format(root=root, other=other), "uint8", (3, 2, 2)), root=root)
    assert other.exists()


def test_discard_removes_no_folder(root):
    (root / "folder").mkdir()
    with pytest.raises(OSError):
        discard(ShmSource(str(root / "folder"), "uint8", (3, 2, 2)), root=root)
    with pytest.raises(OSError):
        discard(ShmSource(str(root), "uint8", (3, 2, 2)), root=root)
    assert (root / "folder").exists()

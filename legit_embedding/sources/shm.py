"""Prepared images in shared memory: raw tensors that another process left there. Blocking: called on a thread."""

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from legit_embedding.errors import InvalidItemError, SourceTooLargeError
from legit_embedding.sources.file import read_regular_file, resolve_allowed
from legit_embedding.values import ShmSource

DTYPES: Mapping[str, str] = {"float32": "<f4", "float16": "<f2", "uint8": "u1"}
"""What a tensor may be made of: its name in the message, and numpy's."""

SETTING = "LEGIT_SHM_ROOT"


def tensor_nbytes(source: ShmSource) -> int:
    """How many bytes a tensor of that dtype and shape has; 0 where the dtype is unknown."""
    dtype = DTYPES.get(source.dtype)
    return 0 if dtype is None else math.prod(source.shape) * np.dtype(dtype).itemsize


def read_tensor(source: ShmSource, *, root: Path | None, max_bytes: int) -> NDArray[np.generic]:
    """The tensor, of shape (channels, height, width), as it lies in the file: C order, little-endian, no header.

    Raises:
        InvalidItemError: dtype, shape and size of the file do not belong together.
        SourceNotAllowedError, SourceNotFoundError, SourceUnavailableError, SourceTooLargeError: as for files.
    """
    if source.dtype not in DTYPES:
        raise InvalidItemError(f"shm.dtype {source.dtype!r:.80} is unknown; there are {', '.join(DTYPES)}")
    nbytes = tensor_nbytes(source)
    tensor = f"a {source.dtype} tensor of shape {list(source.shape)!s:.80}"
    if nbytes > max_bytes:
        raise SourceTooLargeError(f"shm: {tensor} has more bytes than LEGIT_MAX_SOURCE_BYTES ({max_bytes:,})")
    path = resolve_allowed(source.path, [root] if root else [], setting=SETTING)
    content = read_regular_file(path, max_bytes=max_bytes)
    if len(content) != nbytes:
        raise InvalidItemError(f"shm: {source.path!r:.200} has {len(content):,} bytes, {tensor} has {nbytes:,}")
    return np.frombuffer(content, DTYPES[source.dtype]).reshape(source.shape)


def discard(source: ShmSource, *, root: Path | None) -> None:
    """Removes the file; one that is gone already is fine.

    Raises:
        SourceNotAllowedError: it is not under the root.
        OSError: it cannot be removed.
    """
    path = resolve_allowed(source.path, [root] if root else [], setting=SETTING)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()

"""Vectors as they stand on the wire. `encode_embedding` keeps the old worker's name."""

import base64
import binascii

import numpy as np
from numpy.typing import ArrayLike

from legit_embedding.values import FloatVector

ENCODING = "base64_fp32"
"""base64 (RFC 4648, with padding) of the vector's little-endian float32 values."""


def encode_embedding(vector: ArrayLike) -> str:
    """base64 of `vector`, shape (dim,), as little-endian float32.

    Raises:
        ValueError: `vector` is not one-dimensional.
    """
    values = np.ascontiguousarray(vector, dtype="<f4")
    if values.ndim != 1:
        raise ValueError(f"an embedding has shape (dim,), not {values.shape}")
    return binascii.b2a_base64(values.data, newline=False).decode("ascii")


def decode_embedding(encoded: str | bytes) -> FloatVector:
    """The vector, shape (dim,), float32, that `encode_embedding` wrote.

    Raises:
        ValueError: not base64, or not a whole number of float32 values.
    """
    return np.frombuffer(base64.b64decode(encoded, validate=True), dtype="<f4").astype(np.float32, copy=False)

"""From a model's raw vectors to what goes on the wire: cut, normalised, checked."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from legit_embedding.errors import InvalidItemError, InvalidVectorError
from legit_embedding.values import FloatMatrix, Options, Outcome

FINGERPRINT_DIGITS = 16


def finalize(matrix: FloatMatrix, options: Sequence[Options]) -> list[Outcome]:
    """One outcome for each row of `matrix`, shape (n, dim), float32.

    `dimensions` keeps a vector's first components (Matryoshka representation learning, Kusupati et al., 2022),
    `normalize` brings what is kept to unit length. A row that is NaN, infinite or zero becomes an `InvalidVectorError`.
    The vectors are rows of fresh arrays that nothing else refers to.
    """
    outcomes: list[Outcome] = [InvalidVectorError("the model gave no vector")] * len(options)
    for wanted in dict.fromkeys(options):
        rows = [row for row, one in enumerate(options) if one == wanted]
        for row, outcome in zip(rows, _finalize_alike(matrix[rows], wanted), strict=True):
            outcomes[row] = outcome
    return outcomes


def _finalize_alike(matrix: FloatMatrix, options: Options) -> list[Outcome]:
    dim = matrix.shape[1]
    kept = options.dimensions or dim
    if kept > dim:
        error = InvalidItemError(f"options.dimensions is {kept}, but the model's vectors have {dim}")
        return [error] * len(matrix)
    # In float64, because the norm of a float32 vector may overflow or lose its digits where the vector itself does not.
    wide = matrix[:, :kept].astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    valid = np.isfinite(norms) & (norms > 0)
    if options.normalize:
        wide /= np.where(valid, norms, 1.0)[:, None]
    vectors = wide.astype(np.float32)
    return [
        vectors[row] if valid[row] else InvalidVectorError(_complaint(matrix[row, :kept]))
        for row in range(len(vectors))
    ]


def _complaint(vector: FloatMatrix) -> str:
    if np.isnan(vector).any():
        return "the model gave a vector with NaN in it"
    if np.isinf(vector).any():
        return "the model gave a vector with an infinite value in it"
    return "the model gave a vector of zero norm, which has no direction"


def fingerprint(**parts: Any) -> str:
    """16 hexadecimal digits that are the same for equal `parts`: the head of the SHA-256 of their canonical JSON."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:FINGERPRINT_DIGITS]

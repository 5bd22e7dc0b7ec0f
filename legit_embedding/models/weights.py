"""Checkpoint files: what is in them, and which bytes they are."""

import hashlib
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import torch

from legit_embedding.errors import ConfigurationError, ModelUnavailableError

SAFETENSORS = ".safetensors"


def read_state(path: Path, *, trust_pickle: bool, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, on the CPU.

    Of a safetensors file only those are read whose name starts with `prefix`, as long as there are such.

    Raises:
        ConfigurationError: a pickle with more in it than tensors, and `trust_pickle` is false.
        ModelUnavailableError: the file is broken, or no checkpoint.
    """
    try:
        tensors = _read_safetensors(path, prefix) if path.suffix == SAFETENSORS else _read_pickle(path, trust_pickle)
    except pickle.UnpicklingError as error:
        raise pickle_refused(path) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, safetensors.SafetensorError) as error:
        if "weights_only" in str(error):  # how torch refuses a TorchScript archive
            raise pickle_refused(path) from error
        raise ModelUnavailableError(f"the checkpoint {path} cannot be read: {error}") from error
    if not tensors:
        raise ModelUnavailableError(f"the checkpoint {path} holds no weights")
    return tensors


def pickle_refused(path: Path) -> ConfigurationError:
    """The error for a pickle that would run code."""
    return ConfigurationError(
        f"the checkpoint {path} is a pickle with more in it than tensors: loading it runs code that it brings along. "
        "Use a .safetensors file, or set trust_pickle = true for this model if you trust where the file comes from"
    )


def _read_safetensors(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(path, framework="pt") as file:
        names = list(file.keys())
        wanted = [name for name in names if _plain(name).startswith(prefix)] or names
        return {_plain(name): file.get_tensor(name) for name in wanted}


def _read_pickle(path: Path, trust_pickle: bool) -> dict[str, torch.Tensor]:
    # Mapped into memory where the format allows it: of weights that nobody uses, no page is ever read.
    found: Any = torch.load(
        path, map_location="cpu", weights_only=not trust_pickle, mmap=zipfile.is_zipfile(path) or None
    )
    if isinstance(found, torch.nn.Module):
        found = found.state_dict()
    if isinstance(found, Mapping):
        found = found.get("state_dict", found)
    if not isinstance(found, Mapping):
        raise ValueError(f"it holds a {type(found).__name__}, not weights by name")  # noqa: TRY004  see read_state
    return {_plain(str(name)): value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _plain(name: str) -> str:
    """The name without the prefix that distributed training puts before it."""
    return name.removeprefix("module.")


def digest_of(paths: Iterable[Path]) -> str:
    """One SHA-256 over the contents of files; each file is read once as long as it does not change."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(_file_digest(path.resolve(), status.st_size, status.st_mtime_ns).encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _file_digest(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

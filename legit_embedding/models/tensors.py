"""Between host and device, and what a loaded module is: the part of torch that both adapters share."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's CPU generator starts from `seed`; afterwards it is as if nothing had been drawn.

    Only that generator is touched: `torch.manual_seed` would seed those of all accelerators, too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def staging(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """An empty host tensor for `to_device`: in page-locked memory where the copy can then run by itself."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.startswith("cuda"))


def to_device(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """`tensor` on `device`; the host does not wait for the copy."""
    return tensor if device == "cpu" else tensor.to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> NDArray[np.float32]:
    """The float32 values of `tensor`, once everything that they depend on has been computed.

    The copy is queued right behind the batch that it belongs to: asked for later, from another thread, it would queue
    behind the next batch.
    """
    values = tensor.to(torch.float32)
    if values.device.type == "cuda":
        host = torch.empty(values.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(values, non_blocking=True)
        torch.cuda.current_stream(values.device).synchronize()
        values = host
    array: NDArray[np.float32] = values.cpu().numpy()
    return array


def module_nbytes(module: torch.nn.Module) -> int:
    """Bytes of the module's parameters and buffers."""
    tensors = (*module.parameters(), *module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

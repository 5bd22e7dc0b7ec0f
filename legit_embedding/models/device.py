"""Devices: which one, in what precision, how much memory, and what running out of it looks like.

torch is imported when the first function is called, not before: the rest of the worker starts without it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING

from legit_embedding.errors import ConfigurationError, DeviceOutOfMemoryError

if TYPE_CHECKING:
    import torch

DEVICE_NAME = re.compile(r"auto|cpu|mps|cuda(:\d+)?|xpu(:\d+)?")
DTYPES = ("float32", "bfloat16", "float16")
BF16_CAPABILITY = (8, 0)
"""The first CUDA compute capability (Ampere) with bf16 matrix units."""

BF16_CPU_FLAGS = frozenset({"amx_bf16"})
"""CPUs with tile units for bf16. `avx512_bf16` alone is not enough: EVA02-B ran at 0.7 of its float32 rate on one."""

OUT_OF_MEMORY_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")


def choose_device(name: str) -> str:
    """The device that `name` of `models.toml` means: `cpu`, `mps`, `cuda:N` or `xpu:N`.

    `auto` is the CUDA device with the most free memory, else Apple's, else the CPU.

    Raises:
        ConfigurationError: no such name, or no such device on this machine.
    """
    import torch  # noqa: PLC0415  see the module

    if not DEVICE_NAME.fullmatch(name):
        raise ConfigurationError(f"device {name!r} is unknown; there are auto, cpu, cuda, cuda:<number>, mps, xpu")
    if name == "auto":
        return _best_device()
    kind, _, number = name.partition(":")
    if kind in {"cuda", "xpu"}:
        backend = torch.cuda if kind == "cuda" else torch.xpu
        count = backend.device_count() if backend.is_available() else 0
        if int(number or 0) >= count:
            raise ConfigurationError(f"device {name!r} is not there: torch sees {count} {kind} devices")
        return f"{kind}:{number or 0}"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigurationError("device 'mps' is not there")
    return kind


def _best_device() -> str:
    import torch  # noqa: PLC0415  see the module

    if torch.cuda.is_available():
        free = [(torch.cuda.mem_get_info(index)[0], -index) for index in range(torch.cuda.device_count())]
        return f"cuda:{-max(free)[1]}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_dtype(name: str, device: str) -> "torch.dtype":
    """The dtype that `name` of `models.toml` means on `device`.

    `auto` is bf16 where the device has units for it, else float32: emulated bf16 is slower than float32.

    Raises:
        ConfigurationError: no such name.
    """
    import torch  # noqa: PLC0415  see the module

    if name == "auto":
        return torch.bfloat16 if _computes_bf16(device) else torch.float32
    if name not in DTYPES:
        raise ConfigurationError(f"dtype {name!r} is unknown; there are auto, {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _computes_bf16(device: str) -> bool:
    import torch  # noqa: PLC0415  see the module

    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
    if device == "cpu":
        return bool(BF16_CPU_FLAGS & cpu_flags())
    return False


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The CPU's feature flags, as Linux tells them; none elsewhere."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)[ \t]*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def dtype_name(dtype: "torch.dtype") -> str:
    """`float32`, `bfloat16`, `float16`."""
    return str(dtype).removeprefix("torch.")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the device has not enough memory: torch, cuBLAS and the CPU allocator differ."""
    import torch  # noqa: PLC0415  see the module

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error).lower() for part in OUT_OF_MEMORY_MESSAGES)


@contextmanager
def out_of_memory_guard(device: str) -> Iterator[None]:
    """Turns running out of memory on `device` into `DeviceOutOfMemoryError`, and frees what torch keeps for later."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        clear_frames(error.__traceback__)  # the frames that gave up still hold what they had allocated
        release_cached(device)
        raise DeviceOutOfMemoryError(f"{device} has not enough memory for this batch") from error


def release_cached(device: str) -> None:
    """Gives back memory that torch's allocator keeps on `device` for later."""
    import torch  # noqa: PLC0415  see the module

    if device.startswith("cuda") and torch.cuda.is_available():
        torch.cuda.empty_cache()


def device_memory(device: str) -> tuple[int, int] | None:
    """Free and total bytes of an accelerator; None for the CPU."""
    import torch  # noqa: PLC0415  see the module

    if device.startswith("cuda") and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    return None

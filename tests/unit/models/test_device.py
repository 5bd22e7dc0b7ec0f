"""Which device, in what precision, and what running out of memory looks like."""

import weakref

import pytest
import torch

from legit_embedding.errors import ConfigurationError, DeviceOutOfMemoryError
from legit_embedding.models import device as module
from legit_embedding.models.device import (
    choose_device,
    choose_dtype,
    cpu_flags,
    device_memory,
    dtype_name,
    is_out_of_memory,
    out_of_memory_guard,
    release_cached,
)

XEON = "processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16 amx_bf16\nbugs\t\t: spectre\n\nprocessor\t: 1\nflags\t: fpu\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


@pytest.fixture
def machine(monkeypatch):
    """Makes torch see other devices than there are: free bytes of each CUDA device, and whether it has Apple's."""

    def pretend(*, cuda_free=(), mps=False, capability=(8, 0), flags=()):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda_free))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cuda_free))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index=0: (cuda_free[number_of(index)], 80_000))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
        monkeypatch.setattr(module, "cpu_flags", lambda: frozenset(flags))

    return pretend


def number_of(index):
    return int(str(index).rpartition(":")[2])


@pytest.mark.parametrize(
    ("cuda_free", "mps", "expected"),
    [
        ((), False, "cpu"),
        ((), True, "mps"),
        ((10,), True, "cuda:0"),
        ((10, 30, 20), False, "cuda:1"),
        ((10, 10), False, "cuda:0"),
    ],
)
def test_auto_takes_the_cuda_device_with_the_most_free_memory_else_apples_else_the_cpu(
    machine, cuda_free, mps, expected
):
    machine(cuda_free=cuda_free, mps=mps)
    assert choose_device("auto") == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("cpu", "cpu"), ("mps", "mps"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")]
)
def test_a_device_that_is_there_can_be_named(machine, name, expected):
    machine(cuda_free=(10, 20), mps=True)
    assert choose_device(name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "device 'gpu' is unknown; there are auto, cpu, cuda, cuda:<number>, mps, xpu"),
        ("cuda:x", "device 'cuda:x' is unknown; there are auto, cpu, cuda, cuda:<number>, mps, xpu"),
        ("cuda:1", "device 'cuda:1' is not there: torch sees 1 cuda devices"),
        ("xpu", "device 'xpu' is not there: torch sees 0 xpu devices"),
        ("mps", "device 'mps' is not there"),
    ],
)
def test_a_device_that_is_not_there_is_named(machine, name, message):
    machine(cuda_free=(10,))
    with pytest.raises(ConfigurationError) as raised:
        choose_device(name)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("device", "capability", "flags", "expected"),
    [
        ("cuda:0", (8, 0), (), torch.bfloat16),
        ("cuda:0", (9, 0), (), torch.bfloat16),
        ("cuda:0", (7, 5), (), torch.float32),
        ("cpu", None, ("avx512_bf16",), torch.float32),
        ("cpu", None, ("amx_bf16", "avx2"), torch.bfloat16),
        ("cpu", None, ("avx2", "avx512f"), torch.float32),
        ("mps", None, (), torch.float32),
    ],
)
def test_auto_computes_in_bf16_only_where_the_device_has_units_for_it(machine, device, capability, flags, expected):
    machine(cuda_free=(10,), capability=capability, flags=flags)
    assert choose_dtype("auto", device) == expected


def test_a_dtype_can_be_named_and_an_unknown_one_is_refused():
    assert dtype_name(choose_dtype("float16", "cpu")) == "float16"
    with pytest.raises(ConfigurationError, match="dtype 'int8' is unknown; there are auto, float32, bfloat16, float16"):
        choose_dtype("int8", "cpu")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (XEON, {"fpu", "avx2", "avx512_bf16", "amx_bf16"}),
        (GRAVITON, {"fp", "asimd", "bf16"}),
        ("flags\t\t:\nbugs\t\t: spectre\n", set()),
        ("processor\t: 0\n", set()),
    ],
)
def test_the_flags_are_those_of_the_first_processor(tmp_path, text, expected):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert cpu_flags(path) == expected


def test_where_there_is_no_cpuinfo_there_are_no_flags(tmp_path):
    assert cpu_flags(tmp_path / "nowhere") == frozenset()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_failures(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_cpu_allocators_own_failure_is_running_out_of_memory():
    """What torch really raises where a tensor does not fit into memory."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.float32)
    assert is_out_of_memory(raised.value)


def test_the_guard_translates_running_out_of_memory_and_nothing_else():
    with (
        pytest.raises(DeviceOutOfMemoryError, match="cpu has not enough memory for this batch"),
        out_of_memory_guard("cpu"),
    ):
        raise MemoryError
    with pytest.raises(ValueError, match="shapes"), out_of_memory_guard("cpu"):
        raise ValueError("shapes")


def test_after_running_out_of_memory_what_the_batch_had_allocated_is_free(monkeypatch):
    """Before the cache is emptied, not only when the error is gone: the halves are computed while it still lives."""
    references, alive = [], []

    def compute():
        activations = torch.zeros(8)
        references.append(weakref.ref(activations))
        raise torch.OutOfMemoryError(f"no room for another {activations.nbytes} bytes")

    monkeypatch.setattr(module, "release_cached", lambda _: alive.append(references[0]() is not None))
    with pytest.raises(DeviceOutOfMemoryError), out_of_memory_guard("cpu"):
        compute()
    assert alive == [False]


def test_the_cache_of_a_cuda_device_is_emptied_and_the_cpu_has_none(machine, monkeypatch):
    emptied = []
    machine(cuda_free=(10,))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    release_cached("cpu")
    assert emptied == []
    release_cached("cuda:0")
    assert emptied == [True]


def test_the_memory_of_an_accelerator_is_known_and_the_cpus_is_not(machine):
    machine(cuda_free=(10, 20))
    assert device_memory("cuda:1") == (20, 80_000)
    assert device_memory("cpu") is None

"""Chooses the arithmetic of GroupNorm: Triton's kernels where they are right, else plain PyTorch.

Kernels are compiled on the machine, by what is installed there, for the GPU that is there. So
before they are used for the first time on a device and in a dtype, they compute something small,
and what comes out is compared with what PyTorch makes of it. Where that fails, or later a kernel
cannot be compiled for another shape, nothing is lost but time.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from darkroom_infra.telemetry import get_logger

from . import plain

CHANNELS = (24, 256)
"""How many channels are tried: less than a tile has and no power of two, and several tiles."""

ROUNDING = 5e-5
"""What the kernels may differ by in float32: hardware rounds an exponential to about 1e-6."""

_COMPILER_ERRORS = (
    RuntimeError,  # no C compiler, no driver, what CUDA and the compiler's passes say
    AssertionError,  # libcuda.so is not where it is looked for
    ImportError,  # what was compiled cannot be loaded
    OSError,  # no room or no right to write to the cache of compiled kernels
    subprocess.SubprocessError,  # the C compiler or the assembler failed
    AttributeError,  # a version of Triton with other functions
    LookupError,  # a GPU that the compiler does not know
    TypeError,
    ValueError,
)

_log = get_logger("worker.banded")


@dataclass(frozen=True)
class _Guarded:
    """The functions of `kernels`; once one fails, those of `plain`."""

    kernels: Any
    device: torch.device
    dtype: torch.dtype

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def function(*arguments: Any) -> Any:
            try:
                return getattr(self.kernels, name)(*arguments)
            except torch.OutOfMemoryError:
                raise  # PyTorch needs no less
            except _errors() as error:
                # It was not launched: nothing is written yet.
                _refuse(self.device, self.dtype, f"{type(error).__name__}: {error}")
                return getattr(plain, name)(*arguments)

        return function


@dataclass
class _State:
    """What is known so far: for which devices and dtypes the kernels are right."""

    enabled: bool
    right: dict[tuple[torch.device, torch.dtype], bool]


_state = _State(enabled=True, right={})


def arithmetic(*tensors: Tensor) -> Any:
    """Give what computes with such tensors, [B, …]: the functions of `kernels` or of `plain`.

    The kernels want the numbers of each picture one after the other.
    """
    first = tensors[0]
    if not (_state.enabled and _on_gpu(first) and all(each[0].is_contiguous() for each in tensors)):
        return plain
    kernels = _load()
    if kernels is None or not _is_right(kernels, first.device, first.dtype):
        return plain
    return _Guarded(kernels, first.device, first.dtype)


@contextmanager
def disabled() -> Iterator[None]:
    """Compute with plain PyTorch meanwhile, to compare."""
    enabled, _state.enabled = _state.enabled, False
    try:
        yield
    finally:
        _state.enabled = enabled


def is_used(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether kernels compute on a device in a dtype; tries them where nobody has yet."""
    return arithmetic(torch.zeros(1, dtype=dtype, device=device)) is not plain


def _on_gpu(rows: Tensor) -> bool:
    return rows.is_cuda


@cache
def _load() -> ModuleType | None:
    """Import the kernels: Triton comes with PyTorch for CUDA on Linux, elsewhere it may lack."""
    try:
        from . import kernels
    except ImportError as error:
        _log.warning("banded.no_triton", error=str(error))
        return None
    return kernels


def _is_right(kernels: ModuleType, device: torch.device, dtype: torch.dtype) -> bool:
    """Try the kernels, once for each device and dtype."""
    key = device, dtype
    if key not in _state.right:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False  # nothing can be compared now: only once the graph is replayed
        _state.right[key] = _try(kernels, device, dtype)
    return _state.right[key]


def _try(kernels: ModuleType, device: torch.device, dtype: torch.dtype) -> bool:
    """Compare the kernels with PyTorch; warn where they fail or differ."""
    try:
        wrong = [what for count in CHANNELS for what in compare(kernels, device, dtype, count)]
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernels
    except _errors() as error:
        wrong = [f"{type(error).__name__}: {error}"]
    if wrong:
        _refuse(device, dtype, ", ".join(wrong))
    return not wrong


def _refuse(device: torch.device, dtype: torch.dtype, wrong: str) -> None:
    """Use the kernels no more on a device in a dtype."""
    _state.right[device, dtype] = False
    _log.warning("banded.kernels_refused", device=str(device), dtype=str(dtype), wrong=wrong)


def _errors() -> tuple[type[Exception], ...]:
    """List what Triton raises where it cannot compile or launch."""
    from triton.errors import TritonError

    return TritonError, *_COMPILER_ERRORS


@torch.inference_mode()
def compare(kernels: Any, device: torch.device, dtype: torch.dtype, channels: int) -> list[str]:
    """Name what the kernels compute otherwise than PyTorch, beyond rounding.

    The rows are not random, so that nobody else's random numbers change.
    """
    shape = batch, height, width, _ = (2, 11, 37, channels)
    numbers = torch.arange(batch * height * width * channels, device=device).view(shape)
    around = torch.linspace(-9, 9, channels, device=device)
    rows = ((numbers * 0.7).sin() * 3 + around).to(dtype)[:, 1:-1]  # as a part of a band is
    norm = nn.GroupNorm(8, channels, device=device, dtype=dtype)
    norm.weight.copy_(torch.linspace(0.5, 1.5, channels))
    norm.bias.copy_(torch.linspace(-1, 1, channels))

    expected, made = _affine(plain, rows, norm), _affine(kernels, rows, norm)
    wrong = [
        name
        for name, first, second in zip(("scale", "shift"), expected, made, strict=True)
        if not torch.allclose(second, first, rtol=ROUNDING, atol=ROUNDING)
    ]
    rounding = max(ROUNDING, 2 * torch.finfo(dtype).eps)
    for contrast in (1, 30):  # with 30, where an exponential overflows and where it vanishes
        outs = [torch.full(shape, 7.0, dtype=dtype, device=device) for _ in range(2)]
        for out, module in zip(outs, (plain, kernels), strict=True):
            module.activate(rows, expected[0] * contrast, expected[1] * contrast, out[:, 1:-1])
        if not torch.allclose(outs[1], outs[0], rtol=rounding, atol=rounding):
            wrong.append(f"activation, contrast {contrast}")
    return wrong


def _affine(module: Any, rows: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    pivot = module.choose_pivot(rows)
    totals = module.sum_deviations(rows, pivot).double()
    made: tuple[Tensor, Tensor] = module.normalize(
        totals, pivot, rows.shape[1] * rows.shape[2], norm
    )
    return made

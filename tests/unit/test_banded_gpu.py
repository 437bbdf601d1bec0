"""The banded decode as it goes on a GPU, as far as that can be seen without one.

Triton's interpreter runs the kernels on the CPU, its compiler makes machine code for GPUs that are
not there, and the bands go the way that they go on a GPU. What is left is measured and checked by
`python -m bench.gpu`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import torch
from torch import Tensor

from darkroom_worker.banded import BandedDecoder, Mode, convolution, devices, fused, graphs, plain
from darkroom_worker.banded.attention import query_rows
from darkroom_worker.banded.graphs import GraphedDecoder, Recording
from darkroom_worker.banded.layers import DTYPES
from darkroom_worker.banded.norm import Affine

from .test_banded import MODES, SIZES, WORST, distance, error, latents, make_vae, memory, whole

INTERPRETED = Path(__file__).with_name("interpreted.py")
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def vae() -> Any:
    """A VAE with three levels, attention and blocks with a 1 x 1 shortcut."""
    return make_vae()


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have bands computed on the CPU the way they are on a GPU, and narrow ones."""
    monkeypatch.setattr(devices, "kind", lambda _: "gpu")
    monkeypatch.setitem(memory().WORKING_BYTES, "gpu", 1 << 14)
    monkeypatch.setattr(memory(), "WORKING_PIXELS", 64)


def use(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the CPU use such kernels, tried as on a GPU that is new."""
    monkeypatch.setattr(fused, "_on_gpu", lambda _: True)
    monkeypatch.setattr(fused, "_load", lambda: kernels)
    monkeypatch.setattr(fused._state, "right", {})


def test_kernels_are_right_in_the_interpreter() -> None:
    """The tests of `interpreted.py` pass: they need a process in which all of Triton is so run."""
    pytest.importorskip("triton", reason="Triton is there only for Linux")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", INTERPRETED]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


class Kernels:
    """Kernels that are PyTorch's own, but for what a test changes."""

    choose_pivot = staticmethod(plain.choose_pivot)
    sum_deviations = staticmethod(plain.sum_deviations)
    normalize = staticmethod(plain.normalize)
    activate = staticmethod(plain.activate)


def _raise(error: Exception) -> Callable[..., None]:
    def function(*_: object) -> None:
        raise error

    return function


def _without_silu(rows: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    out.copy_(torch.addcmul(shift, rows.float(), scale))


def _beyond(rows: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    plain.activate(rows, scale, shift, out)
    whole_band = torch.as_strided(out, (2, 11, *out.shape[2:]), out.stride(), 0)
    whole_band[:, 0].zero_()


WRONG: dict[str, tuple[str, Callable[..., Any]]] = {
    "other function": ("activate", _without_silu),
    "writes elsewhere": ("activate", _beyond),
    "other sums": ("sum_deviations", lambda rows, pivot: plain.sum_deviations(rows, pivot) * 1.01),
    "no compiler": ("activate", _raise(RuntimeError("Failed to find C compiler"))),
    "no driver": ("normalize", _raise(AssertionError("libcuda.so cannot found"))),
    "no cache": ("sum_deviations", _raise(PermissionError("/root/.triton"))),
}


@pytest.mark.parametrize("name", WRONG)
def test_kernels_that_are_not_right_are_not_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that fails or differs costs a warning, once, and no picture."""
    function, wrong = WRONG[name]
    kernels = Kernels()
    setattr(kernels, function, wrong)
    use(kernels, monkeypatch)
    rows, out = torch.randn(2, 3, 4, 32), torch.empty(2, 3, 4, 32)
    expected = torch.empty_like(out)
    scale, shift = torch.randn(2, 2, 1, 1, 32)
    plain.activate(rows, scale, shift, expected)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            Affine(scale, shift).activate(rows, out)
    assert torch.equal(out, expected)
    assert [log["event"] for log in logs] == ["banded.kernels_refused"]


def test_a_kernel_that_fails_later_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be compiled for another shape costs a warning, once; PyTorch computes."""
    kernels = Kernels()
    use(kernels, monkeypatch)
    rows, out = torch.randn(2, 3, 4, 32), torch.empty(2, 3, 4, 32)
    expected = torch.empty_like(out)
    scale, shift = torch.randn(2, 2, 1, 1, 32)
    plain.activate(rows, scale, shift, expected)
    assert fused.arithmetic(rows) is not plain
    monkeypatch.setattr(kernels, "activate", _raise(OSError("no space left")))
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            Affine(scale, shift).activate(rows, out)
            assert torch.equal(out, expected)
            out.zero_()
    assert [log["event"] for log in logs] == ["banded.kernels_refused"]


def test_right_kernels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs from PyTorch by nothing passes, for each dtype on its own."""
    kernels = Kernels()
    use(kernels, monkeypatch)
    rows = torch.randn(2, 3, 4, 32)
    assert all(fused.arithmetic(rows.to(dtype)).kernels is kernels for dtype in DTYPES)
    assert fused.arithmetic(rows.transpose(2, 3)) is plain
    with fused.disabled():
        assert fused.arithmetic(rows) is plain
    assert fused.arithmetic(rows) is not plain


def test_too_little_memory_says_nothing_about_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes to whoever decodes, who knows what to do, and the kernels are tried again."""
    kernels = Kernels()
    kernels.activate = _raise(torch.OutOfMemoryError("full"))  # type: ignore[method-assign]
    use(kernels, monkeypatch)
    rows = torch.randn(2, 3, 4, 32)
    with pytest.raises(torch.OutOfMemoryError):
        fused.arithmetic(rows)
    del kernels.activate
    assert fused.arithmetic(rows) is not plain


def test_without_triton_pytorch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Triton is not installed there is a warning, once, and nothing else changes."""
    monkeypatch.setattr(fused, "_on_gpu", lambda _: True)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "darkroom_worker.banded.kernels", raising=False)
    monkeypatch.delattr("darkroom_worker.banded.kernels", raising=False)
    fused._load.cache_clear()
    try:
        with structlog.testing.capture_logs() as logs:
            assert {fused.arithmetic(torch.zeros(1, 1, 1, 1)) for _ in range(2)} == {plain}
    finally:
        fused._load.cache_clear()
    assert [log["event"] for log in logs] == ["banded.no_triton"]


GPUS = {"Turing": 75, "Ampere": 80, "Hopper": 90, "Blackwell": 120}


@pytest.mark.parametrize("name", GPUS)
def test_kernels_compile_for_gpus(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler takes the kernels in each dtype, and reads and writes 16 bytes at once."""
    triton = pytest.importorskip("triton", reason="Triton is there only for Linux")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from darkroom_worker.banded import kernels

    pointers = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    for dtype, pointer in pointers.items():
        for kernel, sizes in (
            (kernels._activate, (32, 128)),
            (kernels._sum_deviations, (256, 32, 128)),
            (kernels._normalize, (4,)),
        ):
            names = kernel.arg_names
            constants = dict(zip(names[-len(sizes) :], sizes, strict=True))
            signature = {
                name: "constexpr"
                if name in constants
                else _signature(name, pointer, of_sums="*fp64" if len(sizes) == 1 else "*fp32")
                for name in names
            }
            aligned = [
                name
                for name, kind in signature.items()
                if kind.startswith("*") or name in ("channels", "rows_stride", "out_stride")
            ]
            source = ASTSource(
                kernel,
                signature,
                {(names.index(name),): value for name, value in constants.items()},
                {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
            )
            made = triton.compile(source, target=GPUTarget("cuda", GPUS[name], 32))
            assert made.asm["cubin"]
            if len(sizes) > 1:
                assert "ld.global.v4" in made.asm["ptx"], (dtype, kernel)


def _signature(name: str, pointer: str, of_sums: str) -> str:
    """Give the type of a kernel's argument as Triton finds it in a launch."""
    kinds = {
        **dict.fromkeys(("rows", "out", "weight", "bias"), pointer),
        **dict.fromkeys(("scale", "shift", "pivot"), "*fp32"),
        **dict.fromkeys(("sums", "squares"), of_sums),
        "eps": "fp32",
    }
    return kinds.get(name, "i32")


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pictures_are_the_same_on_the_way_of_a_gpu(
    vae: Any, height: int, width: int, mode: Mode
) -> None:
    """Odd, tall, wide and tiny pictures, decoded together, and all steps are told."""
    z = latents(vae, height, width, batch=3) * torch.tensor([0.1, 1, 3]).view(3, 1, 1, 1)
    taken: list[None] = []
    decoder = BandedDecoder(vae)
    decoded = decoder.decode(z, mode, lambda: taken.append(None))
    assert distance(decoded, whole(vae, z)) <= WORST
    assert len(taken) == decoder.steps(tuple(z.shape), mode)


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("band", [1, 2, 3, 5, 8, 1000])
def test_bands_do_not_show_on_the_way_of_a_gpu(
    vae: Any, band: int, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of rows of a band, the picture is the same."""
    monkeypatch.setitem(memory().WORKING_BYTES, "gpu", 1)
    monkeypatch.setattr(memory(), "WORKING_PIXELS", band * 12)
    z = latents(vae, 8, 12)
    assert distance(BandedDecoder(vae).decode(z, mode), whole(vae, z)) <= WORST


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_no_further_from_float32_on_the_way_of_a_gpu(
    dtype: torch.dtype, mode: Mode
) -> None:
    """The picture is as near to the float32 one as diffusers' own in half precision is."""
    vae = make_vae((32, 64, 64), layers_per_block=2)
    half = make_vae((32, 64, 64), layers_per_block=2).to(dtype)
    vae.load_state_dict(half.state_dict())
    z = torch.cat([latents(vae, 12, 16), latents(vae, 16, 12).transpose(2, 3)]).to(dtype)
    expected = whole(vae, z.float())
    decoded = BandedDecoder(half).decode(z, mode)
    assert error(decoded, expected) <= error(whole(half, z), expected)


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("mode", MODES)
def test_a_gpu_convolves_without_copies(
    vae: Any, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of a batch are one piece of memory in `channels_last`, and so are the weights.

    cuDNN would copy them before each convolution otherwise. Where everything is kept no convolution
    has a single row: for a GPU that is as much work as many.
    """
    seen: list[Tensor] = []
    convolve = convolution.RowConvolution.__call__

    def spy(self: convolution.RowConvolution, window: Tensor) -> Tensor:
        seen.append(window)
        assert self._weight.is_contiguous(memory_format=torch.channels_last)
        return convolve(self, window)

    monkeypatch.setattr(memory(), "WORKING_PIXELS", 512)
    monkeypatch.setattr(convolution.RowConvolution, "__call__", spy)
    BandedDecoder(vae).decode(latents(vae, 8, 12, batch=2), mode)
    assert all(window.is_contiguous() for window in seen)
    if mode is Mode.FAST:
        assert min(window.shape[1] for window in seen) > 3


@pytest.mark.usefixtures("as_on_gpu")
def test_nothing_waits_for_the_gpu(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No value comes back to Python, which could wait for it and could not be recorded."""
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu"):
        monkeypatch.setattr(Tensor, name, _raise(AssertionError(f"{name} waits")))
    for mode in MODES:
        BandedDecoder(vae).decode(latents(vae, 6, 5), mode)


def test_a_gpu_asks_with_many_queries_at_once() -> None:
    """Enough to fill it, no more products than are bounded, and at least a row."""
    assert query_rows(64, 64, 512, "gpu") == 64
    assert query_rows(128, 128, 512, "gpu") * 128 == 8192
    assert query_rows(256, 256, 512, "gpu") * 256 == 8192
    assert query_rows(1, 1, 512, "gpu") == 1
    assert query_rows(3, 1 << 20, 512, "gpu") == 1


def record_on_cpu(decode: Callable[[Tensor], Tensor], z: Tensor) -> Recording:
    """Stand in for a CUDA graph: a replay decodes anew, into the same tensor."""
    kept = z.clone()
    pictures = decode(kept)

    def replay() -> None:
        pictures.copy_(decode(kept))

    return Recording(kept, pictures, replay, pictures.nbytes)


def test_repeated_shapes_are_replayed(vae: Any) -> None:
    """The pictures are those of the latents that came, however often; all steps are told."""
    recorded: list[tuple[int, ...]] = []

    def record(decode: Callable[[Tensor], Tensor], z: Tensor) -> Recording:
        recorded.append(tuple(z.shape))
        return record_on_cpu(decode, z)

    decoder = BandedDecoder(vae)
    graphed = GraphedDecoder(decoder, 1 << 40, record=record)
    first, second = latents(vae, 3, 2), latents(vae, 3, 2) * 2
    made = [graphed.decode(z) for z in (first, second, first, second)]
    assert recorded == [(1, 4, 3, 2)]
    for z, picture in zip((first, second, first, second), made, strict=True):
        assert torch.equal(picture, decoder.decode(z))
    taken: list[None] = []
    graphed.decode(first, Mode.BALANCED, lambda: taken.append(None))
    assert len(taken) == decoder.steps((1, 4, 3, 2), Mode.BALANCED)
    graphed.decode(first, Mode.FAST)
    assert len(graphed) == 1


def test_graphs_are_bounded(vae: Any) -> None:
    """Only so many are kept, the last ones used, and only in so many bytes."""
    graphed = GraphedDecoder(BandedDecoder(vae), 1 << 40, graphs=2, record=record_on_cpu)
    sizes = [(1, 2), (2, 2), (3, 2)]
    for size in sizes:
        for _ in range(2):
            graphed.decode(latents(vae, *size))
    assert len(graphed) == 2
    assert list(graphed._kept) == [((1, 4, *size), Mode.BALANCED) for size in sizes[1:]]
    assert graphed.nbytes == sum(3 * 16 * height * 2 * 4 for height in (2, 3))
    graphed.clear()
    assert graphed.nbytes == 0

    narrow = GraphedDecoder(BandedDecoder(vae), 1 << 10, record=record_on_cpu)
    z = latents(vae, 3, 2)
    pictures = [narrow.decode(z) for _ in range(3)]
    assert len(narrow) == 0
    assert torch.equal(pictures[0], pictures[2])


@pytest.mark.parametrize("error", [RuntimeError("capturing"), torch.OutOfMemoryError("full")])
def test_what_cannot_be_recorded_is_decoded_as_ever(vae: Any, error: Exception) -> None:
    """The picture comes, nothing is kept, and nobody tries again."""
    tried: list[None] = []

    def record(*_: object) -> Recording:
        tried.append(None)
        raise error

    graphed = GraphedDecoder(BandedDecoder(vae), 1 << 40, record=record)
    z = latents(vae, 3, 2)
    with structlog.testing.capture_logs() as logs:
        pictures = [graphed.decode(z) for _ in range(4)]
    assert len(tried) == len(logs) == 1
    assert len(graphed) == 0
    assert torch.equal(pictures[0], pictures[3])


def test_shapes_are_not_remembered_without_end(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that sees every shape once keeps no list of them all."""
    monkeypatch.setattr(graphs, "SHAPES", 3)
    graphed = GraphedDecoder(SimpleNamespace(decode=lambda *_: None), 0)  # type: ignore[arg-type]
    for height in range(1, 9):
        graphed.decode(latents(vae, height, 1))
    assert len(graphed._seen) <= 3

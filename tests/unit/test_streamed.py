"""The exact decode of videos as a stream of frames: the frames of `vae.decode`, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darkroom_infra.catalog import VaeEntry
from darkroom_wire.jobs import JobOptions
from darkroom_worker.cache import VaeCache
from darkroom_worker.engine import DeviceRequest, Engine
from darkroom_worker.footprint import Footprint
from darkroom_worker.loading import load, locate
from darkroom_worker.streamed import Order, StreamedDecoder, rows, stream
from darkroom_worker.streamed.decoder import HOLES
from tests.pipelines import CASES
from tests.vaes import make_kl

SECONDS = 60
"""How long a decode may take before something is wrong."""

FRAMEWISE = ["wan-2.1", "wan-2.2", "qwen-image"]
"""The cases whose VAEs decode frame by frame and keep what the next frame needs."""

SHAPES = [(1, 1, 4, 4), (1, 2, 3, 5), (1, 3, 1, 2), (2, 6, 5, 3)]
"""The batch, and the frames, height and width of latents."""


def latents(vae: Any, batch: int, frames: int, height: int, width: int) -> Tensor:
    """Make random latents."""
    generator = torch.Generator().manual_seed(frames * 10000 + height * 100 + width)
    return torch.randn(batch, vae.config.z_dim, frames, height, width, generator=generator)


@torch.inference_mode()
def whole(vae: Any, z: Tensor) -> Tensor:
    """Decode as diffusers does."""
    decoded: Tensor = vae.decode(z, return_dict=False)[0]
    return decoded


def in_dtype(vae: Any, dtype: torch.dtype) -> Any:
    """Make the same VAE in another dtype."""
    made = type(vae).from_config(vae.config).eval()
    made.load_state_dict(vae.state_dict())
    return nn.Module.to(made, dtype)


def tensor_bytes(run: Callable[[], object]) -> int:
    """Count the most bytes that tensors hold at once; what libraries hold is not counted."""
    footprint = Footprint("none")
    with torch.inference_mode(), footprint:
        run()
    return footprint.peak


class StopError(Exception):
    """What ends a decode in these tests."""


def stopping_after(steps: int) -> Callable[[], None]:
    """Make what ends a decode at the step after so many."""
    left = iter(range(steps))

    def step() -> None:
        if next(left, None) is None:
            raise StopError

    return step


@pytest.fixture(scope="module", params=FRAMEWISE)
def framewise(request: pytest.FixtureRequest) -> Any:
    """A VAE with the real structure and few channels."""
    return CASES[request.param].make_vae()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frames_are_those_of_diffusers_to_the_last_bit(
    framewise: Any, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    """One frame or many, odd sizes and batches: the clamped, unpatchified frames are the same."""
    vae = in_dtype(framewise, dtype)
    z = latents(vae, *shape).to(dtype) * 2
    expected = whole(vae, z)
    assert expected.float().std() > 0.05
    decoded = StreamedDecoder(vae).decode(z)
    assert decoded.dtype == dtype
    assert torch.equal(decoded, expected)


def test_clamped_values_are_clamped(framewise: Any) -> None:
    """Frames beyond [-1, 1] are cut off there, as diffusers does."""
    z = latents(framewise, 1, 3, 4, 4) * 50
    expected = whole(framewise, z)
    assert (expected.abs() == 1).any(), "nothing to clamp"
    assert torch.equal(StreamedDecoder(framewise).decode(z), expected)


def test_memory_does_not_grow_with_the_frames() -> None:
    """Each further frame takes its own bytes, and its latents', while diffusers takes twice."""
    vae = CASES["wan-2.1"].make_vae()
    decoder = StreamedDecoder(vae)
    short, long = latents(vae, 1, 30, 1, 1), latents(vae, 1, 36, 1, 1)
    results = [decoder.decode(z).nbytes for z in (short, long)]
    growth = results[1] - results[0] + long.nbytes - short.nbytes
    streamed = [tensor_bytes(partial(decoder.decode, z)) for z in (short, long)]
    assert streamed[1] - streamed[0] <= growth
    in_one = [tensor_bytes(partial(whole, vae, z)) for z in (short, long)]
    assert in_one[1] - in_one[0] > 1.5 * growth


def test_memory_is_predicted_for_any_number_of_frames(framewise: Any) -> None:
    """The prediction counts the first frames, and the bytes of those that follow."""
    decoder = StreamedDecoder(framewise)
    shapes = [tuple(latents(framewise, 1, count, 4, 4).shape) for count in (3, 4, 100)]
    three, four, hundred = (decoder.predicted_bytes(shape) for shape in shapes)
    assert hundred - three == 97 * (four - three)
    z = latents(framewise, 1, 4, 4, 4)
    extra = decoder.decode(z).nbytes - decoder.decode(z[:, :, :3]).nbytes
    assert four - three == extra


def test_a_prediction_computes_nothing(framewise: Any) -> None:
    """Memory can be predicted for videos that would fill any machine."""
    decoder = StreamedDecoder(framewise)
    huge = (1, framewise.config.z_dim, 1000, 1000, 1000)
    assert decoder.predicted_bytes(huge) > 1 << 40


def test_a_decode_can_be_abandoned_at_any_frame(framewise: Any) -> None:
    """What `on_step` raises comes out; nothing is kept, and the next decode is as good as ever."""
    decoder = StreamedDecoder(framewise)
    z = latents(framewise, 1, 4, 3, 2)
    expected = whole(framewise, z)
    kept = list(framewise._feat_map)
    for stop in range(4):
        with pytest.raises(StopError):
            decoder.decode(z, on_step=stopping_after(stop))
        assert framewise._feat_map == kept
        assert torch.equal(decoder.decode(z), expected)


def test_steps_are_frames_and_their_layers(framewise: Any) -> None:
    """A step is told before each latent frame; layers that are listened to are counted too."""
    decoder = StreamedDecoder(framewise)
    z = latents(framewise, 1, 3, 2, 2)
    told: list[None] = []
    decoder.decode(z, on_step=lambda: told.append(None))
    assert len(told) == 3
    layers = [part for part in framewise.decoder.modules() if not any(part.children())]
    assert decoder.steps(tuple(z.shape)) == 3 * (1 + len(layers))


def _tiled(vae: Any) -> None:
    vae.enable_tiling()


def _sliced(vae: Any) -> None:
    vae.enable_slicing()


def _training(vae: Any) -> None:
    vae.train()


def _patched(vae: Any) -> None:
    vae.decoder.conv_in.forward = vae.decoder.conv_in.forward


def _other_decode(vae: Any) -> None:
    vae._decode = vae._decode


@pytest.mark.parametrize("change", [_tiled, _sliced, _training, _patched, _other_decode])
@pytest.mark.parametrize("name", FRAMEWISE)
def test_what_decodes_otherwise_is_left_to_diffusers(
    name: str, change: Callable[[Any], None]
) -> None:
    """A VAE that tiles, slices or was changed is not one whose picture is known."""
    vae = CASES[name].make_vae()
    assert isinstance(stream(vae), StreamedDecoder)
    change(vae)
    assert stream(vae) is None
    with pytest.raises(ValueError, match=type(vae).__name__):
        StreamedDecoder(vae)


def test_the_engine_streams_and_says_so(tmp_path: Path) -> None:
    """A video's job tells the way in its provenance, and its progress frame by frame."""
    vae = CASES["wan-2.1"].make_vae()
    vae.save_pretrained(tmp_path)
    entry = VaeEntry(name="wan", family="wan", source=str(tmp_path), dtype="float32")
    z = latents(vae, 1, 4, 3, 2)
    load_on_cpu = partial(load, device=torch.device("cpu"), dtype="auto")
    engine = Engine(VaeCache(locate, load_on_cpu, lambda: 1 << 50))
    request = DeviceRequest(entry, z, JobOptions(vae="wan", scaling="none"))
    engine.submit(request)
    result = request.future.result(SECONDS)
    assert (result.way["method"], result.way["mode"]) == ("exact-streamed", "frames")
    assert torch.equal(result.tensor, whole(vae, z))
    assert 0.9 < request.progress < 1


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of a few rows, though the videos of these tests are small."""
    monkeypatch.setattr(rows, "BAND_PIXELS", 16)


@pytest.mark.parametrize("pixels", [1, 50, 1 << 13])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 2, 20, 3), (1, 1, 2, 30)])
def test_rows_are_those_of_diffusers(
    framewise: Any,
    shape: tuple[int, int, int, int],
    pixels: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows of all frames give the same video to float rounding, in bands of one row or of many."""
    monkeypatch.setattr(rows, "BAND_PIXELS", pixels)
    z = latents(framewise, *shape) * 2
    expected = whole(framewise, z)
    decoded = StreamedDecoder(framewise).decode(z, Order.ROWS)
    assert decoded.shape == expected.shape
    assert (decoded - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_in_half_precision(framewise: Any, dtype: torch.dtype) -> None:
    """They are about as far from float32 as diffusers' own half-precision frames are."""
    z = latents(framewise, 1, 3, 6, 5).to(dtype)
    exact = whole(framewise, z.float())
    vae = in_dtype(framewise, dtype)
    theirs, ours = (
        (frames.float() - exact).square().mean().sqrt()
        for frames in (whole(vae, z), StreamedDecoder(vae).decode(z, Order.ROWS))
    )
    assert 0 < ours < 1.1 * theirs


def test_rows_are_clamped(framewise: Any) -> None:
    """Values beyond [-1, 1] are cut off in rows as well."""
    z = latents(framewise, 1, 2, 4, 4) * 50
    decoded = StreamedDecoder(framewise).decode(z, Order.ROWS)
    assert decoded.abs().max() == 1
    assert (decoded - whole(framewise, z)).abs().max() < 1e-3


@pytest.mark.usefixtures("narrow")
def test_memory_grows_with_a_row_and_not_with_the_picture(framewise: Any) -> None:
    """Each further row takes the bytes of its result and of its latents' map, and no others."""
    decoder = StreamedDecoder(framewise)
    low, high = latents(framewise, 1, 2, 20, 2), latents(framewise, 1, 2, 32, 2)
    sizes = [tensor_bytes(partial(decoder.decode, z, Order.ROWS)) for z in (low, high)]
    predicted = [decoder.predicted_bytes(tuple(z.shape), Order.ROWS) for z in (low, high)]
    growth = (predicted[1] - predicted[0]) / HOLES
    assert sizes[1] - sizes[0] == pytest.approx(growth, rel=0.1)
    by_frames = [tensor_bytes(partial(decoder.decode, z)) for z in (low, high)]
    assert sizes[1] - sizes[0] < (by_frames[1] - by_frames[0]) / 3


def test_the_mid_block_is_counted() -> None:
    """Of a picture so wide and high that nothing holds more than the mid block, that is counted."""
    vae = CASES["qwen-image"].make_vae()
    decoder = StreamedDecoder(vae)
    shape = (1, vae.config.z_dim, 1, 40, 40)
    z = latents(vae, 1, 1, 40, 40)
    held = tensor_bytes(partial(decoder.enter, z))
    result = decoder.decode(z, Order.ROWS).nbytes
    assert decoder.predicted_bytes(shape, Order.ROWS) >= held + result


@pytest.mark.usefixtures("narrow")
def test_rows_of_a_high_picture_are_predicted_by_a_low_one(framewise: Any) -> None:
    """The prediction goes through the first rows alone, and is that of the whole height."""
    decoder = StreamedDecoder(framewise)
    shape = (1, framewise.config.z_dim, 2, 40, 5)
    stream = decoder._streams[Order.ROWS]
    assert stream.steady(shape)[3] < 40
    held = decoder._count_held(Order.ROWS, shape)
    assert decoder.predicted_bytes(shape, Order.ROWS) == pytest.approx(HOLES * held, rel=0.01)


def test_rows_can_be_abandoned_anywhere(framewise: Any) -> None:
    """What `on_step` raises comes out at each of the steps, and the next decode is as good."""
    decoder = StreamedDecoder(framewise)
    z = latents(framewise, 1, 3, 2, 2)
    expected = decoder.decode(z, Order.ROWS)
    count = 3 + 1 + expected.shape[3]
    for stop in range(count):
        with pytest.raises(StopError):
            decoder.decode(z, Order.ROWS, stopping_after(stop))
    told: list[None] = []
    assert torch.equal(decoder.decode(z, Order.ROWS, lambda: told.append(None)), expected)
    assert len(told) == count
    entered = (framewise.decoder.conv_in, *framewise.decoder.mid_block.modules())
    layers = [part for part in entered if not any(part.children())]
    assert decoder.steps(tuple(z.shape), Order.ROWS) == count + 3 * len(layers)


def test_rows_come_first_where_they_are_faster(framewise: Any) -> None:
    """In float32 on a CPU large videos are decoded in rows first; else frames come first."""
    decoder = StreamedDecoder(framewise)
    small, large = (tuple(latents(framewise, 1, 1, side, side).shape) for side in (4, 64))
    assert decoder.modes(small) == (Order.FRAMES, Order.ROWS)
    assert decoder.modes(large) == (Order.ROWS, Order.FRAMES)
    half = in_dtype(framewise, torch.bfloat16)
    assert StreamedDecoder(half).modes(large) == (Order.FRAMES, Order.ROWS)


def _other_activation(vae: Any) -> None:
    vae.decoder.nonlinearity = nn.GELU().eval()


def _biased_norm(vae: Any) -> None:
    norm = vae.decoder.norm_out
    norm.bias = nn.Parameter(torch.zeros_like(norm.gamma))


def _other_doubling(vae: Any) -> None:
    last = [part for part in vae.decoder.modules() if isinstance(part, nn.Upsample)][-1]
    last.mode = "bilinear"


def _wider_padding(vae: Any) -> None:
    vae.decoder.conv_out._padding = (2, 2, 1, 1, 2, 0)


@pytest.mark.parametrize(
    "change", [_other_activation, _biased_norm, _other_doubling, _wider_padding]
)
@pytest.mark.parametrize("name", FRAMEWISE)
def test_unknown_layers_go_frame_by_frame(name: str, change: Callable[[Any], None]) -> None:
    """Where a layer is not as it is known here, the VAE's own decoder is called, and no other."""
    vae = CASES[name].make_vae()
    change(vae)
    assert StreamedDecoder(vae).modes((1, vae.config.z_dim, 1, 64, 64)) == (Order.FRAMES,)


def test_other_classes_are_left_to_diffusers() -> None:
    """Pictures' VAEs and subclasses have no frames that stream."""
    vae = CASES["wan-2.1"].make_vae()
    subclass: Any = type("Other", (type(vae),), {})
    other = subclass.from_config(vae.config).eval()
    assert stream(make_kl()) is None
    assert stream(other) is None

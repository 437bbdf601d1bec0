"""Encoding: pictures, tensors, what is refused, and what is known of every file."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from darkroom_wire.jobs import Format
from darkroom_worker.encoding import EncodedOutput, EncodeError, encode, videos
from tests.pixels import close_all, encoded, smooth

PICTURES = (Format.PNG, Format.JPEG, Format.WEBP)


@pytest.fixture(autouse=True)
def _files_are_closed() -> Iterator[None]:
    yield
    close_all()


def opened(output: EncodedOutput) -> torch.Tensor:
    """Read a picture's file back: [H, W, 3]."""
    with Image.open(output.file) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB")))


@pytest.mark.parametrize("chosen", PICTURES)
def test_each_picture_of_a_batch_is_a_file_of_its_own(chosen: Format) -> None:
    """A batch of N latents gives N pictures, in order, each in the format that was asked for."""
    pixels = smooth(3, 48, 64)
    outputs = encoded(pixels, chosen)
    assert len(outputs) == 3
    for index, output in enumerate(outputs):
        with Image.open(output.file) as picture:
            assert picture.format == chosen.name
        assert (output.width, output.height) == (64, 48)
        assert (output.extension, output.content_type) == (chosen.value, chosen.content_type)
        assert (output.num_frames, output.fps) == (None, None)
        errors = (opened(output).float() - pixels).abs().mean((1, 2, 3))
        assert errors[index] < 4
        assert errors.argmin() == index
        assert errors.sort().values[1] > 8


def test_a_png_holds_exactly_the_pixels() -> None:
    """PNG loses nothing, also where the pixels lie in memory with their channels apart."""
    pixels = torch.randint(0, 256, (1, 3, 17, 23), dtype=torch.uint8).permute(0, 2, 3, 1)
    (output,) = encoded(pixels, Format.PNG)
    assert torch.equal(opened(output), pixels[0])


def rows_alike(height: int, width: int) -> torch.Tensor:
    """Make a noisy row, again and again: what is above tells all."""
    return torch.randint(0, 256, (1, width, 3), dtype=torch.uint8).expand(height, width, 3)


@pytest.mark.parametrize(
    ("pixels", "filter_"),
    [
        pytest.param(rows_alike(40, 64).transpose(0, 1), 1, id="columns alike"),
        pytest.param(rows_alike(40, 64), 2, id="rows alike"),
        pytest.param(torch.normal(128.0, 9.0, (40, 64, 3)).to(torch.uint8), 3, id="noisy"),
        pytest.param(torch.randint(0, 256, (1, 1, 3), dtype=torch.uint8), None, id="one pixel"),
        pytest.param(rows_alike(3, 40_000), 2, id="rows longer than a stripe"),
        pytest.param(torch.randint(0, 256, (9000, 5, 3), dtype=torch.uint8), None, id="stripes"),
    ],
)
def test_every_filter_of_a_png_is_undone(pixels: torch.Tensor, filter_: int | None) -> None:
    """Each row's filter is one that suits it, and readers of two makes give the pixels back."""
    (output,) = encoded(pixels[None], Format.PNG)
    content = output.file.read()
    assert torch.equal(opened(output), pixels)
    with av.open(io.BytesIO(content)) as container:
        (frame,) = container.decode(video=0)
        assert np.array_equal(frame.to_ndarray(format="rgb24"), pixels.numpy())
    if filter_ is not None:
        rows = np.frombuffer(zlib.decompress(png_data(content)), np.uint8)
        filters = rows.reshape(pixels.shape[0], -1)[:, 0]
        assert np.bincount(filters).argmax() == filter_


def png_data(content: bytes) -> bytes:
    """Join the compressed parts of a PNG file, and check that each chunk has its sum."""
    joined, at = b"", 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length :][:4]) == (zlib.crc32(kind + data),)
        joined += data if kind == b"IDAT" else b""
        at += 12 + length
    return joined


@pytest.mark.parametrize("chosen", [Format.JPEG, Format.WEBP])
def test_quality_is_what_the_caller_says(chosen: Format) -> None:
    """A lower quality makes a smaller file; without one it is 90."""
    pixels = smooth(1, 96, 128)
    best, usual, least = (encoded(pixels, chosen, quality=number)[0] for number in (100, 90, 1))
    assert best.bytes > usual.bytes > least.bytes
    assert encoded(pixels, chosen)[0].sha256 == usual.sha256


@pytest.mark.parametrize(
    ("chosen", "sizes"),
    [
        (Format.PNG, (1, 24, 32)),
        (Format.SAFETENSORS, (1, 24, 32)),
        (Format.MP4, (1, 5, 24, 32)),
        (Format.WEBP, (1, 5, 24, 32)),
        (Format.JPEG, (1, 5, 24, 32)),
    ],
)
def test_bytes_and_hash_are_those_of_the_file(chosen: Format, sizes: tuple[int, ...]) -> None:
    """What a job's document says of an output is true, and the file is ready to be read."""
    (output,) = encoded(smooth(*sizes), chosen, fps=24)
    content = output.file.read()
    assert output.bytes == len(content) > 0
    assert output.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["decoded", "latents"])
def test_a_tensor_comes_back_as_it_was(dtype: torch.dtype, name: str) -> None:
    """Safetensors holds the whole batch with its dtype, NaN and infinity, under the given name."""
    tensor = torch.randn(2, 3, 9, 7).to(dtype)
    tensor[0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    (output,) = encoded(tensor, Format.SAFETENSORS, name=name)
    loaded = safetensors.torch.load(output.file.read())
    assert list(loaded) == [name]
    assert loaded[name].dtype is dtype
    assert torch.equal(loaded[name].nan_to_num(7), tensor.nan_to_num(7))
    assert (output.width, output.height, output.num_frames) == (7, 9, None)
    assert (output.extension, output.content_type) == (
        "safetensors",
        "application/x-safetensors",
    )


@pytest.mark.parametrize(
    ("tensor", "num_frames"),
    [
        (torch.zeros(1, 9, 7, 3, dtype=torch.uint8), None),
        (torch.zeros(1, 5, 9, 7, 3, dtype=torch.uint8), 5),
        (torch.zeros(1, 3, 5, 9, 7), 5),
    ],
)
def test_sizes_of_a_tensor_are_found(tensor: torch.Tensor, num_frames: int | None) -> None:
    """Pixels have their channels last, a VAE's output before the sizes; both tell their size."""
    (output,) = encoded(tensor, Format.SAFETENSORS)
    assert (output.width, output.height, output.num_frames) == (7, 9, num_frames)
    assert torch.equal(safetensors.torch.load(output.file.read())["decoded"], tensor)


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (2, 3, 1, 0)])
def test_a_tensor_is_written_in_its_order_not_in_memorys(order: tuple[int, ...]) -> None:
    """A tensor whose values lie in another order in memory, as after a permutation, is itself."""
    tensor = torch.randn(3, 5, 7, 4).permute(order)
    (output,) = encoded(tensor, Format.SAFETENSORS)
    assert torch.equal(safetensors.torch.load(output.file.read())["decoded"], tensor)


@pytest.mark.parametrize(
    ("tensor", "chosen", "message"),
    [
        (torch.zeros(1, 8, 8, 3), Format.PNG, "float32"),
        (torch.zeros(1, 8, 8, 4, dtype=torch.uint8), Format.PNG, "8, 4"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), Format.MP4, "mp4"),
        (torch.zeros(1, 8, 65_501, 3, dtype=torch.uint8), Format.JPEG, "65500"),
        (torch.zeros(1, 16_384, 8, 3, dtype=torch.uint8), Format.WEBP, "16383"),
        (torch.zeros(1, 1, 8, 16_385, 3, dtype=torch.uint8), Format.MP4, "16384"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    tensor: torch.Tensor, chosen: Format, message: str
) -> None:
    """A tensor that does not fit its format is refused at once, and told from a full disk."""
    with pytest.raises(EncodeError, match=message):
        encode(tensor, chosen, fps=24)


@pytest.mark.parametrize("chosen", [Format.JPEG, Format.WEBP])
def test_the_longest_side_that_is_allowed_is_encoded(chosen: Format) -> None:
    """The limits are those of the encoders: one pixel less than what is refused works."""
    longest = {Format.JPEG: 65_500, Format.WEBP: 16_383}[chosen]
    (output,) = encoded(torch.zeros(1, 4, longest, 3, dtype=torch.uint8), chosen)
    assert opened(output).shape == (4, longest, 3)


@pytest.mark.parametrize("tensor", [torch.zeros(1, 3, 8, 8, dtype=torch.int64), torch.zeros(8)])
def test_a_tensor_that_safetensors_would_not_say_is_refused(tensor: torch.Tensor) -> None:
    """A dtype that the API does not speak, or a tensor without height and width, is an error."""
    with pytest.raises(EncodeError, match="safetensors cannot hold"):
        encoded(tensor, Format.SAFETENSORS)


@pytest.mark.parametrize("fps", [None, 0.0, 0.001, 1001.0, float("nan")])
@pytest.mark.parametrize("chosen", [Format.MP4, Format.WEBP])
def test_a_video_needs_a_rate(chosen: Format, fps: float | None) -> None:
    """Without frames per second, or with ones that the container cannot tell, nothing is begun."""
    with pytest.raises(EncodeError, match="fps"):
        encode(smooth(1, 2, 8, 8), chosen, fps=fps)


def open_files(folder: Path) -> list[str]:
    """Name the files below a folder that this process holds open, deleted ones included."""
    targets = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            targets.append(str(link.readlink()))
        except FileNotFoundError:  # the listing's own
            continue
    return [target for target in targets if target.startswith(f"{folder}{os.sep}")]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test's own for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


TO_DISK = (Format.MP4, Format.WEBP, Format.PNG, Format.JPEG, Format.SAFETENSORS)
linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads /proc")


@linux
@pytest.mark.parametrize("chosen", TO_DISK)
def test_a_file_on_disk_lasts_until_it_is_closed(temporary: Path, chosen: Format) -> None:
    """Videos, archives and tensors lie on the disk, without a name, and are gone once closed."""
    (output,) = encoded(smooth(1, 3, 24, 32), chosen, fps=8)
    assert len(open_files(temporary)) == 1
    assert list(temporary.iterdir()) == []
    assert len(output.file.read()) == output.bytes
    output.file.close()
    assert open_files(temporary) == []


class StopError(Exception):
    """Ends an encoding."""


@linux
@pytest.mark.parametrize("chosen", TO_DISK[:-1])
def test_an_encoding_that_is_stopped_leaves_nothing(temporary: Path, chosen: Format) -> None:
    """A job may be lost between two frames: the encoding ends there, and its file is gone."""
    frames = iter(range(24))
    held: list[str] = []

    def stop() -> None:
        if next(frames) == 20:  # x264 holds the first frames back, and opens no file for them
            held.extend(open_files(temporary))
            raise StopError

    with pytest.raises(StopError) as caught:
        encoded(smooth(1, 24, 24, 32), chosen, fps=8, on_frame=stop)
    assert len(held) == 1
    # The traceback keeps its frames alive: what is not closed, is open.
    assert caught.tb is not None
    assert list(temporary.iterdir()) == []
    assert open_files(temporary) == []


@linux
@pytest.mark.parametrize("limit", [10_000, -1])
@pytest.mark.parametrize("chosen", TO_DISK)
def test_a_full_disk_is_an_error_and_leaves_nothing(
    temporary: Path, chosen: Format, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be written whole, be it by one byte, is never taken for a whole one."""
    import resource

    # On a busy machine two threads of x264 now and then give another size for the same frames.
    monkeypatch.setattr(videos, "X264_THREADS", 1)
    video = torch.randint(0, 256, (1, 8, 64, 64, 3), dtype=torch.uint8)
    size = encoded(video, chosen, fps=8)[0].bytes
    close_all()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit if limit > 0 else size + limit, hard))
    try:
        with pytest.raises(OSError, match=r"File too large|Errno 27") as caught:
            encoded(video, chosen, fps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.tb is not None  # as above
    assert list(temporary.iterdir()) == []
    assert open_files(temporary) == []


@linux
def test_files_are_made_one_at_a_time(temporary: Path) -> None:
    """The second of two videos is not begun before it is asked for."""
    done: list[None] = []
    outputs = encode(smooth(2, 3, 24, 32), Format.MP4, fps=8, on_frame=lambda: done.append(None))
    assert (len(done), open_files(temporary)) == (0, [])
    next(outputs).file.close()
    assert (len(done), open_files(temporary)) == (3, [])
    next(outputs).file.close()
    assert len(done) == 6

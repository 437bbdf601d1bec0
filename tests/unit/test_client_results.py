"""Outputs as pictures, arrays, tensors and bytes."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom import ResultTypeError, UnexpectedAnswerError
from darkroom._results import As, convert
from darkroom_wire.jobs import Job
from darkroom_wire.tensors import PIXEL_DTYPES, from_raw, to_safetensors


def finished(*content_types: str, num_frames: int | None = None) -> Job:
    """A job with outputs of these types."""
    size = {"bytes": 1, "width": 1, "height": 1, "num_frames": num_frames}
    outputs = [{"url": "u", "content_type": kind, "sha256": "", **size} for kind in content_types]
    document: dict[str, Any] = {
        "id": "x",
        "status": "succeeded",
        "vae": "demo",
        "format": "png",
        "priority": "normal",
        "latents": {"shape": [1], "dtype": "float16", "bytes": 2},
        "created_at": "2026-01-01T00:00:00Z",
        "outputs": outputs,
    }
    return Job.model_validate(document)


def picture_file(kind: str, *values: int) -> bytes:
    """A picture of 3 x 2 pixels, or an animation with a frame for each value."""
    first, *others = (Image.new("RGB", (3, 2), (value, 0, 0)) for value in values)
    file = io.BytesIO()
    animated = {"save_all": True, "append_images": others} if others else {}
    first.save(file, kind, **animated, **({"lossless": True} if kind == "webp" else {}))
    return file.getvalue()


def archive_file(*values: int) -> bytes:
    """An archive with a picture for each value, written last to first."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for index, value in reversed(list(enumerate(values))):
            archive.writestr(f"{index:06}.png", picture_file("png", value))
    return file.getvalue()


def tensor_file(tensor: torch.Tensor) -> bytes:
    """A safetensors file of one tensor."""
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return to_safetensors([from_raw(data, tensor.shape, dtype, "decoded", PIXEL_DTYPES)])


SAFETENSORS = finished("application/x-safetensors")
VALUES = torch.tensor([[1.5, -2.25], [0.0, 3.0]])


def test_pictures() -> None:
    """A picture is a PIL image; several are a list."""
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, "webp")
    assert convert(finished("image/webp"), [file.getvalue()], "auto").size == (3, 2)
    both = convert(finished("image/webp", "image/webp"), [file.getvalue()] * 2, "pil")
    assert [image.size for image in both] == [(3, 2)] * 2


@pytest.mark.parametrize("files", [1, 2])
def test_pictures_as_pixels(files: int) -> None:
    """Pictures as numbers are one array with a batch axis, however many there are."""
    contents = [picture_file("png", value) for value in (7, 9)[:files]]
    job = finished(*["image/png"] * files)
    array = convert(job, contents, "numpy")
    assert (array.shape, array.dtype) == ((files, 2, 3, 3), np.uint8)
    assert array[-1, 0, 0].tolist() == [(7, 9)[files - 1], 0, 0]
    tensor = convert(job, contents, "torch")
    assert tensor.dtype is torch.uint8
    assert np.array_equal(tensor.numpy(), array)


@pytest.mark.parametrize(
    ("kind", "content", "automatic"),
    [
        ("image/webp", picture_file("webp", 10, 20, 30), list),
        ("application/zip", archive_file(10, 20, 30), bytes),
        ("image/webp", picture_file("webp", 10), list),
    ],
)
def test_frames(kind: str, content: bytes, automatic: type) -> None:
    """Frames come in their order, as pictures or as pixels, from an animation or an archive."""
    count = 1 if content == picture_file("webp", 10) else 3
    job = finished(kind, num_frames=count)
    frames = convert(job, [content], "pil")
    assert [frame.getpixel((0, 0)) for frame in frames] == [
        (value, 0, 0) for value in (10, 20, 30)[:count]
    ]
    assert type(convert(job, [content], "auto")) is automatic
    assert convert(job, [content], "bytes") == content
    pixels = convert(job, [content], "numpy")
    assert pixels.shape == (1, count, 2, 3, 3)
    assert pixels[0, -1, 0, 0, 0] == 10 * count
    assert np.array_equal(convert(job, [content], "torch").numpy(), pixels)


def test_broken_archive() -> None:
    """An archive that is none is told as such."""
    with pytest.raises(UnexpectedAnswerError, match="archive"):
        convert(finished("application/zip", num_frames=2), [b"x"], "pil")


def test_pixels_in_a_tensor() -> None:
    """A tensor of pixels is read too."""
    pixels = torch.arange(6, dtype=torch.uint8).reshape(1, 1, 2, 3)
    assert torch.equal(convert(SAFETENSORS, [tensor_file(pixels)], "torch"), pixels)


@pytest.mark.parametrize("kind", ["video/mp4", "application/zip"])
def test_videos_and_archives_are_bytes(kind: str) -> None:
    """What no library of the client opens is given as it is stored."""
    assert convert(finished(kind), [b"content"], "auto") == b"content"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors(dtype: torch.dtype) -> None:
    """A tensor keeps its dtype in torch; numpy has no bfloat16 and gets the values as float32."""
    content = tensor_file(VALUES.to(dtype))
    tensor = convert(SAFETENSORS, [content], "auto")
    assert tensor.dtype is dtype
    assert torch.equal(tensor.float(), VALUES)
    array = convert(SAFETENSORS, [content], "numpy")
    assert array.dtype == (np.float16 if dtype is torch.float16 else np.float32)
    assert np.array_equal(array, VALUES.numpy())
    array[0, 0] = 7  # may be written to


@pytest.mark.parametrize(
    ("kind", "as_", "advice"),
    [
        ("video/mp4", "pil", 'ask for "bytes"'),
        ("video/mp4", "numpy", 'ask for "bytes"'),
        ("application/x-safetensors", "pil", '"numpy", "torch" or "bytes"'),
    ],
)
def test_what_cannot_be_had(kind: str, as_: As, advice: str) -> None:
    """A result that cannot be had as what was asked for says what can be had."""
    with pytest.raises(ResultTypeError, match=advice):
        convert(finished(kind), [b"x"], as_)


def test_broken_tensor() -> None:
    """A tensor file that is none is told as such."""
    with pytest.raises(UnexpectedAnswerError, match="safetensors"):
        convert(SAFETENSORS, [b"x"], "auto")


def test_without_pillow_and_torch() -> None:
    """Without Pillow the error says `as_="bytes"`; without torch a tensor is a numpy array."""
    code = """
import sys
sys.modules["PIL"] = None
from darkroom import ResultTypeError
from darkroom._results import _Kind, _to_picture, _converter
try:
    _to_picture(b"")
except ResultTypeError as error:
    print(error)
print(_converter(_Kind.TENSOR, "auto").__name__, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        'a picture needs Pillow, which is not installed: install it, or ask for as_="bytes"',
        "_to_numpy False",
    ]

"""Outputs as pictures, arrays, tensors and bytes."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom import ResultTypeError, UnexpectedAnswerError
from darkroom._results import As, convert
from darkroom_wire.jobs import Job
from darkroom_wire.tensors import from_raw, to_safetensors


def finished(*content_types: str) -> Job:
    """A job with outputs of these types."""
    outputs = [
        {"url": "u", "content_type": kind, "bytes": 1, "width": 1, "height": 1, "sha256": ""}
        for kind in content_types
    ]
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


def tensor_file(tensor: torch.Tensor) -> bytes:
    """A safetensors file of one tensor."""
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return to_safetensors([from_raw(data, tensor.shape, dtype, "decoded")])


SAFETENSORS = finished("application/x-safetensors")
VALUES = torch.tensor([[1.5, -2.25], [0.0, 3.0]])


def test_pictures() -> None:
    """A picture is a PIL image; several are a list."""
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, "webp")
    assert convert(finished("image/webp"), [file.getvalue()], "auto").size == (3, 2)
    both = convert(finished("image/webp", "image/webp"), [file.getvalue()] * 2, "pil")
    assert [image.size for image in both] == [(3, 2)] * 2


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
        ("image/png", "torch", 'or "pil"'),
        ("application/x-safetensors", "pil", '"numpy" or "torch"'),
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
from darkroom._results import _to_picture, _converter
try:
    _to_picture(b"")
except ResultTypeError as error:
    print(error)
print(_converter("application/x-safetensors", "auto").__name__, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        'a picture needs Pillow, which is not installed: install it, or ask for as_="bytes"',
        "_to_numpy False",
    ]

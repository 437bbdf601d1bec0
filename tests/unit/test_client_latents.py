"""Latents of every kind as a request's body."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom import LatentsError
from darkroom._latents import Body, read_body
from darkroom_wire.jobs import Task
from darkroom_wire.tensors import from_raw


def shape_of(query: tuple[tuple[str, str], ...]) -> list[int]:
    """The shape that a query gives."""
    return [int(value) for name, value in query if name == "shape"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_tensors(dtype: torch.dtype) -> None:
    """A tensor's values arrive bit for bit in C order, whatever its strides, with its dtype."""
    tensor = torch.randn(2, 3, 4, requires_grad=True).to(dtype).transpose(0, 2)
    body = read_body(tensor)
    assert body.content_type == "tensor/binary"
    assert shape_of(body.query) == [4, 3, 2]
    assert dict(body.query)["dtype"] == str(dtype).removeprefix("torch.")
    back = torch.frombuffer(bytearray(body.content), dtype=dtype).reshape(4, 3, 2)
    assert torch.equal(back, tensor)


@pytest.mark.parametrize("dtype", ["<f4", "<f2", ">f4"])
def test_numpy_arrays(dtype: str) -> None:
    """An array's values arrive little-endian in C order, whatever its own order."""
    array = np.arange(24).reshape(2, 3, 4).astype(dtype).transpose(2, 0, 1)
    body = read_body(array)
    sent = np.frombuffer(body.content, array.dtype.newbyteorder("<")).reshape(4, 2, 3)
    assert np.array_equal(sent, array)
    from_raw(body.content, shape_of(body.query), dict(body.query)["dtype"])


@pytest.mark.parametrize(
    ("latents", "named"),
    [
        (np.zeros((1, 4), np.float64), "float64"),
        (np.zeros((1, 4), np.int32), "int32"),
        (torch.zeros(1, 4, dtype=torch.float64), "float64"),
        (torch.zeros(4, device="meta"), "meta"),
        (np.zeros((), np.float32), "dimensions"),
        (np.zeros((0, 4), np.float32), "empty"),
        ([[1.0]], "list"),
        (np.zeros((1, 4), np.uint8), "uint8"),
        (torch.zeros(1, 4, dtype=torch.uint8), "uint8"),
        (Image.new("RGB", (2, 2)), "task"),
        ("picture.png", "task=encode"),
    ],
)
def test_what_cannot_be_sent(latents: Any, named: str) -> None:
    """What cannot be sent is refused with its dtype, shape or type, and with what to do."""
    with pytest.raises(LatentsError, match=named):
        read_body(latents)


@pytest.mark.parametrize("name", ["a.safetensors", "a.latent", "A.SAFETENSORS"])
def test_safetensors_files_go_as_they_are(tmp_path: Path, name: str) -> None:
    """Files that the service reads itself are not changed on the way."""
    path = tmp_path / name
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    for given in (path, str(path)):
        body = read_body(given)
        assert (body.content, body.content_type) == (path.read_bytes(), "application/x-safetensors")
        assert body.query == ()
    assert read_body(path.read_bytes()) == read_body(path)


def test_npy_files(tmp_path: Path) -> None:
    """A .npy file is sent as the array that it holds, in Fortran order too."""
    array = np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3))
    np.save(tmp_path / "a.npy", array)
    body = read_body(tmp_path / "a.npy")
    assert body.content == array.tobytes("C")
    assert shape_of(body.query) == [2, 3]


def test_npy_files_are_never_unpickled(tmp_path: Path) -> None:
    """A .npy file that holds Python objects is refused, not executed."""
    np.save(tmp_path / "bad.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(LatentsError, match=r"bad\.npy"):
        read_body(tmp_path / "bad.npy")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.npy", b"junk"), ("b.npy", b""), ("c.pt", b"x"), ("missing.npy", None), ("d.latent", None)],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    """A file that is missing, of another kind or broken is refused by its name."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LatentsError, match=name):
        read_body(tmp_path / name)


def opened(body: Body) -> Image.Image:
    """The picture in a body."""
    return Image.open(io.BytesIO(body.content))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.png", "png"), ("a.jpg", "jpeg"), ("A.JPEG", "jpeg"), ("a.webp", "webp")],
)
def test_picture_files_to_encode(tmp_path: Path, name: str, kind: str) -> None:
    """Pictures go as they are, from a file or as bytes, and say of which type they are."""
    Image.new("RGB", (3, 2), (250, 0, 0)).save(tmp_path / name, kind)
    content = (tmp_path / name).read_bytes()
    for given in (tmp_path / name, str(tmp_path / name), content):
        assert read_body(given, "encode") == Body(content, f"image/{kind}")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "YCbCr"])
def test_pictures_in_memory_to_encode(mode: str) -> None:
    """A PIL image arrives with the colours that it has, in whatever way it stores them."""
    image = Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode)
    body = read_body(image, Task.ENCODE)
    assert (body.content_type, body.query) == ("image/png", ())
    assert opened(body).convert("RGB").getpixel((2, 1)) == (255, 255, 255)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "bfloat16"])
def test_pixels_to_encode(dtype: str) -> None:
    """Pixels as tensors arrive bit for bit, in uint8 too."""
    pixels = torch.arange(24).reshape(1, 3, 2, 4).to(getattr(torch, dtype)).transpose(2, 3)
    body = read_body(pixels, "encode")
    assert (shape_of(body.query), dict(body.query)["dtype"]) == ([1, 3, 4, 2], dtype)
    back = torch.frombuffer(bytearray(body.content), dtype=pixels.dtype).reshape(pixels.shape)
    assert torch.equal(back, pixels)
    if dtype != "bfloat16":
        assert read_body(pixels.numpy(), "encode") == body


def test_tensor_files_to_encode(tmp_path: Path) -> None:
    """Files of pixels are sent as those of latents are, and other files refused by name."""
    np.save(tmp_path / "a.npy", np.full((1, 3, 2, 2), 7, np.uint8))
    body = read_body(tmp_path / "a.npy", "encode")
    assert (body.content, dict(body.query)["dtype"]) == (b"\x07" * 12, "uint8")
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", 2) + b"{}")
    assert read_body(file, "encode").content_type == "application/x-safetensors"
    with pytest.raises(LatentsError, match=r"a\.latent.*\.png"):
        read_body(tmp_path / "a.latent", "encode")


def test_what_cannot_be_encoded() -> None:
    """What is no picture is refused by its type, and told what is expected."""
    with pytest.raises(LatentsError, match=r"int64.*uint8"):
        read_body(np.zeros((1, 3, 2, 2), np.int64), "encode")
    with pytest.raises(LatentsError, match=r"list.*PIL\.Image"):
        read_body([], "encode")  # type: ignore[arg-type]

"""Latents of every kind as a request's body."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkroom import LatentsError
from darkroom._latents import read_latents
from darkroom_wire.tensors import from_raw


def shape_of(query: tuple[tuple[str, str], ...]) -> list[int]:
    """The shape that a query gives."""
    return [int(value) for name, value in query if name == "shape"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_tensors(dtype: torch.dtype) -> None:
    """A tensor's values arrive bit for bit in C order, whatever its strides, with its dtype."""
    tensor = torch.randn(2, 3, 4, requires_grad=True).to(dtype).transpose(0, 2)
    body = read_latents(tensor)
    assert body.content_type == "tensor/binary"
    assert shape_of(body.query) == [4, 3, 2]
    assert dict(body.query)["dtype"] == str(dtype).removeprefix("torch.")
    back = torch.frombuffer(bytearray(body.content), dtype=dtype).reshape(4, 3, 2)
    assert torch.equal(back, tensor)


@pytest.mark.parametrize("dtype", ["<f4", "<f2", ">f4"])
def test_numpy_arrays(dtype: str) -> None:
    """An array's values arrive little-endian in C order, whatever its own order."""
    array = np.arange(24).reshape(2, 3, 4).astype(dtype).transpose(2, 0, 1)
    body = read_latents(array)
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
    ],
)
def test_what_cannot_be_sent(latents: Any, named: str) -> None:
    """What cannot be sent is refused with its dtype, shape or type, and with what to do."""
    with pytest.raises(LatentsError, match=named):
        read_latents(latents)


@pytest.mark.parametrize("name", ["a.safetensors", "a.latent", "A.SAFETENSORS"])
def test_safetensors_files_go_as_they_are(tmp_path: Path, name: str) -> None:
    """Files that the service reads itself are not changed on the way."""
    path = tmp_path / name
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    for given in (path, str(path)):
        body = read_latents(given)
        assert (body.content, body.content_type) == (path.read_bytes(), "application/x-safetensors")
        assert body.query == ()
    assert read_latents(path.read_bytes()) == read_latents(path)


def test_npy_files(tmp_path: Path) -> None:
    """A .npy file is sent as the array that it holds, in Fortran order too."""
    array = np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3))
    np.save(tmp_path / "a.npy", array)
    body = read_latents(tmp_path / "a.npy")
    assert body.content == array.tobytes("C")
    assert shape_of(body.query) == [2, 3]


def test_npy_files_are_never_unpickled(tmp_path: Path) -> None:
    """A .npy file that holds Python objects is refused, not executed."""
    np.save(tmp_path / "bad.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(LatentsError, match=r"bad\.npy"):
        read_latents(tmp_path / "bad.npy")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.npy", b"junk"), ("b.npy", b""), ("c.pt", b"x"), ("missing.npy", None), ("d.latent", None)],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    """A file that is missing, of another kind or broken is refused by its name."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LatentsError, match=name):
        read_latents(tmp_path / name)

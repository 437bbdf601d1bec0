"""Tensors as bytes: what is written is read again, and hostile bytes give one kind of error."""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from darkroom_wire.tensors import (
    COMFY_TENSOR,
    COMFY_VERSION,
    MAX_HEADER_BYTES,
    Tensor,
    TensorFormatError,
    check_dtype,
    check_shape,
    from_raw,
    from_safetensors,
    to_safetensors,
)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHAPES = [(1,), (3, 5), (1, 4, 8, 8), (2, 16, 3, 4, 4), (1, 1, 1, 1, 1, 1, 1, 7)]


def make(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> torch.Tensor:
    """Make a tensor of normally distributed values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DTYPES[dtype])


def file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Make a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: Any = (2, 2), dtype: Any = "F32", offsets: Any = (0, 16)) -> dict[str, Any]:
    """Describe a tensor as a header does."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_reads_what_the_library_writes(shape: tuple[int, ...], dtype: str) -> None:
    """A file of the `safetensors` library gives the same names, shapes, dtypes and values."""
    first, second = make(shape, dtype), make(shape, dtype, seed=1)
    found = from_safetensors(safetensors.torch.save({"first": first, "second": second}))
    assert set(found) == {"first", "second"}
    for name, expected in {"first": first, "second": second}.items():
        info = found[name].info
        assert (info.name, info.dtype, info.shape) == (name, dtype, shape)
        read = torch.frombuffer(bytearray(found[name].data), dtype=DTYPES[dtype]).reshape(shape)
        assert torch.equal(read, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_library_reads_what_is_written(shape: tuple[int, ...], dtype: str) -> None:
    """A file written here is a valid one: the `safetensors` library reads the same values."""
    values = make(shape, dtype)
    data = values.view(torch.uint8).numpy().tobytes() if shape else b""
    read = safetensors.torch.load(to_safetensors([from_raw(data, shape, dtype, "x")]))
    assert list(read) == ["x"]
    assert read["x"].dtype is DTYPES[dtype]
    assert torch.equal(read["x"], values)


def test_writing_and_reading_give_the_same_back() -> None:
    """Several tensors come back with their names, in order, with every byte."""
    tensors = [
        from_raw(bytes(range(16)), (2, 2), "float32", "one"),
        from_raw(bytes(range(6)), (3,), "float16", 'quotes " and ü'),
        from_raw(bytes(range(10)), (5, 1), "bfloat16", "three"),
    ]
    body = to_safetensors(tensors)
    found = from_safetensors(body)
    assert [(tensor.info, bytes(tensor.data)) for tensor in found.values()] == [
        (tensor.info, bytes(tensor.data)) for tensor in tensors
    ]
    assert to_safetensors(list(found.values())) == body


def test_the_values_are_aligned() -> None:
    """The header is padded, so that a reader may map the values of any dtype in place."""
    for length in range(1, 20):
        body = to_safetensors([from_raw(bytes(4), (1,), "float32", "x" * length)])
        assert struct.unpack("<Q", body[:8])[0] % 8 == 0


def test_metadata_of_a_file_is_passed_over() -> None:
    """A file's own `__metadata__` is no tensor."""
    body = safetensors.torch.save({"x": make((2, 2))}, {"prompt": "a cat"})
    assert set(from_safetensors(body)) == {"x"}


def test_values_are_not_copied() -> None:
    """Reading gives views into the body: a large file does not take its memory twice."""
    body = to_safetensors([from_raw(bytes(1024), (256,), "float32")])
    assert from_safetensors(body)["latents"].data.obj is body


def test_comfyui_marks_its_files_with_an_empty_tensor() -> None:
    """The marker `latent_format_version_0` may hold nothing; any other tensor may not."""
    body = safetensors.numpy.save(
        {
            COMFY_TENSOR: np.zeros((1, 4, 2, 2), np.float32),
            COMFY_VERSION: np.zeros((0,), np.float32),
        }
    )
    assert set(from_safetensors(body)) == {COMFY_TENSOR, COMFY_VERSION}
    with pytest.raises(TensorFormatError, match="empty"):
        from_safetensors(safetensors.numpy.save({"x": np.zeros((0,), np.float32)}))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "0 bytes came"),
        (b"1234567", "7 bytes came"),
        (bytes(8), "no JSON"),
        (file(b"{}", length=MAX_HEADER_BYTES + 1), "too long"),
        (file(b"{}", length=2**64 - 1), "too long"),
        (file(b"{}", length=3), "header ends"),
        (file(b"{'x': 1}"), "no JSON"),
        (file(b"\xff\xfe\xfd"), "no JSON"),
        (file([1, 2]), "no JSON object"),
        (file(b"null"), "no JSON object"),
        (file(b"[" * 60_000), "no JSON"),
        (file(b'{"a":' * 12_000), "no JSON"),
        (file(b'{"a":%s}' % (b"9" * 5000)), "no JSON"),
        (file({"x": 5}), "no description"),
        (file({"x": {}}), "needs dtype, shape and data_offsets"),
        (file({"x": entry(shape="2,2")}, bytes(16)), "needs dtype, shape"),
        (file({"x": entry(shape=(2.0, 2))}, bytes(16)), "needs dtype, shape"),
        (file({"x": entry(shape=(True, 4))}, bytes(16)), "needs dtype, shape"),
        (file({"x": entry(shape=(-2, -2))}, bytes(16)), "needs dtype, shape"),
        (file({"x": entry(shape=(2**63, 1))}, bytes(16)), "needs dtype, shape"),
        (file({"x": entry(offsets=(0,))}, bytes(16)), "a begin and an end"),
        (file({"x": entry(offsets=(0, 8, 16))}, bytes(16)), "a begin and an end"),
        (file({"x": entry(offsets=(16, 0))}, bytes(16)), "data_offsets give -16"),
        (file({"x": entry(shape=())}, bytes(16)), "1 to 8 expected"),
        (file({"x": entry(shape=(1,) * 9)}, bytes(16)), "1 to 8 expected"),
        (file({"x": entry(shape=(0, 2**60), offsets=(0, 0))}), "empty"),
        (file({"x": entry(shape=(2**60, 2**60))}, bytes(16)), "data_offsets give 16"),
        (file({"x": entry()}, bytes(15)), "only 15 bytes came"),
        (file({"x": entry()}, bytes(17)), "1 bytes follow"),
        (file({}, bytes(3)), "3 bytes follow"),
        (file({"x": entry(offsets=(4, 20))}, bytes(20)), "hole at byte 0"),
        (file({"x": entry(), "y": entry()}, bytes(32)), "overlap"),
        (file({"x": entry(), "y": entry(offsets=(8, 24))}, bytes(24)), "overlap"),
        (file(b'{"x":1,"x":2}'), "'x' twice"),
        (file(b'{"x":{"dtype":"F32","dtype":"F16"}}'), "'dtype' twice"),
        (file({"x": entry(dtype="F64", offsets=(0, 32))}, bytes(32)), "'F64' is not supported"),
        (file({"x": entry(dtype=32)}, bytes(16)), "needs dtype"),
    ],
)
def test_says_what_is_wrong_with_a_file(body: bytes, message: str) -> None:
    """Everything that is no file of tensors is refused with what was expected and what came."""
    with pytest.raises(TensorFormatError, match=message):
        from_safetensors(body)


@pytest.mark.parametrize(
    ("size", "shape", "dtype", "message"),
    [
        (16, (2, 2), "float64", "float64"),
        (16, (2, 2), "F32", "F32"),
        (16, (), "float32", "1 to 8"),
        (16, (1,) * 8 + (4,), "float32", "1 to 8"),
        (0, (0, 4), "float32", "empty"),
        (16, (-2, -2), "float32", "empty"),
        (15, (2, 2), "float32", "takes 16 bytes, but 15 came"),
        (16, (2, 2), "float16", "takes 8 bytes, but 16 came"),
        (16, (2**60,) * 8, "float32", "but 16 came"),
    ],
)
def test_says_what_is_wrong_with_raw_bytes(
    size: int, shape: tuple[int, ...], dtype: str, message: str
) -> None:
    """Raw bytes are checked against shape and dtype before anything is done with them."""
    with pytest.raises(TensorFormatError, match=message):
        from_raw(bytes(size), shape, dtype)


def test_shapes_and_dtypes_pass_as_they_are() -> None:
    """What is checked comes back: a shape as a tuple, a dtype by its name."""
    assert check_shape([1, 4, 8, 8]) == (1, 4, 8, 8)
    assert [check_dtype(dtype) for dtype in DTYPES] == list(DTYPES)


def test_a_full_header_is_read_at_once() -> None:
    """The longest header that is read takes little time, however many names it has.

    The service reads it in its event loop: a second here is a second of silence for everybody.
    """
    names = ",".join(f'"{number:x}":0' for number in range(7500))
    body = file(f"{{{names}}}".encode())
    assert len(body) > 0.9 * MAX_HEADER_BYTES
    started = time.process_time()
    with pytest.raises(TensorFormatError):
        from_safetensors(body)
    assert time.process_time() - started < 0.2


def survives(read: Callable[[], object]) -> bool:
    """Tell whether bytes were read, or refused with the one error that callers expect."""
    try:
        read()
    except TensorFormatError:
        return False
    return True


def test_random_bytes_are_refused() -> None:
    """No random bytes make anything but a `TensorFormatError`, with or without a fair length."""
    random_ = random.Random(20)
    for _ in range(3000):
        noise = random_.randbytes(random_.randrange(200))
        assert not survives(lambda noise=noise: from_safetensors(noise))  # type: ignore[misc]
        assert not survives(lambda noise=noise: from_safetensors(file(noise)))  # type: ignore[misc]


ODD_VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 2, 16, 2**31, 2**63, 2**64, 10**30, 1.5, -0.0),
    *("", "F32", "F16", "BF16", "F64", "ü", [], {}, [0, 16], [16, 0], [[0, 16]], {"x": 1}),
)


def spoil_header(header: dict[str, Any], random_: random.Random) -> bytes:
    """Put an odd value somewhere into a header."""
    tensor = header[random_.choice(list(header))]
    name = random_.choice([*tensor, "shape", "data_offsets", "more"])
    if isinstance(tensor.get(name), list) and random_.random() < 0.6:
        tensor[name][random_.randrange(len(tensor[name]))] = random_.choice(ODD_VALUES)
    else:
        tensor[name] = random_.choice(ODD_VALUES)
    return json.dumps(header).encode()


def spoil_bytes(body: bytes, random_: random.Random) -> bytes:
    """Change, remove or insert a few bytes."""
    spoiled = bytearray(body)
    for _ in range(random_.randint(1, 4)):
        start = random_.randrange(len(spoiled))
        end = start + random_.randrange(4)
        spoiled[start:end] = random_.randbytes(random_.randrange(4))
    return bytes(spoiled)


def check_agreement(body: bytes) -> bool:
    """Read bytes; where they are a file of tensors, the `safetensors` library has to agree."""
    try:
        found = from_safetensors(body)
    except TensorFormatError:
        return False
    theirs = safetensors.torch.load(body)
    assert {name: tuple(tensor.shape) for name, tensor in theirs.items()} == {
        name: tensor.info.shape for name, tensor in found.items()
    }
    for name, tensor in theirs.items():
        assert DTYPES[found[name].info.dtype] is tensor.dtype
        assert tensor.view(torch.uint8).numpy().tobytes() == bytes(found[name].data)
    return True


def test_spoiled_files_are_refused_or_read_alike() -> None:
    """A valid file with a few faults is refused, or is still one that the library reads alike."""
    random_ = random.Random(21)
    good = to_safetensors(
        [from_raw(bytes(16), (2, 2), "float32", "x"), from_raw(bytes(16), (8,), "float16", "y")]
    )
    length = struct.unpack("<Q", good[:8])[0]
    data = good[8 + length :]
    read = 0
    for _ in range(3000):
        read += check_agreement(spoil_bytes(good, random_))
        header = spoil_header(json.loads(good[8 : 8 + length]), random_)
        read += check_agreement(file(header, data))
    assert read > 100, "some of them are still good"


def test_truncated_files_are_refused() -> None:
    """A valid file that was cut off anywhere is refused."""
    good = to_safetensors([Tensor(from_raw(bytes(64), (4, 4), "float32").info, memoryview(b""))])
    good += bytes(64)
    assert set(from_safetensors(good)) == {"latents"}
    for length in range(len(good)):
        assert not survives(lambda length=length: from_safetensors(good[:length]))  # type: ignore[misc]

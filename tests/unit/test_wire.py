"""Tensors as bytes, ids and options."""

from __future__ import annotations

import random
from contextlib import suppress
from datetime import UTC, datetime

import numpy as np
import pytest
import safetensors.numpy
from pydantic import ValidationError

from darkroom_wire.ids import id_time, is_id, new_id
from darkroom_wire.jobs import JobOptions
from darkroom_wire.tensors import TensorFormatError, from_raw, from_safetensors, to_safetensors
from tests.conftest import make_latents


def test_our_files_are_safetensors() -> None:
    """What we write, the reference library reads."""
    values = np.arange(24, dtype="float16").reshape(2, 3, 4)
    body = to_safetensors([from_raw(values.tobytes(), values.shape, "float16", "latents")])
    assert np.array_equal(safetensors.numpy.load(body)["latents"], values)


def test_we_read_safetensors() -> None:
    """What the reference library writes, metadata included, we read."""
    values = np.arange(6, dtype="float32").reshape(1, 6)
    body = safetensors.numpy.save({"x": values}, metadata={"by": "somebody"})
    tensor = from_safetensors(body)["x"]
    assert (tensor.info.shape, tensor.info.dtype) == ((1, 6), "float32")
    assert bytes(tensor.data) == values.tobytes()


def test_mutated_files_raise_one_error() -> None:
    """However a file is damaged, it is read or refused, and nothing else happens."""
    chance = random.Random(7)
    valid = make_latents(1, 4, 8, 8)
    for _ in range(3000):
        body = bytearray(valid)
        for _ in range(chance.randint(1, 6)):
            body[chance.randrange(120)] = chance.randrange(256)
        with suppress(TensorFormatError):
            from_safetensors(bytes(body[: chance.choice([len(body), chance.randrange(len(body))])]))


def test_ids_sort_and_tell_the_time() -> None:
    """Ids are UUIDs of version 7: they sort by time, and the time can be read back."""
    moment = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)
    milliseconds = int(moment.timestamp() * 1000)
    ids = [new_id(milliseconds + step, bytes(10)) for step in range(3)]
    assert ids == sorted(ids)
    assert id_time(ids[0]) == moment
    assert all(is_id(each) for each in [*ids, new_id()])
    assert not any(is_id(text) for text in ["", "x", ids[0].upper().replace("0", "O"), ids[0][:-1]])
    assert not is_id("12345678-1234-4234-8234-123456789abc")


def test_options_name_what_is_wrong() -> None:
    """Each parameter at fault is named, the unknown ones too."""
    with pytest.raises(ValidationError) as caught:
        JobOptions.model_validate({"vae": "demo", "quality": 0, "colour": "red"})
    assert {fault["loc"][0] for fault in caught.value.errors()} == {"quality", "colour"}

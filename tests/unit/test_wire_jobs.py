"""The options of a job, and its document."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from darkroom_wire.jobs import (
    MAX_METADATA_BYTES,
    Format,
    Job,
    JobOptions,
    Latents,
    Priority,
    Scaling,
    Status,
    Task,
    Timings,
)


def faults(**options: Any) -> str:
    """Give what is wrong with some options, as one text."""
    with pytest.raises(ValidationError) as caught:
        JobOptions.model_validate({"vae": "demo", **options})
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in caught.value.errors()
    )


def test_defaults() -> None:
    """Only the VAE has to be named."""
    options = JobOptions(vae="demo")
    assert options.priority is Priority.NORMAL
    assert options.metadata == {}
    assert options.task is Task.DECODE
    given = {"vae", "task", "priority", "metadata"}
    assert options.model_dump(exclude=given, exclude_none=True) == {}


def test_options_are_read_from_query_texts() -> None:
    """The texts of a query become values of the right types."""
    options = JobOptions.model_validate(
        {
            "vae": "flux",
            "format": "jpeg",
            "quality": "80",
            "height": "64",
            "width": "128",
            "scaling_factor": "0.5",
            "shift_factor": "-1e-2",
            "priority": "batch",
            "ttl": "60",
            "metadata": '{"a": [1, null, "ü"]}',
        }
    )
    assert options.format is Format.JPEG
    assert (options.quality, options.height, options.width, options.ttl) == (80, 64, 128, 60)
    assert (options.scaling_factor, options.shift_factor) == (0.5, -0.01)
    assert options.priority is Priority.BATCH
    assert options.metadata == {"a": [1, None, "ü"]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vae", ""),
        ("vae", "x" * 129),
        ("format", "gif"),
        ("quality", 0),
        ("quality", 101),
        ("quality", "x"),
        ("fps", 0),
        ("fps", "nan"),
        ("fps", 241),
        ("num_frames", 0),
        ("scaling", "both"),
        ("scaling_factor", "nan"),
        ("scaling_factor", "-inf"),
        ("shift_factor", "inf"),
        ("priority", "urgent"),
        ("ttl", 0),
        ("ttl", 10**12),
        ("callback_url", "x" * 2049),
        ("colour", "red"),
    ],
)
def test_faults_name_the_option(name: str, value: object) -> None:
    """A value out of range, of the wrong type, or of an unknown option is refused by name."""
    assert faults(**{name: value}).startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["height", "width"])
@pytest.mark.parametrize("value", [0, -1, 65_537, "x"])
def test_sides_are_bounded(name: str, value: object) -> None:
    """Height and width are between 1 and 65536."""
    assert f"{name}: " in faults(**({"height": 64, "width": 64} | {name: value}))


@pytest.mark.parametrize("name", ["height", "width"])
def test_height_and_width_go_together(name: str) -> None:
    """One side alone says nothing."""
    assert "both" in faults(**{name: 64})


def test_scaling_is_given_once() -> None:
    """`scaling` excludes factors of one's own, and nothing is divided by zero."""
    assert "either" in faults(scaling="vae", scaling_factor=1)
    assert "either" in faults(scaling="none", shift_factor=0)
    assert "cannot be 0" in faults(scaling_factor=0)
    assert JobOptions(vae="demo", scaling=Scaling.NONE).scaling is Scaling.NONE


@pytest.mark.parametrize(
    "text", ["", "no json", "[1]", "null", "1", '"text"', '{"a": 1', "[" * 3000, "{'a': 1}"]
)
def test_metadata_is_a_json_object(text: str) -> None:
    """Everything but a JSON object is refused, as a fault of `metadata`."""
    assert "metadata: " in faults(metadata=text)
    assert "a JSON object was expected" in faults(metadata=text)


def test_metadata_is_bounded_in_bytes() -> None:
    """4 KiB are accepted, one byte more is not; bytes are counted, not characters."""
    fitting = json.dumps({"a": "b" * (MAX_METADATA_BYTES - 9)})
    assert len(fitting) == MAX_METADATA_BYTES
    assert JobOptions.model_validate({"vae": "demo", "metadata": fitting}).metadata
    assert "at most 4096 bytes" in faults(metadata=fitting.replace("b", "bb", 1))
    assert "at most 4096 bytes" in faults(
        metadata=json.dumps({"a": "ü" * 2048}, ensure_ascii=False)
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        '{"\\udfff": 1}',
        '{"a": ' + "[" * 300 + "]" * 300 + "}",
        '{"a": ' + '{"a":' * 300 + "1" + "}" * 301,
    ],
)
def test_metadata_can_be_given_back(text: str) -> None:
    """What cannot be written as JSON again, as it came, is refused like any other fault."""
    assert "metadata: " in faults(metadata=text)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"nested": {"list": [1, 2.5, None, True, "text", {}]}},
        {"large": 10**40, "small": 1e-300, "zero": -0.0},
        {"ü": "🎞", "nul": "\x00", "quote": '"\\'},
        {"deep": [[[[[[[[[["here"]]]]]]]]]]},
    ],
)
def test_metadata_survives_storing(metadata: dict[str, Any]) -> None:
    """What a caller gives is the same after the journey through S3 and Redis."""
    options = JobOptions.model_validate({"vae": "demo", "metadata": json.dumps(metadata)})
    again = JobOptions.model_validate_json(options.model_dump_json())
    assert again == options
    assert again.metadata == metadata


def test_options_cannot_be_changed() -> None:
    """Options are values: what was checked stays as it was checked."""
    options = JobOptions(vae="demo")
    with pytest.raises(ValidationError):
        options.vae = "flux"  # type: ignore[misc]


def test_statuses() -> None:
    """The six statuses, and which of them are final."""
    assert {status: status.finished for status in Status} == {
        "queued": False,
        "running": False,
        "succeeded": True,
        "failed": True,
        "canceled": True,
        "expired": True,
    }


def test_priorities_are_ordered() -> None:
    """Interactive jobs go before normal ones, and those before batches."""
    assert sorted(Priority, key=lambda priority: priority.rank) == [
        "interactive",
        "normal",
        "batch",
    ]


def test_content_types() -> None:
    """Each format has its registered media type."""
    assert {chosen.value: chosen.content_type for chosen in Format} == {
        "png": "image/png",
        "jpeg": "image/jpeg",
        "webp": "image/webp",
        "safetensors": "application/x-safetensors",
        "mp4": "video/mp4",
    }


def test_a_fresh_job_reads_as_the_contract_shows_it() -> None:
    """A job that has just been accepted has every key, and nothing in it that did not happen."""
    job = Job(
        id="01a20896-7124-7d77-b956-a7160b89bc2a",
        status=Status.QUEUED,
        vae="sdxl",
        format=Format.PNG,
        priority=Priority.NORMAL,
        latents=Latents(shape=(1, 4, 128, 128), dtype="float16", bytes=131072),
        created_at=datetime(2026, 11, 23, tzinfo=UTC),
        queue_position=3,
    )
    assert job.model_dump(mode="json") == {
        "id": "01a20896-7124-7d77-b956-a7160b89bc2a",
        "status": "queued",
        "vae": "sdxl",
        "format": "png",
        "priority": "normal",
        "latents": {"shape": [1, 4, 128, 128], "dtype": "float16", "bytes": 131072},
        "created_at": "2026-11-23T00:00:00Z",
        "started_at": None,
        "finished_at": None,
        "expires_at": None,
        "attempts": 0,
        "queue_position": 3,
        "progress": 0.0,
        "outputs": [],
        "error": None,
        "timings": {},
        "provenance": {},
        "batch_id": None,
        "name": None,
        "metadata": {},
        "callback": None,
    }


def test_a_document_is_read_again() -> None:
    """What the service writes, the client reads: the document is its own inverse."""
    job = Job(
        id="x",
        status=Status.RUNNING,
        vae="demo",
        format=Format.WEBP,
        priority=Priority.BATCH,
        latents=Latents(shape=(1,), dtype="float32", bytes=4),
        created_at=datetime(2026, 11, 23, 1, 2, 3, 456_789, UTC),
        timings=Timings(queued=1.5),
        metadata={"a": [1]},
    )
    assert Job.model_validate_json(job.model_dump_json()) == job

"""Job ids: they sort by time, tell their time, and have one form only."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from darkroom_wire.ids import id_time, is_id, new_id


def test_ids_sort_by_time() -> None:
    """Sorted as texts, ids are in the order of their times, whatever the random part is."""
    milliseconds = [0, 1, 999, 1_700_000_000_000, 1_700_000_000_001, 2**47, 2**48 - 1]
    moments = [ms * 1_000_000 + rest for ms in milliseconds for rest in (0, 300, 999_999)]
    ids = [new_id(moment, bytes([255 - place] * 8)) for place, moment in enumerate(moments)]
    assert sorted(ids) == ids


def test_ids_made_in_a_row_sort() -> None:
    """Ids that one process makes one after the other are in order within a millisecond too."""
    moments = [1_700_000_000_000_000_000 + step * 250 for step in range(4000)]
    ids = [new_id(moment) for moment in moments]
    assert ids == sorted(ids)


def test_an_id_tells_its_time() -> None:
    """The moment at which an id was made can be read from it, to the millisecond."""
    moment = datetime(2026, 11, 23, 12, 34, 56, 789_000, UTC)
    assert id_time(new_id(round(moment.timestamp() * 1000) * 1_000_000)) == moment


def test_a_new_id_is_of_now() -> None:
    """Without a given time an id has the present one."""
    assert abs(id_time(new_id()) - datetime.now(UTC)) < timedelta(seconds=5)


def test_ids_are_uuids_of_version_7() -> None:
    """Version and variant are those of RFC 9562, whatever the random bytes are."""
    for random in (bytes(8), b"\xff" * 8, bytes(range(8))):
        parsed = uuid.UUID(new_id(1_700_000_000_000_000_000, random))
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


def test_the_random_part_is_kept() -> None:
    """Ids of one moment differ: 62 of the random bits are in the id."""
    assert len({new_id(5) for _ in range(1000)}) == 1000
    every_bit = uuid.UUID(new_id(0, b"\xff" * 8)).int ^ uuid.UUID(new_id(0, bytes(8))).int
    assert every_bit.bit_count() == 62


def test_a_new_id_is_an_id() -> None:
    """What is made is recognised."""
    assert is_id(new_id())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "../../etc/passwd",
        "01a20896-7124-7d77-b956-a7160b89bc2",
        "01A20896-7124-7D77-B956-A7160B89BC2A",
        "01a2089671247d77b956a7160b89bc2a",
        "{01a20896-7124-7d77-b956-a7160b89bc2a}",
        "urn:uuid:01a20896-7124-7d77-b956-a7160b89bc2a",
        "01a20896-7124-7d77-b956-a7160b89bc2a\n",
        " 01a20896-7124-7d77-b956-a7160b89bc2a",
        "01a20896-7124-4d77-b956-a7160b89bc2a",
        "00000000-0000-0000-0000-000000000000",
        "\u06601a20896-7124-7d77-b956-a7160b89bc2a",
    ],
)
def test_other_forms_are_no_ids(text: str) -> None:
    """An id has one form, so that a job has one address and one place in S3."""
    assert not is_id(text)

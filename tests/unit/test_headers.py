"""`Prefer` and `Idempotency-Key`: read leniently where the RFC says so, strictly elsewhere."""

from __future__ import annotations

import pytest

from darkroom_api.errors import MalformedRequestError
from darkroom_api.headers import MAX_KEY_LENGTH, idempotency_key, preferred_wait


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("", None),
        ("respond-async", None),
        ("wait", None),
        ("wait=", None),
        ("wait=x", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("waiting=5", None),
        ("return=minimal; wait=5", None),
        ("wait=0", 0),
        ("wait=5", 5),
        ("Wait=5", 5),
        ("wait = 5", 5),
        ('wait="5"', 5),
        ("wait=5; foo=bar", 5),
        ("respond-async, wait=5", 5),
        ("respond-async,wait=5,return=minimal", 5),
        ("wait=5, wait=9", 5),
        ("wait=x, wait=9", 9),
        ("wait=60", 60),
        ("wait=61", 60),
        ("wait=999999", 60),
        (",,", None),
    ],
)
def test_preferred_wait(header: str, wait: int | None) -> None:
    """The first `wait` that can be read counts, up to 60 seconds; the rest is passed over."""
    assert preferred_wait(header) == wait


def test_no_key() -> None:
    """Without the header there is no key."""
    assert idempotency_key(None) == ""


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("abc", "abc"),
        ('"abc"', "abc"),
        ('  "abc"  ', "abc"),
        ("a", "a"),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("!~", "!~"),
        ("x" * MAX_KEY_LENGTH, "x" * MAX_KEY_LENGTH),
        ('"' + "x" * MAX_KEY_LENGTH + '"', "x" * MAX_KEY_LENGTH),
    ],
)
def test_keys(header: str, key: str) -> None:
    """A quoted and a bare key of the same characters are the same key."""
    assert idempotency_key(header) == key


@pytest.mark.parametrize(
    "header",
    ["", " ", '""', "a b", '"a b"', "a\tb", "a\x00b", "\x7f", "é", "x" * 256, '"' * 300],
)
def test_bad_keys(header: str) -> None:
    """Empty and overlong keys, blanks, control and other characters: 400, by the header's name."""
    with pytest.raises(MalformedRequestError) as caught:
        idempotency_key(header)
    assert caught.value.status == 400
    assert [fault.field for fault in caught.value.errors] == ["Idempotency-Key"]
    assert len(caught.value.detail) < 200

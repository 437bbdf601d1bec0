"""The retry policy as a decision, and the settings of the client."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from darkroom import (
    DarkroomError,
    InvalidRequestError,
    OverloadedError,
    RetryPolicy,
    ServiceFaultError,
    ServiceUnreachableError,
    SettingsError,
)
from darkroom._retry import read_retry_after
from darkroom._settings import load_settings

POLICY = RetryPolicy(attempts=4, total_seconds=60, first_pause=1, longest_pause=3)


def overloaded(retry_after: float | None) -> OverloadedError:
    """The answer of a busy service."""
    return OverloadedError(status=503, title="t", detail="d", retry_after=retry_after)


def test_pauses_double_up_to_a_limit() -> None:
    """Without advice, pauses double, are bounded, and end after the last attempt."""
    error = ServiceUnreachableError("gone")
    pauses = [POLICY.pause(error, attempt=n, elapsed=0, chance=1) for n in (1, 2, 3, 4)]
    assert pauses == [1, 2, 3, None]


def test_jitter_shortens_by_half_at_most() -> None:
    """Clients that failed together do not come back together."""
    error = ServiceUnreachableError("gone")
    assert POLICY.pause(error, attempt=1, elapsed=0, chance=0) == 0.5


def test_advice_outlasts_attempts_but_not_the_total() -> None:
    """`Retry-After` is followed beyond the number of attempts, never beyond the total time."""
    assert POLICY.pause(overloaded(20), attempt=9, elapsed=30, chance=0) == 20
    assert POLICY.pause(overloaded(20), attempt=1, elapsed=41, chance=0) is None


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ServiceUnreachableError("x"), True),
        (overloaded(None), True),
        (ServiceFaultError(status=502, title="t", detail="d"), True),
        (ServiceFaultError(status=504, title="t", detail="d"), True),
        (ServiceFaultError(status=500, title="t", detail="d"), False),
        (InvalidRequestError(status=422, title="t", detail="d"), False),
        (DarkroomError("x"), False),
    ],
)
def test_only_what_may_pass_is_retried(error: DarkroomError, again: bool) -> None:
    """A refusal that would be the same again is not asked for again."""
    pause = POLICY.pause(error, attempt=1, elapsed=0, chance=0)
    assert (pause is not None) is again


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("5", 5.0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
    ],
)
def test_retry_after_forms(value: str | None, seconds: float | None) -> None:
    """`Retry-After` may be seconds or a date; what cannot be read is no advice."""
    assert read_retry_after(value, datetime(2026, 1, 1, tzinfo=UTC)) == seconds


def test_settings_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Arguments go before the environment, that before `.env`, that before the default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DARKROOM_URL", raising=False)
    monkeypatch.delenv("DARKROOM_API_KEY", raising=False)
    assert load_settings().url == "http://127.0.0.1:8000"
    Path(".env").write_text("# comment\nexport DARKROOM_URL='http://file'\nDARKROOM_API_KEY=k\n")
    assert (load_settings().url, load_settings().api_key) == ("http://file", "k")
    monkeypatch.setenv("DARKROOM_URL", "http://environment/")
    assert load_settings().url == "http://environment"
    assert load_settings("https://argument/below/").url == "https://argument/below"


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://", "http://h:x", "http://h?a"]
)
def test_bad_address(url: str) -> None:
    """An address that cannot be one is refused with the setting's name."""
    with pytest.raises(SettingsError, match="DARKROOM_URL"):
        load_settings(url)


def test_key_stays_out_of_sight() -> None:
    """The key is not in what is printed of the settings; one that cannot be sent is refused."""
    assert "secret" not in repr(load_settings("http://h", "secret"))
    with pytest.raises(SettingsError, match="DARKROOM_API_KEY") as caught:
        load_settings("http://h", "sec\nret")
    assert "ret" not in str(caught.value).replace("printable", "")

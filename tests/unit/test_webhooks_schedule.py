"""When webhooks are sent again, and what is read out of an answer."""

from __future__ import annotations

import pytest

from darkroom_worker.webhooks import Outcome, Schedule
from darkroom_worker.webhooks.outcomes import answered, printable

SCHEDULE = Schedule()
FAILED = Outcome(False, 500, 1.0, error="the receiver answered 500")
AT = 1_793_700_000.0  # Tue, 03 Nov 2026 10:00:00 GMT
MIDDLE = 0.5


def test_the_schedule_of_standard_webhooks() -> None:
    """Ten attempts: at once, then after 5 s, 5 min, 30 min, 2, 5, 10, 14, 20 and 24 h."""
    delays = [SCHEDULE.next_delay(attempt, FAILED, MIDDLE) for attempt in range(1, 11)]
    assert delays == [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400, None]
    assert sum(delay or 0 for delay in delays) == (75 * 60 + 35) * 60 + 5


def test_jitter() -> None:
    """Chance moves a delay by a tenth to either side, so that failures do not come in step."""
    assert SCHEDULE.next_delay(2, FAILED, 0.0) == pytest.approx(270)
    assert SCHEDULE.next_delay(2, FAILED, 1.0) == pytest.approx(330)


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seconds", [1.0, 299.0, 300.0, 4000.0, 86_400.0])
def test_never_earlier_than_the_receiver_asks(seconds: float, chance: float) -> None:
    """Retry-After moves an attempt back, never forward."""
    asked = Outcome(False, 429, 1.0, error="429", retry_after=seconds)
    delay = SCHEDULE.next_delay(2, asked, chance)
    plain = SCHEDULE.next_delay(2, FAILED, chance)
    assert delay is not None
    assert plain is not None
    assert delay >= max(seconds, plain)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(True, 204, 1.0),
        Outcome(False, 410, 1.0, error="410", gone=True),
        Outcome(False, None, 1.0, error="forbidden", permanent=True),
    ],
)
def test_when_there_is_no_other_attempt(outcome: Outcome) -> None:
    """What was delivered, is not wanted or not allowed, is not sent again."""
    assert SCHEDULE.next_delay(1, outcome, MIDDLE) is None


def test_another_schedule() -> None:
    """An operator or a test may choose other delays."""
    quick = Schedule(delays=(0.0, 0.5), jitter=0.0)
    assert quick.next_delay(1, FAILED, 0.9) == 0.5
    assert quick.next_delay(2, FAILED, 0.9) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        (" 120 ", 120),
        ("86401", 86_400),
        ("9" * 5000, 86_400),
        ("Tue, 03 Nov 2026 10:01:30 GMT", 90),
        ("Tue, 03 Nov 2026 11:01:30 +0100", 90),
        ("Tuesday, 03-Nov-26 10:01:30 GMT", 90),
        ("Tue, 03 Nov 2026 10:01:30", 90),
        ("Tue, 03 Nov 2020 10:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400),
        ("-5", None),
        ("1.5", None),
        ("\u0667", None),
        ("soon", None),
        ("", None),
        ("Tue, 99 Nov 2026 10:00:00 GMT", None),
        ("Tue, 03 Nov 2026 10:00:00 +99999999", None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(status: int, value: str, seconds: float | None) -> None:
    """Seconds and dates are read, a day is the most; what makes no sense is as if not sent."""
    headers = [(b"retry-AFTER", value.encode("utf-8"))]
    assert answered(status, headers, b"", 1.0, AT).retry_after == seconds


@pytest.mark.parametrize("status", [200, 301, 400, 410, 500, 502])
def test_retry_after_elsewhere(status: int) -> None:
    """Other answers do not move the schedule."""
    assert answered(status, [(b"Retry-After", b"60")], b"", 1.0, AT).retry_after is None


@pytest.mark.parametrize(
    "status", [200, 201, 204, 299, 199, 300, 304, 400, 404, 410, 429, 500, 599]
)
def test_only_2xx_is_delivered(status: int) -> None:
    """An outcome is delivered or says why not, never both."""
    outcome = answered(status, [], b"", 1.0, AT)
    assert outcome.delivered == (status // 100 == 2)
    assert (outcome.error is None) == outcome.delivered
    assert outcome.gone == (status == 410)
    assert not outcome.permanent


def test_what_a_receiver_wrote_is_harmless() -> None:
    """An excerpt is 512 bytes at most, and cannot steer a terminal or forge a log."""
    outcome = answered(500, [], b"\x1b[2J\x00\xff ok\r\n\tdone\xe2\x80\xae" + b"a" * 600, 1.0, AT)
    assert outcome.excerpt.startswith("\ufffd[2J\ufffd\ufffd ok\n\tdone\ufffd")
    assert len(outcome.excerpt) <= 512
    assert printable("Grüße, 世界 🎞") == "Grüße, 世界 🎞"

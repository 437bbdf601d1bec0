"""Signatures of webhooks, against the independent package `standardwebhooks`."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime

import pytest
import standardwebhooks

from darkroom_wire.webhooks import (
    WebhookSecretError,
    WebhookVerificationError,
    parse_secret,
    sign,
    verify,
)

OLD = "whsec_" + base64.b64encode(bytes(range(24))).decode()
NEW = "whsec_" + base64.b64encode(bytes(range(100, 164))).decode()
BODY = '{"type":"job.succeeded","data":{"name":"Dünen 🏜"}}'.encode()
ID = "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"
NOW = 1_793_700_000


def signed(
    *secrets: str, timestamp: int = NOW, message_id: str = ID, body: bytes = BODY
) -> dict[str, str]:
    """Make the three headers of a webhook."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(secrets, message_id, timestamp, body),
    }


@pytest.mark.parametrize("secret", [OLD, NEW])
def test_the_independent_package_verifies_ours(secret: str) -> None:
    """A receiver that uses `standardwebhooks` accepts what we sign."""
    headers = signed(secret, timestamp=int(time.time()))
    assert standardwebhooks.Webhook(secret).verify(BODY, headers)["type"] == "job.succeeded"


@pytest.mark.parametrize("secret", [OLD, NEW])
def test_we_verify_the_independent_package(secret: str) -> None:
    """What `standardwebhooks` signs is what we sign, and passes our check."""
    signature = standardwebhooks.Webhook(secret).sign(
        ID, datetime.fromtimestamp(NOW, UTC), BODY.decode()
    )
    assert signature == sign([secret], ID, NOW, BODY)
    verify([secret], {**signed(secret), "webhook-signature": signature}, BODY, now=NOW)


def test_the_example_of_the_specification() -> None:
    """The signature is HMAC-SHA256 over `id.timestamp.body`, as worked out by hand."""
    import hashlib
    import hmac

    expected = hmac.new(bytes(range(24)), f"{ID}.{NOW}.".encode() + BODY, hashlib.sha256).digest()
    assert sign([OLD], ID, NOW, BODY) == "v1," + base64.b64encode(expected).decode()


def test_rotation() -> None:
    """While secrets are rotated, receivers with the old and with the new one both accept."""
    headers = signed(NEW, OLD, timestamp=int(time.time()))
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (OLD, NEW):
        verify([secret], headers, BODY, now=time.time())
        standardwebhooks.Webhook(secret).verify(BODY, headers)
    verify([OLD, NEW], signed(NEW), BODY, now=NOW)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header(name: str) -> None:
    """A message without one of its headers, or with an empty one, is refused by its name."""
    headers = signed(OLD)
    with pytest.raises(WebhookVerificationError, match=f"{name} is missing"):
        verify([OLD], {**headers, name: " "}, BODY, now=NOW)
    del headers[name]
    with pytest.raises(WebhookVerificationError, match=f"{name} is missing"):
        verify([OLD], headers, BODY, now=NOW)


def test_header_names_in_any_case() -> None:
    """HTTP's header names have no case."""
    headers = {name.title(): value for name, value in signed(OLD).items()}
    verify([OLD], headers, BODY, now=NOW)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (signed(NEW), BODY),
        (signed(OLD), BODY + b" "),
        ({**signed(OLD), "webhook-id": "another"}, BODY),
        ({**signed(OLD), "webhook-timestamp": str(NOW + 1)}, BODY),
        ({**signed(OLD), "webhook-signature": signed(OLD)["webhook-signature"][:-1]}, BODY),
        ({**signed(OLD), "webhook-signature": "v1,"}, BODY),
        ({**signed(OLD), "webhook-signature": "v1,é \ud800"}, BODY),
    ],
)
def test_what_does_not_fit(headers: dict[str, str], body: bytes) -> None:
    """Another secret, or anything that changed after signing, is refused."""
    with pytest.raises(WebhookVerificationError, match="no signature fits"):
        verify([OLD], headers, body, now=NOW)


def test_other_versions_are_passed_over() -> None:
    """A signature of another version is no fault beside a `v1`, and no help without one."""
    headers = signed(OLD)
    headers["webhook-signature"] = "v1a,AAAA v2 " + headers["webhook-signature"]
    verify([OLD], headers, BODY, now=NOW)
    headers["webhook-signature"] = "v1a,AAAA"
    with pytest.raises(WebhookVerificationError, match="no v1 signature"):
        verify([OLD], headers, BODY, now=NOW)


def test_stale_messages() -> None:
    """A message is accepted within five minutes of the receiver's clock, or as asked."""
    headers = signed(OLD)
    verify([OLD], headers, BODY, now=NOW + 300)
    verify([OLD], headers, BODY, now=NOW - 300)
    verify([OLD], headers, BODY, now=NOW + 1000, tolerance=1000)
    with pytest.raises(WebhookVerificationError, match="sent 301 s ago"):
        verify([OLD], headers, BODY, now=NOW + 301)
    with pytest.raises(WebhookVerificationError, match="sent 301 s in the future"):
        verify([OLD], headers, BODY, now=NOW - 301)


@pytest.mark.parametrize("timestamp", ["soon", "1e9", "-1", "1.5", "١٢٣", "9" * 13, "0x10"])
def test_timestamps_that_are_none(timestamp: str) -> None:
    """A timestamp is whole seconds in plain digits."""
    with pytest.raises(WebhookVerificationError, match="whole seconds"):
        verify([OLD], {**signed(OLD), "webhook-timestamp": timestamp}, BODY, now=NOW)


def test_no_secret_verifies_nothing() -> None:
    """With no secret configured nothing is signed, and nothing is accepted."""
    with pytest.raises(WebhookVerificationError):
        verify([], signed(OLD), BODY, now=NOW)
    with pytest.raises(ValueError, match="one secret"):
        sign([], ID, NOW, BODY)


@pytest.mark.parametrize("message_id", ["", "a.b", "a b", "a\r\nb", "é", "a" * 129])
def test_ids_that_cannot_be_signed(message_id: str) -> None:
    """A full stop in an id would let parts of what is signed trade places; a line end, headers."""
    with pytest.raises(ValueError, match="webhook-id"):
        sign([OLD], message_id, NOW, BODY)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        OLD.removeprefix("whsec_"),
        "whsk_" + OLD.removeprefix("whsec_"),
        OLD + "!",
        OLD + " ",
        "whsec_é",
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_" + base64.b64encode(bytes(25)).decode().rstrip("="),
    ],
)
def test_secrets_of_another_form(secret: str) -> None:
    """A secret is `whsec_` and 24 to 64 bytes in base64; the error never repeats it."""
    with pytest.raises(WebhookSecretError) as caught:
        parse_secret(secret)
    body = secret.removeprefix("whsec_")
    assert not body or body not in str(caught.value)


def test_secrets() -> None:
    """24 and 64 bytes are the bounds, both included."""
    assert parse_secret(OLD) == bytes(range(24))
    assert len(parse_secret(NEW)) == 64

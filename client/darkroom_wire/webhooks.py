"""Signatures of webhooks, as Standard Webhooks describes them (version 1, `v1`).

The sender and `darkroom listen` use this; a receiver of one's own may use the package
`standardwebhooks` in its place.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"

SECRET_PREFIX = "whsec_"  # noqa: S105 - a prefix, not a secret
SECRET_BYTES = range(24, 65)
TOLERANCE = 300
"""How many seconds the clocks of sender and receiver may differ, delivery included."""

_VERSION = "v1"
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_TIMESTAMP = re.compile(r"[0-9]{1,12}", re.ASCII)


class WebhookSecretError(ValueError):
    """A secret that is not `whsec_` and 24 to 64 bytes in base64. The text never repeats it."""


class WebhookVerificationError(Exception):
    """A webhook that is not to be trusted. The text says why."""


def parse_secret(secret: str) -> bytes:
    """Read the key out of a secret.

    Raises:
        WebhookSecretError: it has another form.
    """
    if not secret.startswith(SECRET_PREFIX):
        raise WebhookSecretError(f"a webhook secret begins with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError as error:
        reason = str(error) if isinstance(error, binascii.Error) else "not ASCII"
        raise WebhookSecretError(f"{SECRET_PREFIX} and base64 expected: {reason}") from None
    if len(key) not in SECRET_BYTES:
        raise WebhookSecretError(
            f"{SECRET_PREFIX} and {SECRET_BYTES[0]} to {SECRET_BYTES[-1]} bytes in base64 "
            f"expected, not {len(key)} bytes"
        )
    return key


def sign(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """Make the header `webhook-signature`: one signature for each secret, in order.

    While secrets are rotated the old and the new one both sign, so that a receiver with either
    accepts the message.

    Args:
        secrets: at least one, each with its prefix.
        message_id: what `webhook-id` will say: letters, digits, `_` and `-`. A full stop would let
            parts of what is signed trade places.
        timestamp: what `webhook-timestamp` will say, in Unix seconds.
        body: the bytes that will be sent.

    Raises:
        WebhookSecretError: a secret has another form.
        ValueError: there is no secret, or the id or the timestamp cannot be signed.
    """
    if not secrets:
        raise ValueError("a webhook is signed with one secret or more")
    if not _ID.fullmatch(message_id):
        raise ValueError(f"webhook-id: letters, digits, _ and - expected, not {message_id!r}")
    if timestamp < 0:
        raise ValueError(f"webhook-timestamp: {timestamp} lies before 1970")
    return " ".join(_signature(secret, message_id, str(timestamp), body) for secret in secrets)


def verify(
    secrets: Sequence[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    tolerance: float = TOLERANCE,
) -> None:
    """Check that a webhook comes from someone who knows one of the secrets, and is fresh.

    Args:
        secrets: what may have signed it, each with its prefix.
        headers: the request's, in any case.
        body: the request's, byte for byte as it came.
        now: the receiver's clock, in Unix seconds.
        tolerance: how many seconds the timestamp may differ from `now`.

    Raises:
        WebhookVerificationError: a header is missing, the message is stale, or no signature fits.
        WebhookSecretError: a secret has another form.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    message_id = _required(lowered, ID_HEADER)
    timestamp = _required(lowered, TIMESTAMP_HEADER)
    signatures = _required(lowered, SIGNATURE_HEADER).split()
    _check_fresh(timestamp, now, tolerance)
    known = [part for part in signatures if part.startswith(f"{_VERSION},")]
    if not known:
        raise WebhookVerificationError(f"{SIGNATURE_HEADER} holds no {_VERSION} signature")
    matches = [
        hmac.compare_digest(expected, part.encode(errors="replace"))
        for expected in [_signature(each, message_id, timestamp, body).encode() for each in secrets]
        for part in known
    ]
    if not any(matches):
        raise WebhookVerificationError(
            f"no signature fits: another secret, or id, timestamp or body were changed "
            f"({len(known)} signatures, {len(secrets)} secrets)"
        )


def _signature(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    """Sign `id.timestamp.body` with one secret."""
    content = f"{message_id}.{timestamp}.".encode(errors="replace") + body
    digest = hmac.new(parse_secret(secret), content, hashlib.sha256).digest()
    return f"{_VERSION},{base64.b64encode(digest).decode()}"


def _required(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "").strip()
    if not value:
        raise WebhookVerificationError(f"the header {name} is missing")
    return value


def _check_fresh(timestamp: str, now: float, tolerance: float) -> None:
    if not _TIMESTAMP.fullmatch(timestamp):
        raise WebhookVerificationError(f"{TIMESTAMP_HEADER} is not a number of whole seconds")
    age = now - int(timestamp)
    if age > tolerance:
        raise WebhookVerificationError(f"sent {age:.0f} s ago; {tolerance:g} s are allowed")
    if age < -tolerance:
        raise WebhookVerificationError(
            f"sent {-age:.0f} s in the future; {tolerance:g} s are allowed"
        )

"""Faults on the way to a receiver, in words."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterator

import httpcore

from .connecting import ANSWER_BYTES, AnswerTooLongError, NoAnswerError
from .outcomes import printable
from .resolving import ForbiddenAddressError, ResolveError

TRANSPORT_FAULTS = (
    ResolveError,
    ForbiddenAddressError,
    AnswerTooLongError,
    NoAnswerError,
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    OSError,  # a TLS record that cannot be read comes as it is
)
"""All that an attempt can meet; anything else is a defect of ours."""

_MAX_WORDS = 300
_CONNECTING = (httpcore.ConnectError, httpcore.ConnectTimeout)


def describe(fault: Exception) -> str:
    """Say what went wrong, without control characters that a receiver may have sent."""
    return printable(_words(fault))[:_MAX_WORDS]


def _words(fault: Exception) -> str:
    if isinstance(fault, ResolveError | ForbiddenAddressError | NoAnswerError):
        return str(fault)
    if isinstance(fault, AnswerTooLongError):
        return f"the receiver sent {ANSWER_BYTES} bytes and its answer had not begun"
    if isinstance(fault, httpcore.ProtocolError):
        return f"the receiver does not speak HTTP: {fault}"
    for cause in _causes(fault):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"TLS: the certificate is not valid: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {cause.reason or cause}"
        if isinstance(cause, OSError) and cause.errno in _WORDS:
            return _WORDS[cause.errno]
    if isinstance(fault, httpcore.ConnectTimeout):
        return "the receiver did not take the connection in time"
    if isinstance(fault, _CONNECTING):
        return f"the connection failed: {fault}"
    return "the receiver closed the connection before its answer"


_WORDS = {
    errno.ECONNREFUSED: "the connection was refused",
    errno.ECONNRESET: "the receiver reset the connection",
    errno.EHOSTUNREACH: "the receiver's host cannot be reached",
    errno.ENETUNREACH: "the receiver's network cannot be reached",
    errno.EMFILE: "this service has no file descriptor left",
    errno.ENFILE: "this service has no file descriptor left",
}


def _causes(fault: BaseException | None) -> Iterator[BaseException]:
    """Walk from a fault to what it was raised from, groups included."""
    while fault is not None:
        yield fault
        if isinstance(fault, BaseExceptionGroup):
            for part in fault.exceptions:
                yield from _causes(part)
        fault = fault.__cause__ or fault.__context__

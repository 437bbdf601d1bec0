"""Small objects, written and read by obstore: in Rust, for a fraction of boto3's processor time.

Its read timeout runs while a body is sent, so that large bodies are boto3's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

import boto3
import obstore
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from .config import CONNECT_TIMEOUT, READ_TIMEOUT, TRIES, StoreConfig
from .errors import StoreRefusedError, StoreUnavailableError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

LARGEST_BYTES: Final = 4 << 20
"""A body of so many bytes takes a store less than `READ_TIMEOUT` at 2 Mbit/s."""

ANSWER_SECONDS: Final = 300
"""How long an answer may take that keeps coming."""

RETRIES: Final[RetryConfig] = {"max_retries": TRIES - 1, "retry_timeout": timedelta(seconds=60)}
CLIENT_OPTIONS: Final[ClientConfig] = {
    "allow_http": True,
    "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT),
    "read_timeout": timedelta(seconds=READ_TIMEOUT),
    "timeout": timedelta(seconds=ANSWER_SECONDS),
}


class SmallObjects:
    """Objects of one bucket. Calls block, without the interpreter's lock; from any thread."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    @classmethod
    def connect(cls, config: StoreConfig) -> SmallObjects | None:
        """Choose the way in; None where boto3 finds no credentials, and may say so."""
        provider = None
        own: S3Config = {"region": config.region}
        if config.endpoint_url is None:
            own["virtual_hosted_style_request"] = True
        else:
            own["endpoint"] = config.endpoint_url
        if config.access_key_id is not None and config.secret_access_key is not None:
            own["access_key_id"] = config.access_key_id
            own["secret_access_key"] = config.secret_access_key
        else:
            session = boto3.Session()
            if session.get_credentials() is None:
                return None
            provider = Boto3CredentialProvider(session)
        store = S3Store(
            config.bucket,
            config=own,
            credential_provider=provider,
            retry_config=RETRIES,
            client_options=CLIENT_OPTIONS,
        )
        return cls(store)

    def put(self, key: str, body: bytes, content_type: str, *, if_absent: bool = False) -> None:
        """Write an object, over one that may be there unless that is ruled out.

        Raises:
            FileExistsError: there is one already, and it was ruled out.
        """
        mode: Literal["create", "overwrite"] = "create" if if_absent else "overwrite"
        attributes = {"Content-Type": content_type}
        try:
            with _translated(key):
                obstore.put(
                    self._store, key, body, mode=mode, attributes=attributes, use_multipart=False
                )
        except FileNotFoundError as error:
            raise StoreRefusedError(f"{key}: {error}") from error  # there is no such bucket

    def get(self, key: str, begin: int = 0, end: int | None = None) -> bytes:
        """Read an object, or its bytes from `begin` to before `end`.

        Raises:
            FileNotFoundError: there is none.
        """
        with _translated(key):
            if end is None:
                return bytes(obstore.get(self._store, key).bytes())
            return bytes(obstore.get_range(self._store, key, start=begin, end=end))


@contextlib.contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        text = _brief(error)
        if "NoSuchBucket" in text:
            raise StoreRefusedError(f"{key}: {text}") from error
        raise FileNotFoundError(key) from error
    except (AlreadyExistsError, PreconditionError) as error:
        raise FileExistsError(key) from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise StoreRefusedError(f"{key}: {_brief(error)}") from error
    except BaseError as error:
        text = _brief(error)
        refused = "status code: 400" in text
        raise (StoreRefusedError if refused else StoreUnavailableError)(f"{key}: {text}") from error


def _brief(error: Exception) -> str:
    """Leave out what obstore adds for its own developers."""
    return str(error).partition("\n\nDebug source")[0].strip()

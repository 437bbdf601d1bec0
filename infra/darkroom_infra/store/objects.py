"""One bucket: small objects by obstore, everything else by boto3."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from uuid import uuid4

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from .config import CONNECT_TIMEOUT, READ_TIMEOUT, TRIES, StoreConfig
from .errors import StoreRefusedError, StoreUnavailableError
from .small import LARGEST_BYTES, SmallObjects

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MAX_CONNECTIONS: Final = 64
COPY_TIMEOUT: Final = 300
"""A store may be silent while it copies gigabytes."""

DELETE_AT_ONCE: Final = 1000

_MISSING: Final = {"404", "NoSuchKey", "NotFound"}


@contextlib.contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if status == 404 and code in _MISSING:
            raise FileNotFoundError(key) from error
        if status in (409, 412):
            raise FileExistsError(key) from error
        if status in (408, 429) or status >= 500:
            raise StoreUnavailableError(f"{key}: {error}") from error
        raise StoreRefusedError(f"{key}: {error}") from error
    except NoCredentialsError as error:
        raise StoreRefusedError(str(error)) from error
    except BotoCoreError as error:
        raise StoreUnavailableError(f"{key}: {error}") from error


@dataclass(frozen=True)
class StoredObject:
    """An object as it was when it was looked at; another one under its key has another etag."""

    key: str
    etag: str
    size: int


class ObjectStore:
    """One bucket. Calls block; they may come from any thread."""

    def __init__(self, config: StoreConfig) -> None:
        self.bucket = config.bucket
        self._region = config.region
        self._small = SmallObjects.connect(config)
        self._s3 = _client(config, config.endpoint_url)
        self._public = (
            _client(config, config.public_endpoint_url) if config.public_endpoint_url else self._s3
        )
        self._patient = _client(config, config.endpoint_url, COPY_TIMEOUT)

    def ensure_bucket(self) -> None:
        """Make the bucket if it is not there.

        Raises:
            StoreError: the bucket can be neither found nor made.
        """
        with _translated(self.bucket):
            try:
                self._s3.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                    raise
                arguments: dict[str, Any] = {"Bucket": self.bucket}
                if self._region != "us-east-1":
                    arguments["CreateBucketConfiguration"] = {"LocationConstraint": self._region}
                with contextlib.suppress(self._s3.exceptions.BucketAlreadyOwnedByYou):
                    self._s3.create_bucket(**arguments)

    def put(
        self,
        key: str,
        body: bytes | BinaryIO,
        content_type: str = "application/octet-stream",
    ) -> None:
        """Write an object, over one that may be there. A file is written from its start."""
        if not isinstance(body, bytes) and _rewind(body) <= LARGEST_BYTES:
            body = body.read()
        if isinstance(body, bytes) and self._small is not None and len(body) <= LARGEST_BYTES:
            self._small.put(key, body, content_type)
            return
        with _translated(key):
            self._s3.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=content_type)

    def put_if_absent(self, key: str, body: bytes, content_type: str) -> None:
        """Write an object only if there is none.

        Raises:
            FileExistsError: there is one already.
        """
        if self._small is not None:
            self._small.put(key, body, content_type, if_absent=True)
            return
        with _translated(key):
            self._s3.put_object(
                Bucket=self.bucket, Key=key, Body=body, ContentType=content_type, IfNoneMatch="*"
            )

    def get(self, key: str, begin: int = 0, end: int | None = None) -> bytes:
        """Read an object, or its bytes from `begin` to before `end`.

        Raises:
            FileNotFoundError: there is none.
        """
        if self._small is not None:
            return self._small.get(key, begin, end)
        span: Any = {"Range": f"bytes={begin}-{end - 1}"} if end is not None else {}
        with _translated(key):
            return self._s3.get_object(Bucket=self.bucket, Key=key, **span)["Body"].read()

    def exists(self, key: str) -> bool:
        """Tell whether there is an object."""
        try:
            with _translated(key):
                self._s3.head_object(Bucket=self.bucket, Key=key)
        except FileNotFoundError:
            return False
        return True

    def look(self, key: str) -> StoredObject:
        """Look at an object without reading it.

        Raises:
            FileNotFoundError: there is none.
        """
        with _translated(key):
            answer = self._s3.head_object(Bucket=self.bucket, Key=key)
        return StoredObject(key, answer["ETag"], answer["ContentLength"])

    def copy(self, source: StoredObject, key: str) -> None:
        """Copy an object within the store, as it was when it was looked at.

        Raises:
            FileNotFoundError: it is gone, or it is another one by now.
        """
        try:
            with _translated(source.key):
                self._patient.copy_object(
                    Bucket=self.bucket,
                    Key=key,
                    CopySource={"Bucket": self.bucket, "Key": source.key},
                    CopySourceIfMatch=source.etag,
                )
        except FileExistsError as error:
            raise FileNotFoundError(source.key) from error

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """Yield the keys below a prefix, in order; those after `start_after`, where it is given."""
        with _translated(prefix):
            pages = self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix, StartAfter=start_after
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    yield entry["Key"]

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there are passed over.

        Raises:
            StoreError: an object could not be deleted.
        """
        remaining = list(keys)
        while remaining:
            some, remaining = remaining[:DELETE_AT_ONCE], remaining[DELETE_AT_ONCE:]
            with _translated(some[0]):
                answer = self._s3.delete_objects(
                    Bucket=self.bucket,
                    Delete={"Objects": [{"Key": key} for key in some], "Quiet": True},
                )
            faults = [
                fault for fault in answer.get("Errors", ()) if fault.get("Code") not in _MISSING
            ]
            if faults:
                raise StoreUnavailableError(f"could not delete {faults[0]}")

    def presign(self, key: str, seconds: int) -> str:
        """Make a link with which anybody may read an object for a while."""
        return self._public.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=seconds
        )

    def presign_put(self, key: str, size: int | None, seconds: int) -> str:
        """Make a link with which anybody may write an object of exactly that size for a while.

        Without a size the link takes an object of any.
        """
        length = {} if size is None else {"ContentLength": size}
        return self._public.generate_presigned_url(
            "put_object",
            Params={"Bucket": self.bucket, "Key": key, **length},
            ExpiresIn=seconds,
        )

    def check(self) -> None:
        """Ask whether the bucket answers.

        Raises:
            StoreError: it does not.
        """
        try:
            with _translated(self.bucket):
                self._s3.head_bucket(Bucket=self.bucket)
        except FileNotFoundError as error:
            raise StoreRefusedError(f"there is no bucket {self.bucket!r}") from error

    def honours_conditional_put(self) -> bool:
        """Try whether a second conditional PUT of one key is refused, as S3 must."""
        key = f"probes/{uuid4()}"
        try:
            self.put_if_absent(key, b"first", "text/plain")
            self.put_if_absent(key, b"second", "text/plain")
        except FileExistsError:
            return True
        finally:
            self.delete([key])
        return False

    def close(self) -> None:
        """Close the connections."""
        self._s3.close()
        self._public.close()
        self._patient.close()


def _rewind(file: BinaryIO) -> int:
    """Go to a file's start, and count its bytes."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def _client(
    config: StoreConfig, endpoint_url: str | None, read_timeout: int = READ_TIMEOUT
) -> S3Client:
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=config.region,
        aws_access_key_id=config.access_key_id,
        aws_secret_access_key=config.secret_access_key,
        config=Config(
            # Other stores than AWS answer in many ways to checksums they do not know.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if endpoint_url else "auto"},
            signature_version="s3v4",
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=read_timeout,
            max_pool_connections=MAX_CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": TRIES},
        ),
    )

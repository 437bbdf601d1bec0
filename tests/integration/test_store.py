"""The object store: what its answers become, on a real store and on one that misbehaves."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from darkroom_infra.store import (
    ObjectStore,
    StoreConfig,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
)
from darkroom_infra.store.small import LARGEST_BYTES
from tests.conftest import Deployment

TEXT = "text/plain"


@contextmanager
def answering(status: int) -> Iterator[ObjectStore]:
    """Open a store that answers everything with one status."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_GET = answer  # noqa: N815 - named by http.server

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    store = ObjectStore(opened(f"http://127.0.0.1:{server.server_port}"))
    try:
        yield store
    finally:
        store.close()
        server.shutdown()
        server.server_close()


def opened(url: str) -> StoreConfig:
    """Say where a store is."""
    return StoreConfig("bucket", "us-east-1", url, None, "key", "secret")


@pytest.fixture
def store(deployment: Deployment) -> ObjectStore:
    """A bucket of a real store."""
    return deployment.ledger().store


@pytest.mark.parametrize("size", [0, 1, 65_536, LARGEST_BYTES + 1])
def test_what_is_written_is_read(store: ObjectStore, size: int) -> None:
    """Small and large bodies come back as they were, whole and in part, from bytes and files."""
    body = bytes(index % 251 for index in range(size))
    store.put("a", body, TEXT)
    store.put("b", io.BytesIO(body), TEXT)
    assert store.get("a") == store.get("b") == body
    if size > 1:
        assert store.get("a", 1, size // 2) == body[1 : size // 2]


def test_the_content_type_is_kept(store: ObjectStore) -> None:
    """What a browser is told of an object is what was said of it."""
    store.put("a", b"x", TEXT)
    store.put_if_absent("b", b"x", TEXT)
    for key in "ab":
        assert store._s3.head_object(Bucket=store.bucket, Key=key)["ContentType"] == TEXT


def test_a_conditional_write_is_refused_where_there_is_one(store: ObjectStore) -> None:
    """The first of two conditional writes wins, and a plain one goes over it."""
    store.put_if_absent("a", b"first", TEXT)
    with pytest.raises(FileExistsError):
        store.put_if_absent("a", b"second", TEXT)
    assert store.get("a") == b"first"
    store.put("a", b"third", TEXT)
    assert store.get("a") == b"third"


def test_what_is_not_there_is_not_found(store: ObjectStore) -> None:
    """A key without an object is told from every other fault."""
    with pytest.raises(FileNotFoundError):
        store.get("nothing")


def test_wrong_keys_are_refused(deployment: Deployment) -> None:
    """Credentials that the store does not know are no outage: waiting does not help."""
    wrong = ObjectStore(opened(deployment.environment["DARKROOM_S3_ENDPOINT_URL"]))
    with pytest.raises(StoreRefusedError, match="403"):
        wrong.put("a", b"x", TEXT)
    with pytest.raises(StoreRefusedError, match="403"):
        wrong.get("a")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, StoreRefusedError),
        (401, StoreRefusedError),
        (403, StoreRefusedError),
        (408, StoreUnavailableError),
        (429, StoreUnavailableError),
        (500, StoreUnavailableError),
        (503, StoreUnavailableError),
    ],
)
def test_answers_become_errors(status: int, error: type[StoreError]) -> None:
    """What may pass by itself is told from what may not, in a line that names key and status."""
    with answering(status) as store:
        for call in (
            lambda: store.put("some/key", b"x", TEXT),
            lambda: store.put_if_absent("some/key", b"x", TEXT),
            lambda: store.get("some/key"),
        ):
            with pytest.raises(error, match=rf"^some/key: .*{status}") as caught:
                call()
            assert "Debug" not in str(caught.value)


def test_a_bucket_that_is_gone_is_no_missing_object() -> None:
    """Nothing can be written where there is no bucket, and nobody is told that a job is gone."""
    with answering(404) as store, pytest.raises(StoreRefusedError):
        store.put("a", b"x", TEXT)


def test_a_store_that_is_away_is_unavailable() -> None:
    """A refused connection may pass."""
    store = ObjectStore(opened("http://127.0.0.1:1"))
    with pytest.raises(StoreUnavailableError):
        store.put("a", b"x", TEXT)
    with pytest.raises(StoreUnavailableError):
        store.get("a")


def test_without_credentials_it_is_boto3_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither settings nor boto3's own chain have keys, the answer says that they lack."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    store = ObjectStore(StoreConfig("bucket", "us-east-1", "http://127.0.0.1:1"))
    with pytest.raises(StoreRefusedError, match="credentials"):
        store.get("a")


def test_keys_come_from_boto3s_chain(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without keys in the settings those that boto3 finds are used."""
    environment = deployment.environment
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", environment["DARKROOM_S3_ACCESS_KEY_ID"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", environment["DARKROOM_S3_SECRET_ACCESS_KEY"])
    url, bucket = (environment[f"DARKROOM_S3_{name}"] for name in ("ENDPOINT_URL", "BUCKET"))
    store = ObjectStore(StoreConfig(bucket, "us-east-1", url))
    store.put("a", b"x", TEXT)
    assert store.get("a") == b"x"

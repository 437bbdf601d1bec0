"""Hostile and mistaken input: a clear answer that names the field, and nothing stored."""

from __future__ import annotations

import itertools
import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest

from darkroom_wire.tensors import from_raw, to_safetensors
from tests.conftest import Deployment, make_latents
from tests.contract.conftest import RAW, SAFETENSORS

GOOD = make_latents(1, 4, 8, 8)
RAW_BODY = bytes(4 * 4 * 8 * 8)
RAW_QUERY = {"shape": ["1", "4", "8", "8"], "dtype": "float32"}
MEMBERS = {"type", "title", "status", "detail", "instance", "errors", "error"}


def file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Make a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: Any = (1, 4, 8, 8), dtype: str = "F32", begin: int = 0, end: int = 1024) -> Any:
    """Describe a tensor as a header does."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@dataclass(frozen=True)
class Case:
    """A request that has to be refused: how, and which words the answer must have."""

    name: str
    status: int
    says: tuple[str, ...]
    body: bytes = GOOD
    query: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=lambda: SAFETENSORS)


def bodies() -> Iterator[Case]:
    """Bodies that are not one tensor in a safetensors file."""
    twice = (
        b'{"a":' + json.dumps(tensor()).encode() + b',"a":' + json.dumps(tensor()).encode() + b"}"
    )
    deep = b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    two = {"a": tensor(), "b": tensor(begin=1024, end=2048)}
    many = {str(number): tensor((0,), end=0) for number in range(3000)}
    yield from (
        Case("empty", 422, ("latents", "safetensors"), b""),
        Case("short", 422, ("latents", "3 bytes"), b"abc"),
        Case("text", 422, ("latents", "header"), b"hello, this is no tensor"),
        Case("png", 422, ("latents",), b"\x89PNG\r\n\x1a\n" + bytes(100)),
        Case("header cut off", 422, ("latents", "header ends"), file(b"{}", length=500)),
        Case("header over 64 KiB", 422, ("latents", "65536"), file(b" " * 70_000)),
        Case("header absurd", 422, ("latents",), struct.pack("<Q", 2**63) + GOOD),
        Case("header of many tensors", 422, ("latents", "65536"), file(many)),
        Case("header no JSON", 422, ("latents", "JSON"), file(b"{nonsense}")),
        Case("header no object", 422, ("latents", "object"), file([1, 2])),
        Case("header too deep", 422, ("latents",), file(deep)),
        Case("header no UTF-8", 422, ("latents",), file(b'{"\xff": 1}')),
        Case("no tensor", 422, ("latents", "one tensor"), file({})),
        Case("several tensors", 422, ("one tensor", "2", "'a'"), file(two, bytes(2048))),
        Case("duplicate names", 422, ("'a' twice",), file(twice, bytes(1024))),
        Case("overlap", 422, ("overlap",), file({"a": tensor(), "b": tensor()}, bytes(1024))),
        Case("hole", 422, ("hole",), file({"a": tensor(begin=8, end=1032)}, bytes(1032))),
        Case("trailing bytes", 422, ("5 bytes follow",), file({"a": tensor()}, bytes(1029))),
        Case("too few bytes", 422, ("1024",), file({"a": tensor()}, bytes(1000))),
        Case("offsets against shape", 422, ("1024",), file({"a": tensor(end=1000)}, bytes(1000))),
        Case("no description", 422, ("'a'",), file({"a": 5})),
        Case("negative length", 422, ("shape",), file({"a": tensor((1, -4, 8, 8))}, bytes(1024))),
        Case("zero length", 422, ("empty",), file({"a": tensor((1, 4, 0, 8), end=0)})),
        Case("absurd length", 422, ("takes",), file({"a": tensor((2**60, 4, 8, 8))}, bytes(1024))),
        Case("bool as length", 422, ("shape",), file({"a": tensor((True, 4, 8, 8))}, bytes(1024))),
        Case(
            "too many dimensions",
            422,
            ("dimensions",),
            file({"a": tensor((1,) * 9, end=4)}, bytes(4)),
        ),
        *(
            Case(
                f"dtype {code}", 422, ("dtype", code), file({"a": tensor(dtype=code)}, bytes(1024))
            )
            for code in ("F64", "I64", "BOOL", "F8_E4M3", "nonsense")
        ),
        Case("dtype U8", 422, ("'uint8'",), file({"a": tensor(dtype="U8", end=256)}, bytes(256))),
    )


def raw_bodies() -> Iterator[Case]:
    """Raw bodies that disagree with the query."""

    def case(name: str, says: tuple[str, ...], body: bytes = RAW_BODY, **query: Any) -> Case:
        asked = {key: value for key, value in (RAW_QUERY | query).items() if value is not None}
        return Case(f"raw, {name}", 422, says, body, asked, RAW)

    yield case("no shape", ("shape",), shape=None)
    yield case("no dtype", ("dtype",), dtype=None)
    yield case("dtype unknown", ("uint8", "float32"), dtype="uint8")
    yield case("too few bytes", ("1024", "1000"), RAW_BODY[:1000])
    yield case("too many bytes", ("1024", "1028"), RAW_BODY + bytes(4))
    yield case("no bytes", ("1024",), b"")
    yield case("shape no number", ("shape",), shape=["1", "x"])
    yield case("shape negative", ("shape",), shape=["1", "-4", "8", "8"])
    yield case("shape zero", ("empty",), b"", shape=["0", "4", "8", "8"])
    yield case("shape absurd", ("shape",), shape=["1" * 30, "4", "8", "8"])
    yield case("shape huge", ("absurd",), shape=[str(2**60), "4", "8", "8"])
    yield case("shape unicode", ("shape",), shape=["\u0661", "4", "8", "8"])
    yield Case("shape for a file", 422, ("tensor/binary",), GOOD, RAW_QUERY)


def latents() -> Iterator[Case]:
    """Latents that do not fit the VAE."""

    def case(name: str, shape: tuple[int, ...], says: tuple[str, ...], **query: Any) -> Case:
        return Case(name, 422, says, make_latents(*shape), query)

    yield case("wrong channels", (1, 16, 8, 8), ("latents", "4 channels", "16"))
    yield case("two dimensions", (8, 8), ("latents", "batch"))
    yield case("five dimensions", (1, 4, 1, 8, 8), ("latents", "batch"))
    yield case("packed without size", (1, 16, 64), ("height",), vae="flux")
    yield case("packed, height alone", (1, 16, 64), ("height", "both"), vae="flux", height=64)
    yield case(
        "packed, misfit", (1, 16, 64), ("height", "16 patches"), vae="flux", height=64, width=80
    )
    yield case("packed, channels", (1, 16, 60), ("64 channels",), vae="flux", height=64, width=64)
    yield case("size misfit", (1, 4, 8, 8), ("height", "64 x 64"), height=64, width=72)


def options() -> Iterator[Case]:
    """Options that cannot be served."""

    def case(name: str, says: tuple[str, ...], status: int = 422, **query: Any) -> Case:
        return Case(name, status, says, query=query)

    yield case("vae unknown", ("vae", "'nope'", "demo"), vae="nope")
    yield case("vae missing", ("vae", "required"), vae=None)
    yield case("vae empty", ("vae",), vae="")
    yield case("format unknown", ("format",), format="gif")
    yield case("format impossible", ("format", "png"), format="mp4")
    yield case("fps for pictures", ("fps",), fps=24)
    yield case("frames for pictures", ("num_frames",), num_frames=9)
    yield case("unknown parameter", ("colour", "no such"), colour="red")
    yield case("repeated parameter", ("quality", "more than once"), quality=[80, 90])
    for name, value in (
        *(("quality", value) for value in ("0", "101", "x", "")),
        *(("height", value) for value in ("0", "-1", "1e9", "99999999")),
        *(("ttl", value) for value in ("0", "-5", "99999999999")),
        *(("scaling_factor", value) for value in ("0", "nan", "inf", "x")),
        ("shift_factor", "nan"),
        ("fps", "0"),
        ("priority", "urgent"),
        ("scaling", "both"),
        ("metadata", "no json"),
        ("metadata", "[1]"),
        ("metadata", json.dumps({"a": "b" * 5000})),
        ("metadata", "[" * 3000),
        ("callback_url", "http://10.0.0.1/"),
        ("dtype", "float32"),
    ):
        query: dict[str, Any] = {name: value}
        if name == "height":
            query["width"] = 64
        says = ("latents",) if name == "dtype" else (name,)
        yield case(f"{name}={value[:20]}", says, **query)
    yield case("scaling twice", ("scaling",), scaling="vae", scaling_factor=1)


def headers() -> Iterator[Case]:
    """Headers that cannot be served."""
    for kind in ("image/png", "application/json", "text/plain", "", "nonsense"):
        yield Case(f"content type {kind}", 415, ("Content-Type",), headers={"Content-Type": kind})
    for key in ("", '""', "with blank", "x" * 256, "key\twith tab"):
        yield Case(
            f"key {key[:10]!r}",
            400,
            ("Idempotency-Key",),
            headers={**SAFETENSORS, "Idempotency-Key": key},
        )


CASES = list(itertools.chain(bodies(), raw_bodies(), latents(), options(), headers()))


@pytest.fixture(scope="module", autouse=True)
def nothing_stored(intake: Deployment) -> Iterator[None]:
    """After the whole corpus nothing was stored or queued, and the service is unharmed."""

    def stored() -> tuple[list[str], int]:
        queued = httpx.get(f"{intake.api_url}/v1/queue").json()["queued"]
        return list(intake.ledger().store.list("inputs/")), queued

    before = stored()
    yield
    assert stored() == before
    with intake.client() as client:
        assert client.get("/readyz").status_code == 200
        answer = client.post("/v1/jobs?vae=demo", content=GOOD, headers=SAFETENSORS)
        assert answer.status_code == 202
        client.delete(answer.headers["Location"])


def check_problem(answer: httpx.Response, status: int, says: tuple[str, ...]) -> None:
    """Check a problem document: its status, members and words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    problem = answer.json()
    assert set(problem) == MEMBERS
    assert (problem["status"], problem["error"]) == (status, problem["detail"])
    for words in says:
        assert words in problem["detail"], problem["detail"]
    assert len(problem["detail"]) < 2000


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_with_the_cause(accepting: httpx.Client, case: Case) -> None:
    """The answer has the right status, is a problem document, and names what is wrong."""
    query = {
        key: value for key, value in ({"vae": "demo"} | case.query).items() if value is not None
    }
    answer = accepting.post("/v1/jobs", params=query, content=case.body, headers=case.headers)
    check_problem(answer, case.status, case.says)
    if case.status == 422:
        assert answer.json()["errors"], "the field at fault is listed"


@pytest.mark.parametrize(
    ("query", "at_fault"),
    [
        ({"dtype": "float32"}, "shape"),
        ({"shape": "1,4,8,8"}, "dtype"),
        ({"shape": "1,4,8,8", "dtype": "int8"}, "dtype"),
        ({"shape": "1,4,0,8", "dtype": "float32"}, "shape"),
        ({"shape": "1,4,8,9", "dtype": "float32"}, "latents"),
    ],
    ids=str,
)
def test_the_field_at_fault(accepting: httpx.Client, query: dict[str, str], at_fault: str) -> None:
    """For raw bodies the errors tell the shape, the dtype and the bytes apart."""
    answer = accepting.post(
        "/v1/jobs", params={"vae": "demo"} | query, content=RAW_BODY, headers=RAW
    )
    assert [error["field"] for error in answer.json()["errors"]] == [at_fault]


def test_too_many_pixels(accepting: httpx.Client) -> None:
    """A job over the limit of pixels gets 413 with the figures."""
    body = make_latents(17, 4, 64, 64, dtype="float16")
    answer = accepting.post("/v1/jobs?vae=demo", content=body, headers=SAFETENSORS)
    check_problem(answer, 413, ("17 x 512 x 512", "4194304"))


def test_an_announced_length_over_the_limit(accepting: httpx.Client, intake: Deployment) -> None:
    """A body that says it is too long is refused before any of it is sent."""
    check_problem(announce(intake, "Content-Length: 99999999"), 413, ("1000000",))


def test_an_endless_stream_is_cut_off(intake: Deployment) -> None:
    """A body of unknown length is refused once it passes the limit, not at its end."""
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    check_problem(announce(intake, "Transfer-Encoding: chunked", chunk * 20), 413, ("1000000",))


def announce(intake: Deployment, header: str, body: bytes = b"") -> httpx.Response:
    """Send a request's head and a part of its body, and read the answer, while more is due."""
    url = httpx.URL(intake.api_url)
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        connection.sendall(
            f"POST /v1/jobs?vae=demo HTTP/1.1\r\nHost: {url.host}\r\n{header}\r\n"
            "Content-Type: application/x-safetensors\r\n\r\n".encode()
        )
        connection.sendall(body)
        answer = b""
        while b"\r\n\r\n" not in answer or not answer.rstrip().endswith(b"}"):
            received = connection.recv(65536)
            assert received, answer
            answer += received
    head, _, content = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    fields = [tuple(line.split(": ", 1)) for line in lines]
    return httpx.Response(int(status.split()[1]), headers=fields, content=content)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/v1/jobs/nonsense", 404, ("nonsense",)),
        ("GET", "/v1/jobs/01990000-0000-7000-8000-000000000000", 404, ("no job",)),
        ("GET", "/v1/jobs/../../etc/passwd", 404, ()),
        ("DELETE", "/v1/jobs/nonsense", 404, ("nonsense",)),
        ("POST", "/v1/jobs/nonsense/cancel", 404, ("nonsense",)),
        ("GET", "/v1/jobs/nonsense/result", 404, ("nonsense",)),
        ("GET", "/v1/jobs?limit=0", 422, ("limit",)),
        ("GET", "/v1/jobs?limit=9999", 422, ("limit",)),
        ("GET", "/v1/jobs?status=lost", 422, ("status",)),
        ("GET", "/v1/jobs?cursor=nonsense", 422, ("cursor",)),
        ("GET", "/v1/jobs?colour=red", 422, ("colour",)),
        ("GET", "/v1/jobs/nonsense?wait=61", 422, ("wait",)),
        ("GET", "/v1/jobs/nonsense?wait=x", 422, ("wait",)),
        ("GET", "/v1/vaes/nope", 404, ("nope",)),
        ("GET", "/nowhere", 404, ("/nowhere",)),
        ("PUT", "/v1/jobs", 405, ("PUT",)),
        ("DELETE", "/v1/queue", 405, ("DELETE",)),
    ],
)
def test_wrong_calls(
    accepting: httpx.Client, method: str, path: str, status: int, says: tuple[str, ...]
) -> None:
    """Unknown things, wrong methods and bad parameters are problem documents too."""
    check_problem(accepting.request(method, path), status, says)


def test_nan_is_accepted(working: httpx.Client) -> None:
    """NaN and infinity are the caller's right: the job runs, and its provenance warns."""
    values = np.full((1, 4, 8, 8), np.nan, "float32")
    values[0, 0, 0, 0] = np.inf
    body = to_safetensors([from_raw(values.tobytes(), values.shape, "float32")])
    job = working.post(
        "/v1/jobs?vae=demo", content=body, headers={**SAFETENSORS, "Prefer": "wait=30"}
    ).json()
    assert job["status"] == "succeeded"
    assert "NaN" in job["provenance"]["warnings"][0]

"""The diffusers remote-VAE dialect over HTTP: what is refused, and its variants.

`tests/integration/test_remote_utils.py` has the real client.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Deployment
from tests.contract.conftest import RAW
from tests.contract.test_bad_input import check_problem


def picture(width: int, height: int) -> bytes:
    """Make a PNG file."""
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((width, height)).save(file, "PNG")
    return file.getvalue()


JOB = "x-darkroom-job"
SHAPE = (1, 4, 8, 8)
VALUES = np.random.default_rng(3).standard_normal(SHAPE).astype("float32")
BODY = VALUES.tobytes()
TENSOR = {"shape": [str(length) for length in SHAPE], "dtype": "float32"}
PNG = picture(24, 16)
LIMIT = 1_000_000
"""Bytes that the API of the fixture `intake` accepts."""


def wrap(body: bytes = BODY, parameters: Any = None) -> bytes:
    """Wrap a body in JSON, as older clients do."""
    document: dict[str, Any] = {"inputs": base64.b64encode(body).decode()}
    return json.dumps(
        document if parameters is None else document | {"parameters": parameters}
    ).encode()


def unwrap(answer: httpx.Response) -> np.ndarray[Any, Any]:
    """Read a tensor that was answered in JSON."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    parameters = document["parameters"]
    values = np.frombuffer(base64.b64decode(document["inputs"]), parameters["dtype"])
    return values.reshape(parameters["shape"])


def read(answer: httpx.Response) -> np.ndarray[Any, Any]:
    """Read a tensor that was answered raw."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "tensor/binary"
    values = np.frombuffer(answer.content, answer.headers["dtype"])
    return values.reshape(json.loads(answer.headers["shape"]))


@dataclass(frozen=True)
class Case:
    """A call that has to be refused: how, and which words the answer must have."""

    name: str
    status: int
    says: tuple[str, ...]
    query: dict[str, Any] = field(default_factory=lambda: TENSOR)
    body: bytes = BODY
    headers: dict[str, str] = field(default_factory=lambda: RAW)
    path: str = "/hf/demo/decode"


JSON_TYPE = {"Content-Type": "application/json"}
BASE64_TYPE = {"Content-Type": "tensor/base64"}


def decodes() -> Iterator[Case]:
    """Calls for decoding with something wrong in the query, the header or the body."""
    bad = [
        ("unknown parameter", {"guidance": "7"}, ("guidance", "no such")),
        ("vae as a parameter", {"vae": "demo"}, ("vae", "no such")),
        ("format as a parameter", {"format": "png"}, ("format", "no such")),
        ("repeated", {"output_type": ["pt", "pil"]}, ("output_type", "more than once")),
        ("repeated key", {"api_key": ["one", "two"]}, ("api_key", "more than once")),
        ("output_type", {"output_type": "np"}, ("output_type", "pil", "'np'")),
        ("image_format", {"image_format": "gif"}, ("image_format", "'gif'")),
        ("partial_postprocess", {"partial_postprocess": "maybe"}, ("partial_postprocess",)),
        ("do_scaling", {"do_scaling": "None"}, ("do_scaling", "'None'")),
        ("scaling_factor text", {"scaling_factor": "big"}, ("scaling_factor", "'big'")),
        ("scaling_factor nan", {"scaling_factor": "nan"}, ("scaling_factor", "'nan'")),
        ("scaling_factor zero", {"scaling_factor": "0"}, ("scaling_factor", "cannot be 0")),
        ("shift_factor infinite", {"shift_factor": "1e999"}, ("shift_factor",)),
        ("height alone", {"height": "64"}, ("width",)),
        ("height zero", {"height": "0", "width": "64"}, ("height",)),
        ("width huge", {"height": "64", "width": "9" * 30}, ("width",)),
        ("size of others", {"height": "128", "width": "64"}, ("height", "64 x 64")),
        ("num_frames of pictures", {"num_frames": "9"}, ("num_frames", "no frames")),
        ("priority", {"priority": "first"}, ("priority", "'first'")),
        ("wait alone", {"wait": "5"}, ("wait", "redirect=true")),
        ("wait too long", {"redirect": "true", "wait": "600"}, ("wait",)),
        ("mp4 of pictures", {"output_type": "mp4"}, ("output_type", "demo gives pictures")),
        ("dtype", {"dtype": "int8"}, ("dtype", "int8")),
        ("dtype of pixels", {"dtype": "uint8"}, ("dtype", "uint8")),
        ("shape text", {"shape": "four"}, ("shape", "four")),
        ("shape negative", {"shape": ["1", "-4", "8", "8"]}, ("shape",)),
        ("shape empty", {"shape": ["1", "4", "0", "8"]}, ("shape", "empty")),
        ("shape absurd", {"shape": "9" * 400}, ("shape",)),
        ("shape of more", {"shape": ["1", "4", "8", "9"]}, ("1152 bytes", "1024 came")),
        ("channels", {"shape": ["1", "16", "4", "4"]}, ("latents", "4 channels", "flux")),
        ("dimensions", {"shape": ["1", "1", "4", "8", "8"]}, ("latents", "[1, 1, 4, 8, 8]")),
    ]
    yield from (Case(name, 422, says, TENSOR | query) for name, query, says in bad)
    one, none = {"shape": TENSOR["shape"]}, {"dtype": "float32"}
    two = TENSOR | {"shape": ["2", "4", "8", "8"]}
    yield from (
        Case("no shape", 422, ("shape",), none),
        Case("no dtype", 422, ("dtype",), one),
        Case("empty", 422, ("1024 bytes", "0 came"), body=b""),
        Case("cut off", 422, ("1024 bytes", "1023 came"), body=BODY[:-1]),
        Case("several pictures", 422, ("shape", "2 pictures", "output_type=pt"), two, BODY * 2),
        Case("too large", 413, ("1000001", "1000000"), body=bytes(LIMIT + 1)),
        Case("text", 415, ("text/html", "tensor/binary"), headers={"Content-Type": "text/html"}),
        Case(
            "a form",
            415,
            ("tensor/binary",),
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        ),
        Case("a picture", 415, ("image/png",), body=PNG, headers={"Content-Type": "image/png"}),
        Case("nothing said", 415, ("shape and dtype",), {}, headers={}),
        Case("no such VAE", 404, ("'nope'", "demo", "sdxl"), path="/hf/nope/decode"),
        Case("no such action", 404, (), path="/hf/demo/develop"),
    )


def wrapped() -> Iterator[Case]:
    """Calls for decoding whose JSON is not what it should be."""
    bodies: list[tuple[str, int, tuple[str, ...], bytes]] = [
        ("empty", 400, ("JSON", "inputs"), b""),
        ("no JSON", 400, ("JSON",), b"\xff\xfe{"),
        ("cut off", 400, ("JSON",), wrap()[:-2]),
        ("raw", 400, ("JSON",), BODY),
        ("deep", 400, ("JSON",), b"[" * 100_000),
        ("lone surrogate", 400, ("JSON",), b'{"inputs": "\\ud800"}'),
        ("a list", 422, ("body: Input should be an object",), b"[]"),
        ("no inputs", 422, ("inputs",), b"{}"),
        ("inputs a number", 422, ("inputs",), b'{"inputs": 7}'),
        ("other members", 422, ("options",), b'{"inputs": "", "options": {}}'),
        ("parameters a list", 422, ("parameters",), wrap(parameters=[1])),
        ("not base64", 422, ("inputs", "base64"), b'{"inputs": "AA=A"}'),
        ("foreign letters", 422, ("inputs", "base64"), '{"inputs": "ÄÖÜ="}'.encode()),
        ("line breaks", 422, ("inputs", "base64"), b'{"inputs": "AAAA\\nAAAA"}'),
        ("bytes missing", 422, ("1024 bytes", "1000 came"), wrap(BODY[:1000])),
        ("too large", 413, ("1000001",), wrap(bytes(LIMIT + 1))),
        ("far too large", 413, ("bytes",), wrap(bytes(2 * LIMIT))),
    ]
    yield from (
        Case(f"{kind['Content-Type']}, {name}", status, says, TENSOR, body, kind)
        for name, status, says, body in bodies
        for kind in (JSON_TYPE, BASE64_TYPE)
    )
    parameters: list[tuple[str, Any, tuple[str, ...]]] = [
        ("unknown", {"guidance": 7}, ("guidance: there is no such parameter",)),
        ("redirect", {"redirect": True}, ("redirect",)),
        ("api_key", {"api_key": "secret"}, ("api_key",)),
        ("shape an object", {"shape": {"a": 1}}, ("shape",)),
        ("shape nested", {"shape": [[1, 4], 8, 8]}, ("shape",)),
        ("shape fractions", {"shape": [1, 4, 8.5, 8]}, ("shape",)),
        ("shape booleans", {"shape": [True, 4, 8, 8]}, ("shape",)),
        ("shape huge", {"shape": [10**40, 4, 8, 8]}, ("shape", "absurd")),
        ("dtype a list", {"dtype": ["float32"]}, ("dtype",)),
        ("height a fraction", {"height": 64.5, "width": 64}, ("height",)),
        ("do_scaling a list", {"do_scaling": []}, ("do_scaling",)),
        ("output_type a number", {"output_type": 1}, ("output_type",)),
    ]
    described = {"shape": list(SHAPE), "dtype": "float32"}
    yield from (
        Case(f"parameters, {name}", 422, says, {}, wrap(parameters=described | wrong), JSON_TYPE)
        for name, wrong, says in parameters
    )
    # What Python's own writer of JSON would not write.
    for name, status, value in (("NaN", 422, b"NaN"), ("gigantic", 400, b"9" * 5000)):
        body = wrap(parameters=described | {"scaling_factor": 0}).replace(
            b" 0}", b" " + value + b"}"
        )
        yield Case(f"parameters, {name}", status, (), {}, body, JSON_TYPE)


def encodes() -> Iterator[Case]:
    """Calls for encoding with something wrong."""
    path = "/hf/demo/encode"
    pixels = np.zeros((1, 3, 8, 8), "float32").tobytes()
    described = {"shape": ["1", "3", "8", "8"], "dtype": "float32"}
    cases: list[tuple[str, int, tuple[str, ...], Any, bytes, dict[str, str]]] = [
        ("empty", 422, ("picture",), {}, b"", {}),
        ("no picture", 422, ("PNG, JPEG or WebP",), {}, b"GIF89a" + bytes(40), {}),
        ("a cut PNG", 422, ("picture",), {}, PNG[:20], {}),
        ("a picture with a shape", 422, ("shape",), described, PNG, {"Content-Type": "image/png"}),
        ("no dtype", 422, ("dtype",), {"shape": described["shape"]}, pixels, {}),
        ("no shape", 422, ("shape",), {"dtype": "float32"}, pixels, {}),
        ("bytes missing", 422, ("768 bytes",), described, pixels[:-1], {}),
        ("four channels", 422, ("picture",), described | {"shape": "1,4,8,6"}, pixels, {}),
        ("odd size", 422, ("picture",), described | {"shape": "1,3,4,16"}, pixels, {}),
        ("output_type", 422, ("output_type",), described | {"output_type": "pt"}, pixels, {}),
        ("height", 422, ("height",), described | {"height": "8"}, pixels, {}),
        ("zero", 422, ("scaling_factor",), described | {"scaling_factor": "0"}, pixels, {}),
        ("text", 415, ("image/png",), described, pixels, {"Content-Type": "text/plain"}),
        ("too large", 413, ("1000000",), {}, bytes(LIMIT + 1), {}),
    ]
    yield from (
        Case(f"encode, {name}", status, says, query, body, headers, path)
        for name, status, says, query, body, headers in cases
    )


CASES = [*decodes(), *wrapped(), *encodes()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_with_the_cause(intake: Deployment, case: Case) -> None:
    """A bad call is refused with a problem that names the cause, and no job is made of it."""
    ledger = intake.ledger()
    before = list(ledger.store.list("inputs/"))
    with intake.client() as client:
        answer = client.post(case.path, params=case.query, content=case.body, headers=case.headers)
    check_problem(answer, case.status, case.says)
    assert JOB not in answer.headers
    assert list(ledger.store.list("inputs/")) == before


@pytest.mark.parametrize("path", ["/hf/demo/decode", "/hf/demo/encode"])
def test_other_methods(accepting: httpx.Client, path: str) -> None:
    """Looking at an endpoint in a browser says in JSON that it takes POST."""
    answer = accepting.get(path)
    check_problem(answer, 405, ("GET",))
    assert answer.headers["allow"] == "POST"


def test_the_description(accepting: httpx.Client) -> None:
    """OpenAPI has the dialect, with its parameters, bodies, answers and the job's header."""
    document = accepting.get("/openapi.json").json()
    decode = document["paths"]["/hf/{name}/decode"]["post"]
    encode = document["paths"]["/hf/{name}/encode"]["post"]
    assert decode["tags"] == encode["tags"] == ["diffusers"]
    names = {parameter["name"] for parameter in decode["parameters"]}
    assert {"shape", "dtype", "output_type", "scaling_factor", "redirect", "api_key"} <= names
    assert set(decode["requestBody"]["content"]) == {
        "tensor/binary",
        "tensor/base64",
        "application/json",
    }
    assert "image/png" in encode["requestBody"]["content"]
    answers = decode["responses"]
    assert {"image/jpeg", "image/png", "video/mp4", "tensor/binary"} <= set(
        answers["200"]["content"]
    )
    assert "X-Darkroom-Job" in answers["200"]["headers"]
    assert {"303", "502"} <= set(answers)


def decode(
    client: httpx.Client, body: bytes = BODY, headers: dict[str, str] | None = None, **query: Any
) -> httpx.Response:
    """Have the demo VAE decode a tensor."""
    return client.post(
        "/hf/demo/decode",
        params=TENSOR | query,
        content=body,
        headers=RAW if headers is None else headers,
    )


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ({}, "*/*", "image/jpeg"),
        ({}, "image/png", "image/png"),
        ({}, "image/jpeg", "image/jpeg"),
        ({"image_format": "png"}, "*/*", "image/png"),
        ({"image_format": "jpeg"}, "*/*", "image/jpeg"),
        ({"image_format": "png"}, "image/jpeg", "image/png"),
        ({"image_format": "jpg"}, "image/png", "image/jpeg"),
    ],
    ids=str,
)
def test_picture_formats(
    working: httpx.Client, query: dict[str, str], accept: str, kind: str
) -> None:
    """`image_format` says what a picture is answered as, then `Accept`; else it is a JPEG."""
    answer = decode(working, headers=RAW | {"Accept": accept}, **query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == kind
    assert answer.content.startswith(b"\x89PNG" if kind == "image/png" else b"\xff\xd8")


def test_each_call_is_a_job(working: httpx.Client) -> None:
    """`X-Darkroom-Job` names the job, which has what was asked for, and its result stays."""
    answer = decode(working, output_type="pt", priority="interactive")
    job = working.get(f"/v1/jobs/{answer.headers[JOB]}").json()
    assert (job["status"], job["vae"], job["priority"]) == ("succeeded", "demo", "interactive")
    assert job["format"] == "safetensors"
    assert job["latents"] == {"shape": list(SHAPE), "dtype": "float32", "bytes": len(BODY)}
    assert working.get(f"/v1/jobs/{job['id']}/result?redirect=false").content.endswith(
        answer.content
    )


@pytest.mark.parametrize("spelling", ["True", "true", "1"])
def test_spellings_of_truth(working: httpx.Client, spelling: str) -> None:
    """`True` in Python's spelling, in JSON's and as a number are the same."""
    pixels = read(decode(working, output_type="pt", partial_postprocess=spelling))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (1, 64, 64, 3))


@pytest.mark.parametrize("spelling", ["False", "false", "0"])
def test_spellings_of_falsehood(working: httpx.Client, spelling: str) -> None:
    """So are the spellings of `False`."""
    values = read(decode(working, output_type="pt", partial_postprocess=spelling))
    assert (values.dtype, values.shape) == (np.float32, (1, 3, 64, 64))


def test_ignored_parameters(working: httpx.Client) -> None:
    """What SD.Next sends of tensor types is accepted, and changes nothing."""
    plain = decode(working, output_type="pt")
    types = {"input_tensor_type": "binary", "output_tensor_type": "base64"}
    assert decode(working, output_type="pt", **types).content == plain.content


def test_no_content_type(working: httpx.Client) -> None:
    """Where `Content-Type` is missing, shape and dtype say that the body is a raw tensor."""
    answer = decode(working, headers={}, output_type="pt")
    assert np.array_equal(read(answer), read(decode(working, output_type="pt")))


@pytest.mark.parametrize("kind", ["tensor/base64", "application/json; charset=utf-8"])
def test_base64_with_the_query(working: httpx.Client, kind: str) -> None:
    """A tensor in base64 with its parameters in the query is answered in base64."""
    expected = read(decode(working, output_type="pt"))
    got = unwrap(decode(working, wrap(), {"Content-Type": kind}, output_type="pt"))
    assert np.array_equal(got, expected)


def test_base64_with_parameters(working: httpx.Client) -> None:
    """Parameters may come in the JSON, as numbers, lists, booleans or texts; null says nothing."""
    parameters = {
        "shape": list(SHAPE),
        "dtype": "float32",
        "output_type": "pt",
        "partial_postprocess": False,
        "scaling_factor": 0.5,
        "shift_factor": None,
        "do_scaling": "False",
        "height": 64,
        "width": 64,
    }
    answer = working.post("/hf/demo/decode", content=wrap(parameters=parameters), headers=JSON_TYPE)
    expected = decode(working, output_type="pt", scaling_factor="0.5")
    assert np.array_equal(unwrap(answer), read(expected))


def test_the_query_wins(working: httpx.Client) -> None:
    """Where query and JSON disagree, the query counts."""
    answer = decode(
        working,
        wrap(parameters={"output_type": "pil", "shape": [9], "scaling_factor": 3}),
        JSON_TYPE,
        output_type="pt",
        scaling_factor="0.5",
    )
    expected = decode(working, output_type="pt", scaling_factor="0.5")
    assert np.array_equal(unwrap(answer), read(expected))


def test_the_form_of_the_answer(working: httpx.Client) -> None:
    """`Accept` may ask for the other form; a picture is always a picture."""
    expected = read(decode(working, output_type="pt"))
    raw = decode(working, wrap(), BASE64_TYPE | {"Accept": "tensor/binary"}, output_type="pt")
    assert np.array_equal(read(raw), expected)
    other = decode(working, headers=RAW | {"Accept": "tensor/base64"}, output_type="pt")
    assert np.array_equal(unwrap(other), expected)
    picture = decode(working, wrap(), JSON_TYPE | {"Accept": "image/jpeg"})
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content == decode(working).content


def test_encode_in_base64(working: httpx.Client) -> None:
    """Pixels and pictures may come in JSON too, and the latents go back so."""
    pixels = np.random.default_rng(4).uniform(-1, 1, (1, 3, 16, 16)).astype("float32")
    query = {"shape": "1,3,16,16", "dtype": "float32"}
    raw = working.post("/hf/demo/encode", params=query, content=pixels.tobytes())
    assert read(raw).shape == (1, 4, 2, 2)
    parameters = {"shape": [1, 3, 16, 16], "dtype": "float32"}
    body = wrap(pixels.tobytes(), parameters)
    assert np.array_equal(
        unwrap(working.post("/hf/demo/encode", content=body, headers=JSON_TYPE)), read(raw)
    )
    picture = working.post("/hf/demo/encode", content=wrap(PNG), headers=BASE64_TYPE)
    plain = working.post("/hf/demo/encode", content=PNG)
    assert np.array_equal(unwrap(picture), read(plain))
    assert working.get(f"/v1/jobs/{plain.headers[JOB]}").json()["task"] == "encode"


def test_a_damaged_picture(working: httpx.Client) -> None:
    """A picture whose header is right, but not the rest, is the caller's fault too."""
    answer = working.post("/hf/demo/encode", content=PNG[:-40])
    check_problem(answer, 422, ("failed", "cannot be decoded"))
    assert working.get(f"/v1/jobs/{answer.headers[JOB]}").json()["status"] == "failed"

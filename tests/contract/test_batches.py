"""The HTTP contract for batches, over real HTTP."""

from __future__ import annotations

import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy

from darkroom_infra.ledger import batch_latents_key, batch_spec_key
from darkroom_infra.records import State
from darkroom_infra.records import transitions as steps
from darkroom_wire.tensors import to_safetensors
from tests.batch_files import SHAPE, batch_file, tensor
from tests.conftest import Deployment, Servers, eventually, make_latents
from tests.contract.conftest import RAW, SAFETENSORS

BATCH_KEYS = [
    "id",
    "status",
    "vae",
    "format",
    "priority",
    "created_at",
    "finished_at",
    "total",
    "counts",
    "progress",
    "metadata",
    "callback",
    "links",
]
THREE = batch_file(["a", "b", "c"])
COUNTS = {"queued": 0, "running": 0, "succeeded": 0, "failed": 0, "canceled": 0, "expired": 0}


def submit(
    client: httpx.Client, body: bytes, headers: dict[str, str] | None = None, **query: Any
) -> httpx.Response:
    """Submit a batch to the demo VAE."""
    return client.post(
        "/v1/batches",
        params={"vae": "demo"} | query,
        content=body,
        headers=SAFETENSORS | (headers or {}),
    )


def finished(client: httpx.Client, body: bytes, **query: Any) -> dict[str, Any]:
    """Submit a batch and wait for its end."""
    answer = submit(client, body, {"Prefer": "wait=60"}, **query)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def jobs_of(client: httpx.Client, batch_id: str) -> list[dict[str, Any]]:
    """Read all jobs of a batch in the order of its file, page after page."""
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get(f"/v1/batches/{batch_id}/results", params=cursor | {"limit": 500}).json()
        found += page["results"]
        if page["next"] is None:
            return found
        cursor = {"cursor": page["next"]}


def faults(answer: httpx.Response, status: int = 422) -> dict[str, str]:
    """Read which fields are at fault."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return {error["field"]: error["message"] for error in answer.json()["errors"]}


def test_accepted_batch(accepting: httpx.Client) -> None:
    """202 names the batch, where it is and when to ask again; its jobs are named after tensors."""
    answer = submit(accepting, THREE, priority="batch", metadata='{"run": 7}')
    batch = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/batches/{batch['id']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert list(batch) == BATCH_KEYS
    assert (batch["status"], batch["total"], batch["progress"]) == ("queued", 3, 0.0)
    assert batch["counts"] == COUNTS | {"queued": 3}
    assert (batch["vae"], batch["format"], batch["priority"]) == ("demo", "png", "batch")
    assert batch["metadata"] == {"run": 7}
    assert accepting.get(answer.headers["location"]).json() == batch
    jobs = accepting.get(batch["links"]["jobs"]).json()["results"]
    assert [job["name"] for job in jobs] == ["c", "b", "a"]
    assert {job["batch_id"] for job in jobs} == {batch["id"]}
    assert jobs[0]["latents"] == {"shape": [1, 4, 8, 8], "dtype": "float32", "bytes": 1024}
    assert accepting.get(f"/v1/jobs/{jobs[0]['id']}").json()["name"] == "c"


def test_jobs_follow_the_file(accepting: httpx.Client) -> None:
    """Jobs, their ids and their places in the queue have the order of the values in the file."""
    names = [f"tensor {number}" for number in (5, 3, 9, 1)]
    batch = submit(accepting, batch_file(names)).json()
    jobs = jobs_of(accepting, batch["id"])
    assert [job["name"] for job in jobs] == names
    ids = [job["id"] for job in jobs]
    assert ids == sorted(ids)
    places = [job["queue_position"] for job in jobs]
    assert places == list(range(places[0], places[0] + 4))


def test_results_are_those_of_single_jobs(working: httpx.Client) -> None:
    """Each job of a batch makes bit for bit what a job of its own makes, of any shape and dtype."""
    tensors = [
        tensor("square", seed=1),
        tensor("wide", (1, 4, 8, 12), 2, "float16"),
        tensor("two", (2, 4, 8, 8), 3),
    ]
    batch = finished(working, to_safetensors(tensors))
    assert (batch["status"], batch["progress"]) == ("completed", 1.0)
    assert batch["counts"] == COUNTS | {"succeeded": 3}
    assert batch["finished_at"] >= batch["created_at"]
    jobs = jobs_of(working, batch["id"])
    assert [len(job["outputs"]) for job in jobs] == [1, 1, 2]
    for job, alone in zip(jobs, tensors, strict=True):
        single = working.post(
            "/v1/jobs",
            params={"vae": "demo"},
            content=to_safetensors([alone]),
            headers=SAFETENSORS | {"Prefer": "wait=60"},
        ).json()
        expected = [output["sha256"] for output in single["outputs"]]
        assert [output["sha256"] for output in job["outputs"]] == expected
        assert httpx.get(job["outputs"][0]["url"]).status_code == 200


def test_ten_thousand_tensors(accepting: httpx.Client) -> None:
    """The most that a batch may have is accepted in one call, listed and deleted."""
    tiny = tensor("x")
    tensors = [tensor_named(tiny, f"{'n' * 240}/{number:05}") for number in range(10_000)]
    answer = submit(accepting, to_safetensors(tensors))
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    assert batch["counts"]["queued"] == batch["total"] == 10_000
    last = accepting.get(batch["links"]["jobs"], params={"limit": 1}).json()["results"][0]
    assert last["name"].endswith("/09999")
    assert accepting.delete(f"/v1/batches/{batch['id']}").status_code == 204
    assert accepting.get("/v1/jobs", params={"batch_id": batch["id"]}).json()["results"] == []


def tensor_named(like: Any, name: str) -> Any:
    """Give a tensor another name."""
    return type(like)(type(like.info)(name, like.info.dtype, like.info.shape), like.data)


def test_one_too_many(accepting: httpx.Client) -> None:
    """A batch with more tensors than allowed is refused by its header, and so is an empty one."""
    tiny = tensor("x", (1, 1, 1, 1))
    many = to_safetensors([tensor_named(tiny, str(number)) for number in range(10_001)])
    assert "10000" in faults(submit(accepting, many), 413)["latents"]
    empty = struct.pack("<Q", 2) + b"{}"
    assert "no tensors" in faults(submit(accepting, empty))["latents"]


def test_all_or_none(accepting: httpx.Client, intake: Deployment) -> None:
    """One tensor that does not fit keeps the whole batch out, and leaves nothing behind."""
    before = queued(accepting)
    store = intake.ledger().store
    objects = set(store.list(""))
    wrong = batch_file({"good": SHAPE, "bad": (1, 5, 8, 8), "worse": (4, 8)})
    found = faults(submit(accepting, wrong))
    assert set(found) == {"latents.bad", "latents.worse"}
    assert "channels" in found["latents.bad"]
    assert queued(accepting) == before
    assert set(store.list("")) == objects


def queued(client: httpx.Client) -> int:
    """Read how many jobs wait."""
    depth: int = client.get("/v1/queue").json()["queued"]
    return depth


def test_some_faults_are_named(accepting: httpx.Client) -> None:
    """Of very many faults the first are named, and the answer stays short."""
    wrong = batch_file({f"t{number}": (1, 5, 8, 8 + number) for number in range(50)})
    found = faults(submit(accepting, wrong))
    assert len(found) == 21
    assert "first 20" in found["latents"]


def test_too_many_pixels(accepting: httpx.Client) -> None:
    """Each job may have as many pixels as a single job may, and no more."""
    body = batch_file({"small": SHAPE, "huge": (1, 4, 260, 260)})
    assert list(faults(submit(accepting, body), 413)) == ["latents.huge"]


def header_of(entries: dict[str, Any], values: bytes = b"") -> bytes:
    """Make a file with any header."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + values


GOOD = {"dtype": "F32", "shape": [1, 4, 8, 8], "data_offsets": [0, 1024]}


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (b"", "latents", "0 bytes"),
        (b"\xff" * 8, "latents", "too long"),
        (struct.pack("<Q", 5 * 1024 * 1024) + b"{" * (5 * 1024 * 1024), "latents", "4194304"),
        (header_of({"": GOOD}, bytes(1024)), "latents", "0 characters"),
        (header_of({"n" * 256: GOOD}, bytes(1024)), "latents." + "n" * 255, "256 characters"),
        (header_of({"a\nb": GOOD}, bytes(1024)), "latents.a\nb", "control characters"),
        (header_of({"\ud800": GOOD}, bytes(1024)), r"latents.\ud800", "control characters"),
        (header_of({"a": GOOD}, bytes(1000)), "latents.a", "only 1000 bytes"),
        (header_of({"a": GOOD}, bytes(1025)), "latents", "1 bytes follow"),
        (header_of({"a": GOOD, "b": GOOD}, bytes(1024)), "latents", "overlap"),
        (header_of({"a": GOOD | {"dtype": "F64"}}, bytes(1024)), "latents.a", "F64"),
        (header_of({"a": 7}), "latents.a", "no description"),
        (
            header_of({"latent_format_version_0": GOOD | {"shape": [0], "data_offsets": [0, 0]}}),
            "latents.latent_format_version_0",
            "empty",
        ),
    ],
)
def test_malformed_files(accepting: httpx.Client, body: bytes, field: str, message: str) -> None:
    """What is no file of latents is refused with the tensor and the reason."""
    assert message in faults(submit(accepting, body))[field]


def test_names_that_come_twice(accepting: httpx.Client) -> None:
    """A name that comes twice is refused: which tensor would be meant?"""
    entry = json.dumps(GOOD)
    text = f'{{"a": {entry}, "a": {entry}}}'.encode()
    body = struct.pack("<Q", len(text)) + text + bytes(1024)
    assert "twice" in faults(submit(accepting, body))["latents"]


def test_what_a_batch_cannot_be(accepting: httpx.Client) -> None:
    """Raw bodies, pictures to encode, unknown options and VAEs, and absurd lengths are refused."""
    assert submit(accepting, THREE, RAW).status_code == 415
    assert "task" in faults(submit(accepting, THREE, task="encode"))
    assert "shape" in faults(submit(accepting, THREE, shape="1"))
    assert "vae" in faults(submit(accepting, THREE, vae="nope"))
    assert "quality" in faults(submit(accepting, THREE, quality=0))
    assert accepting.get("/v1/batches/nothing").status_code == 404
    assert "cursor" in faults(accepting.get("/v1/batches", params={"cursor": "x"}))
    assert accepting.put("/v1/batches").status_code == 405


def test_a_body_over_the_limit(servers: Servers, tmp_path: Path) -> None:
    """A file over DARKROOM_MAX_BATCH_BYTES is refused by its announced and by its real length."""
    with servers.deploy(tmp_path, max_batch_bytes="3000") as deployment:
        deployment.start_api()
        with deployment.client() as client:
            assert submit(client, THREE).status_code == 413

            def pieces() -> Iterator[bytes]:
                yield from (bytes(1000) for _ in range(4))

            answer = client.post(
                "/v1/batches", params={"vae": "demo"}, content=pieces(), headers=SAFETENSORS
            )
            assert answer.status_code == 413
            assert submit(client, batch_file(["a", "b"])).status_code == 202


def test_a_full_queue(servers: Servers, tmp_path: Path) -> None:
    """A batch that does not fit into the backlog now is 503; one that never will is 413."""
    with servers.deploy(tmp_path, max_queued="4") as deployment:
        deployment.start_api()
        with deployment.client() as client:
            assert submit(client, THREE).status_code == 202
            full = submit(client, THREE)
            assert (full.status_code, "retry-after" in full.headers) == (503, True)
            assert submit(client, batch_file(["one"])).status_code == 202
            assert submit(client, batch_file("abcde")).status_code == 413
            assert queued(client) == 4


def test_idempotent_repeat(accepting: httpx.Client) -> None:
    """The same key and file give the same batch, at once or later; another file is refused."""
    headers = {"Idempotency-Key": f"batch-{id(object())}"}
    before = queued(accepting)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: submit(accepting, THREE, headers), range(4)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert queued(accepting) == before + 3
    other = submit(accepting, batch_file(["a", "b"]), headers)
    assert "Idempotency-Key" in faults(other)
    assert "Idempotency-Key" in faults(submit(accepting, THREE, headers, format="jpeg"))
    job = accepting.post(
        "/v1/jobs",
        params={"vae": "demo"},
        content=make_latents(1, 4, 8, 8),
        headers=SAFETENSORS | headers,
    )
    assert "Idempotency-Key" in faults(job)


def test_waiting(working: httpx.Client, accepting: httpx.Client) -> None:
    """`wait` answers once all jobs have ended, or with `finished=K` once more than K have."""
    batch = submit(working, batch_file(map(str, range(8)))).json()
    path = f"/v1/batches/{batch['id']}"
    some = working.get(path, params={"wait": 60, "finished": 0}).json()
    assert some["progress"] > 0
    done = working.get(path, params={"wait": 60}).json()
    assert (done["status"], done["progress"]) == ("completed", 1.0)
    waiting = submit(accepting, THREE, {"Prefer": "wait=0"})
    assert (waiting.status_code, waiting.headers["preference-applied"]) == (202, "wait=0")
    late = accepting.get(f"/v1/batches/{waiting.json()['id']}", params={"wait": 0}).json()
    assert late["status"] == "queued"


def test_listing(accepting: httpx.Client) -> None:
    """Batches are listed newest first, page by page; a batch's jobs by status too."""
    ids = [submit(accepting, THREE).json()["id"] for _ in range(5)]
    seen: list[str] = []
    cursor: dict[str, Any] = {}
    while len(seen) < 5:
        page = accepting.get("/v1/batches", params={"limit": 2} | cursor).json()
        seen += [batch["id"] for batch in page["results"]]
        cursor = {"cursor": page["next"]}
    assert seen[:5] == ids[::-1]
    jobs = accepting.get("/v1/jobs", params={"batch_id": ids[0], "limit": 2}).json()
    assert [job["name"] for job in jobs["results"]] == ["c", "b"]
    accepting.post(f"/v1/jobs/{jobs['results'][0]['id']}/cancel")
    left = accepting.get("/v1/jobs", params={"batch_id": ids[0], "status": "queued"}).json()
    assert [job["name"] for job in left["results"]] == ["b", "a"]
    assert accepting.get("/v1/jobs", params={"batch_id": ""}).json()["results"] == []


def test_cancel(accepting: httpx.Client) -> None:
    """Every job that has not ended is canceled; a batch that has ended cannot be."""
    batch = submit(accepting, THREE).json()
    path = f"/v1/batches/{batch['id']}"
    first = jobs_of(accepting, batch["id"])[0]
    accepting.post(f"/v1/jobs/{first['id']}/cancel")
    assert accepting.get(path).json()["counts"] == COUNTS | {"queued": 2, "canceled": 1}
    answer = accepting.post(f"{path}/cancel")
    assert answer.status_code == 200
    assert answer.json()["counts"] == COUNTS | {"canceled": 3}
    assert answer.json()["status"] == "completed"
    assert accepting.post(f"{path}/cancel").status_code == 409
    assert {job["status"] for job in jobs_of(accepting, batch["id"])} == {"canceled"}


def test_delete(working: httpx.Client, installation: Deployment) -> None:
    """When the deletion answers, latents, spec and results are gone from S3; manifests stay."""
    batch = finished(working, THREE)
    path = f"/v1/batches/{batch['id']}"
    jobs = jobs_of(working, batch["id"])
    assert working.delete(path).status_code == 204
    store = installation.ledger().store
    ids = {batch["id"], *(job["id"] for job in jobs)}
    left = [key for key in store.list("") if any(known in key for known in ids)]
    assert sorted(left) == sorted(f"manifests/{job['id']}.json" for job in jobs)
    assert httpx.get(jobs[0]["outputs"][0]["url"]).status_code == 404
    assert working.get(path).status_code == 410
    assert working.get(f"{path}/results").status_code == 410
    assert working.get(f"{path}/results.zip").status_code == 410
    assert working.post(f"{path}/cancel").status_code == 410
    assert working.get(f"/v1/jobs/{jobs[0]['id']}").status_code == 410
    listed = working.get("/v1/batches", params={"limit": 200}).json()["results"]
    assert batch["id"] not in {other["id"] for other in listed}
    assert working.delete(path).status_code == 204


def test_delete_before_the_end(accepting: httpx.Client, intake: Deployment) -> None:
    """A batch that waits is canceled by its deletion; a repeat of it afterwards is 410."""
    before = queued(accepting)
    headers = {"Idempotency-Key": "deleted"}
    batch = submit(accepting, THREE, headers).json()
    assert accepting.delete(f"/v1/batches/{batch['id']}").status_code == 204
    assert queued(accepting) == before
    store = intake.ledger().store
    assert not any(batch["id"] in key for key in store.list("inputs/"))
    assert submit(accepting, THREE, headers).status_code == 410


def test_latents_stay_until_the_last_job_is_gone(
    accepting: httpx.Client, intake: Deployment
) -> None:
    """A single job of a batch can be deleted; the file with the others' latents stays for them."""
    batch = submit(accepting, THREE).json()
    store = intake.ledger().store
    jobs = jobs_of(accepting, batch["id"])
    for job in jobs[:2]:
        assert accepting.delete(f"/v1/jobs/{job['id']}").status_code == 204
        assert accepting.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert store.exists(batch_latents_key(batch["id"]))
    assert [job["name"] for job in jobs_of(accepting, batch["id"])] == ["c"]
    assert accepting.delete(f"/v1/jobs/{jobs[2]['id']}").status_code == 204
    assert not store.exists(batch_latents_key(batch["id"]))
    assert not store.exists(batch_spec_key(batch["id"]))


def test_expired_batches(servers: Servers, tmp_path: Path) -> None:
    """Once the last job's results have expired, the batch's objects go; its document stays."""
    with servers.deploy(tmp_path) as deployment:
        deployment.start_api()
        deployment.start_worker()
        with deployment.client() as client:
            batch = finished(client, THREE, ttl=1)
            store = deployment.ledger().store
            eventually(lambda: not any("manifests" not in key for key in store.list("")))
            left = client.get(f"/v1/batches/{batch['id']}").json()
            assert left["counts"] == COUNTS | {"expired": 3}
            assert left["status"] == "completed"
            archive = client.get(f"/v1/batches/{batch['id']}/results.zip")
            with zipfile.ZipFile(io.BytesIO(archive.content)) as read:
                assert read.namelist() == ["failures.json"]


def test_zip(working: httpx.Client) -> None:
    """The archive has each output bit for bit under its tensor's name, stored, and is whole."""
    tensors = [tensor("a/first", seed=1), tensor("pair", (2, 4, 8, 8), 2), tensor("ü 😀", seed=3)]
    batch = finished(working, to_safetensors(tensors), format="webp")
    answer = working.get(f"/v1/batches/{batch['id']}/results.zip")
    assert answer.headers["content-type"] == "application/zip"
    assert batch["id"] in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        names = ["a/first.webp", "pair-0.webp", "pair-1.webp", "ü 😀.webp"]
        assert archive.namelist() == names
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        outputs = [output for job in jobs_of(working, batch["id"]) for output in job["outputs"]]
        stored = [httpx.get(output["url"]).content for output in outputs]
        assert [archive.read(name) for name in names] == stored


def test_zip_names_lead_nowhere_else(working: httpx.Client) -> None:
    """Names that climb, that are absolute, or that file systems take for something else, do not."""
    names = [
        "../../etc/passwd",
        "/absolute",
        "..\\..\\windows",
        "C:/x",
        "con",
        "same",
        "SAME",
        "same.png/inner",
        ".",
        "..",
        "a//b/./c",
        "trailing. ",
        "\u202egnp.exe",
        "n" * 255,
        "ß/" + "ü" * 250,
        "failures",
    ]
    batch = finished(working, batch_file(names), format="png")
    content = working.get(f"/v1/batches/{batch['id']}/results.zip").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive, tempfile.TemporaryDirectory() as folder:
        paths = archive.namelist()
        assert len({path.casefold() for path in paths}) == len(names)
        for path in paths:
            parts = path.split("/")
            assert all(part and part.strip(". ") and len(part.encode()) < 255 for part in parts), (
                path
            )
            assert not set(path) & set('\\:*?"<>|\u202e'), path
        archive.extractall(folder)
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        assert len(files) == len(names)


def test_zip_before_the_end(accepting: httpx.Client) -> None:
    """Before the end there is no archive, unless a part was asked for; that says what lacks."""
    batch = submit(accepting, THREE).json()
    path = f"/v1/batches/{batch['id']}/results.zip"
    assert accepting.get(path).status_code == 409
    jobs = jobs_of(accepting, batch["id"])
    accepting.post(f"/v1/jobs/{jobs[1]['id']}/cancel")
    answer = accepting.get(path, params={"partial": "true"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["failures.json"]
        failures = json.loads(archive.read("failures.json"))
    assert [(entry["name"], entry["status"]) for entry in failures] == [
        ("a", "queued"),
        ("b", "canceled"),
        ("c", "queued"),
    ]
    assert failures[1]["detail"] == "canceled by its owner"


def test_tensors_as_results(working: httpx.Client) -> None:
    """Any format that a job has, a batch has: here tensors, one file each."""
    batch = finished(working, THREE, format="safetensors")
    content = working.get(f"/v1/batches/{batch['id']}/results.zip").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["a.safetensors", "b.safetensors", "c.safetensors"]
        decoded = safetensors.numpy.load(archive.read("a.safetensors"))["decoded"]
    assert (decoded.shape, decoded.dtype) == ((1, 3, 64, 64), np.float32)


def test_results_page_by_page(accepting: httpx.Client) -> None:
    """The manifest of results comes in the order of the file, without gaps or repeats."""
    names = [str(number) for number in range(7)]
    batch = submit(accepting, batch_file(names)).json()
    path = f"/v1/batches/{batch['id']}/results"
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        query = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = accepting.get(path, params=query).json()
        seen += [job["name"] for job in page["results"]]
        cursor = page["next"]
    assert seen == names


def test_keys(servers: Servers, tmp_path: Path) -> None:
    """Another key's batch is not found, whatever is done with it."""
    with servers.deploy(tmp_path, api_keys="anna:secret-a,bert:secret-b") as deployment:
        deployment.start_api()
        with deployment.client() as client:
            anna, bert = ({"Authorization": f"Bearer secret-{name}"} for name in "ab")
            batch = submit(client, THREE, anna).json()
            path = f"/v1/batches/{batch['id']}"
            for method, target in [
                ("GET", path),
                ("DELETE", path),
                ("POST", f"{path}/cancel"),
                ("GET", f"{path}/results"),
                ("GET", f"{path}/results.zip"),
            ]:
                assert client.request(method, target, headers=bert).status_code == 404, target
                assert client.request(method, target).status_code == 401
            for target in ("/v1/batches", f"/v1/jobs?batch_id={batch['id']}"):
                assert client.get(target, headers=bert).json()["results"] == []
                assert len(client.get(target, headers=anna).json()["results"]) in (1, 3)


def test_states_in_the_records(accepting: httpx.Client, intake: Deployment) -> None:
    """A batch's counts are those of its jobs' records."""
    batch = submit(accepting, THREE).json()
    records = intake.records().run(steps.members(batch["id"], "", 10))
    assert [record.state for record in records] == [State.QUEUED] * 3
    assert [record.spec.name for record in records] == ["a", "b", "c"]

"""`remote_decode`, `remote_encode` and `RemoteVAE` against a small server with set answers."""

from __future__ import annotations

import inspect
import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import diffusers.utils.remote_utils as dialect
import numpy as np
import pytest
import torch
from PIL import Image

import darkroom
from darkroom import Client, RemoteVAE, remote_decode, remote_encode
from darkroom._remote import read_endpoint
from darkroom_wire.jobs import Task
from darkroom_wire.tensors import from_raw, to_safetensors
from tests.unit.test_client_http import JOB_ID, Reply, Seen, Stub, job, output, problem

LATENTS = np.zeros((1, 4, 2, 2), np.float32)
KL = {"_class_name": "AutoencoderKL", "block_out_channels": [1, 2, 3, 4], "scaling_factor": 0.5}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A server in the place of the service, at the configured address."""
    stub = Stub()
    monkeypatch.setenv("DARKROOM_URL", stub.url)
    monkeypatch.setenv("DARKROOM_API_KEY", "configured")
    stub.on("POST", "/v1/jobs", Reply(202, job()))
    yield stub
    stub.close()


def give(service: Stub, *contents: bytes, content_type: str, **changes: Any) -> None:
    """Let every job end with these outputs."""
    outputs = [output(content, content_type, **changes) for content in contents]
    service.on("GET", f"/v1/jobs/{JOB_ID}", Reply(200, job("succeeded", outputs=outputs)))

    def result(seen: Seen) -> Reply:
        return Reply(200, contents[int(seen.query["index"][0])])

    service.on("GET", f"/v1/jobs/{JOB_ID}/result", result)


def give_tensor(service: Stub, values: np.ndarray, name: str = "decoded") -> None:
    """Let every job end with this tensor."""
    raw = from_raw(values.tobytes(), values.shape, values.dtype.name, name)
    give(service, to_safetensors([raw]), content_type="application/x-safetensors")


def give_vae(service: Stub, family: str = "sd", **changes: Any) -> None:
    """Let the catalogue have the VAE `x`."""
    document = {"name": "x", "family": family, "source": "owner/x", "config": KL, **changes}
    service.on("GET", "/v1/vaes/x", Reply(200, document))


def submission(service: Stub) -> Seen:
    """The only submission there was."""
    (seen,) = (seen for seen in service.seen if seen.method == "POST")
    return seen


def picture(value: int) -> bytes:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("name", ["remote_decode", "remote_encode"])
def test_signatures_are_diffusers(name: str) -> None:
    """Names, order and defaults of the parameters are those of diffusers' function."""
    ours, theirs = (
        [
            (one.name, one.kind, one.default)
            for one in inspect.signature(getattr(module, name)).parameters.values()
        ]
        for module in (darkroom, dialect)
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("sdxl", ("sdxl", None, None, {})),
        ("http://h:1/hf/sdxl/decode", ("sdxl", "http://h:1", None, {})),
        ("https://h/a/b/hf/my%20vae/decode/", ("my vae", "https://h/a/b", None, {})),
        ("http://h/hf/x", ("x", "http://h", None, {})),
        ("http://u:k%2F@h/hf/x/decode", ("x", "http://h", "k/", {})),
        (
            "http://h/hf/x/decode?api_key=k&priority=batch&num_frames=9&redirect=true&wait=5",
            ("x", "http://h", "k", {"priority": "batch", "num_frames": "9"}),
        ),
    ],
)
def test_endpoints(endpoint: str, expected: tuple[Any, ...]) -> None:
    """A name, or an address with all that diffusers' users put into it."""
    read = read_endpoint(endpoint, Task.DECODE)
    assert (read.vae, read.url, read.api_key, read.options) == expected


@pytest.mark.parametrize(
    ("endpoint", "named"),
    [
        ("https://user:secret@elsewhere.huggingface.cloud/?api_key=secret", "diffusers.utils"),
        ("http://h/hf/x/encode", "remote_decode"),
        ("http://h/hf/x/decode?colour=red", "colour"),
        ("ftp://h/hf/x/decode", "http://127"),
        ("", "catalogue"),
        ("http://[/hf/x/decode", "catalogue"),
    ],
)
def test_endpoints_that_are_none(endpoint: str, named: str) -> None:
    """What is no Darkroom is refused before anything is sent, and no key is shown."""
    with pytest.raises(darkroom.SettingsError, match=named) as caught:
        remote_decode(endpoint, LATENTS)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        ({}, {"scaling": "vae", "format": "jpeg"}),
        ({"do_scaling": False, "image_format": "png"}, {"scaling": "none", "format": "png"}),
        ({"do_scaling": None, "scaling_factor": 2.0}, {"scaling": "none", "format": "jpeg"}),
        ({"scaling_factor": 0.5}, {"scaling_factor": "0.5", "format": "jpeg"}),
        ({"shift_factor": 0.5}, {"shift_factor": "0.5", "format": "jpeg"}),
        (
            {"height": 8, "width": 16},
            {"scaling": "vae", "format": "jpeg", "height": "8", "width": "16"},
        ),
    ],
)
def test_arguments_become_a_job(
    service: Stub, arguments: dict[str, Any], query: dict[str, str]
) -> None:
    """Diffusers' arguments mean the same as a job, with the configured address and key."""
    give(service, picture(7), content_type="image/png")
    assert remote_decode("x", LATENTS, **arguments).getpixel((0, 0)) == (7, 0, 0)
    seen = submission(service)
    sent = {name: values[0] for name, values in seen.query.items()}
    assert sent == {"vae": "x", "shape": "1", "dtype": "float32", **query}
    assert seen.headers["authorization"] == "Bearer configured"


def test_the_endpoints_own_key_and_options(service: Stub) -> None:
    """An address that has a key is sent this one, not the configured one, and its options."""
    give(service, picture(7), content_type="image/png")
    address = service.url.replace("//", "//user:own@") + "/hf/x/decode?priority=interactive"
    remote_decode(address, LATENTS)
    seen = submission(service)
    assert seen.headers["authorization"] == "Bearer own"
    assert seen.query["priority"] == ["interactive"]


def test_a_lost_answer_is_no_second_decode(service: Stub) -> None:
    """A call whose answer is lost is sent again as the same job."""
    give(service, picture(7), content_type="image/png")
    service.on("POST", "/v1/jobs", Reply(0), Reply(202, job()))
    remote_decode("x", LATENTS)
    posts = [seen for seen in service.seen if seen.method == "POST"]
    assert len(posts) == 2
    assert len({seen.headers["idempotency-key"] for seen in posts}) == 1


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_tensors_come_as_what_was_given(service: Stub, kind: Any) -> None:
    """Torch for torch, numpy for numpy, in each form that a tensor has."""
    values = np.array([-3.0, -1.0, 0.0, 0.5], np.float32).reshape(1, 1, 2, 2).repeat(3, 1)
    give_tensor(service, values)
    latents = kind(LATENTS)
    made = remote_decode("x", latents, output_type="pt", return_type="pt")
    assert type(made) is type(latents)
    assert np.array_equal(made, values)
    unit = remote_decode("x", latents, True, return_type="pt")
    assert type(unit) is type(latents)
    assert np.array_equal(unit, (values * 0.5 + 0.5).clip(0, 1))
    (image,) = remote_decode("x", latents, object())
    assert np.asarray(image)[..., 0].tolist() == [[0, 0], [128, 191]]


def test_videos(service: Stub) -> None:
    """One video comes as its frames, several as one list each."""
    values = np.zeros((1, 3, 5, 2, 2), np.float32)
    give_tensor(service, values)
    assert remote_decode("x", LATENTS, True, return_type="pt").shape == (5, 3, 2, 2)
    assert len(remote_decode("x", LATENTS, True)) == 5
    give_tensor(service, values.repeat(2, 0))
    assert remote_decode("x", LATENTS, True, return_type="pt").shape == (2, 5, 3, 2, 2)
    assert [len(video) for video in remote_decode("x", LATENTS, True)] == [5, 5]


def test_several_pictures(service: Stub) -> None:
    """A batch of pictures comes as a list, named as diffusers names formats."""
    give(service, picture(1), picture(2), content_type="image/png")
    images = remote_decode("x", LATENTS, image_format="png")
    assert [(image.getpixel((0, 0))[0], image.format) for image in images] == [
        (1, "png"),
        (2, "png"),
    ]
    pixels: dict[str, Any] = {"output_type": "pt", "partial_postprocess": True}
    assert remote_decode("x", LATENTS, return_type="pt", **pixels).shape == (2, 2, 3, 3)
    assert len(remote_decode("x", LATENTS, **pixels)) == 2


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"output_type": "pt"}, "processor"),
        ({"return_type": "pt"}, "return_type"),
        ({"output_type": "mp4"}, "return_type"),
        ({"output_type": "pt", "return_type": "mp4"}, "return_type"),
        ({"image_format": "gif"}, "image_format"),
    ],
)
def test_arguments_that_contradict(service: Stub, arguments: dict[str, Any], field: str) -> None:
    """What does not go together costs no request, and is named."""
    with pytest.raises(darkroom.InvalidRequestError) as caught:
        remote_decode("x", LATENTS, **arguments)
    assert [error.field for error in caught.value.errors] == [field]
    assert service.seen == []


def test_errors_are_of_the_tree(service: Stub) -> None:
    """What the service refuses and a job that fails are the client's errors."""
    failed = job("failed", error={"type": "t", "title": "t", "detail": "out of memory"})
    service.on("GET", f"/v1/jobs/{JOB_ID}", Reply(200, failed))
    with pytest.raises(darkroom.JobFailedError, match="out of memory"):
        remote_decode("x", LATENTS)
    service.on("POST", "/v1/jobs", Reply(422, problem(422)))
    with pytest.raises(darkroom.InvalidRequestError):
        remote_encode("x", LATENTS)


@pytest.mark.parametrize(
    ("factors", "query"),
    [
        ((), {"scaling": "none"}),
        ((0.5,), {"scaling_factor": "0.5"}),
        ((0.5, 2.0), {"scaling_factor": "0.5", "shift_factor": "2.0"}),
    ],
)
def test_encoding(service: Stub, factors: tuple[float, ...], query: dict[str, str]) -> None:
    """A picture goes as PNG, and is scaled only by factors that are given."""
    give_tensor(service, LATENTS, "latents")
    image = Image.new("RGB", (3, 2), (9, 9, 9))
    made = remote_encode("x", image, *factors)
    assert torch.equal(made, torch.as_tensor(LATENTS))
    seen = submission(service)
    sent = {name: values[0] for name, values in seen.query.items()}
    assert sent == {"vae": "x", "task": "encode", **query}
    assert seen.headers["content-type"] == "image/png"
    assert isinstance(remote_encode("x", np.zeros((1, 3, 8, 8), np.float32)), np.ndarray)


def test_config_reads_as_in_diffusers(service: Stub) -> None:
    """Attributes, items and `get`; nothing can be changed; defaults of the class are there."""
    give_vae(service)
    vae = RemoteVAE("x")
    assert vae.config.scaling_factor == vae.config["scaling_factor"] == 0.5
    assert vae.config.get("none") is None
    assert vae.config.latents_mean is None  # a default that old files do not have
    assert not hasattr(vae.config, "none")
    assert vae.block_out_channels == [1, 2, 3, 4]
    with pytest.raises(TypeError):
        vae.config.scaling_factor = 1.0
    with pytest.raises(TypeError):
        vae.config["scaling_factor"] = 1.0
    with pytest.raises(AttributeError, match="weights"):
        _ = vae.post_quant_conv
    assert not hasattr(vae, "bn")


def test_config_of_the_caller(service: Stub) -> None:
    """A configuration and statistics that are given count before all others."""
    give_vae(service, "ltx-video", config=KL, buffers={"latents_mean": [1], "latents_std": [1]})
    vae = RemoteVAE("x", config={"scaling_factor": 7.0}, buffers={"latents_mean": [3.0]})
    assert vae.config == {"scaling_factor": 7.0}
    assert (vae.latents_mean.tolist(), vae.latents_std.tolist()) == ([3.0], [1])


def test_config_from_the_hub(
    service: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the service does not know, the hub's file of the same revision says."""
    give_vae(service, config=None, subfolder="vae", revision="abc")
    (tmp_path / "config.json").write_text(json.dumps(KL))
    asked: list[tuple[object, ...]] = []

    def download(repository: str, file: str, **options: str) -> str:
        asked.append((repository, file, options))
        return str(tmp_path / file)

    hub = SimpleNamespace(hf_hub_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)  # type: ignore[arg-type]
    assert RemoteVAE("x").config.scaling_factor == 0.5
    assert asked == [("owner/x", "config.json", {"subfolder": "vae", "revision": "abc"})]
    (tmp_path / "config.json").unlink()
    with pytest.raises(darkroom.VaeDetailsError, match=r"owner/x.*config\.json"):
        RemoteVAE("x")


@pytest.mark.parametrize("source", ["owner/x", "/models/x", "package:x/y"])
def test_config_that_nobody_knows(
    service: Stub, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what makes it known."""
    give_vae(service, config=None, source=source)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # type: ignore[arg-type]
    with pytest.raises(darkroom.VaeDetailsError, match="decode once"):
        RemoteVAE("x")


@pytest.mark.parametrize(("family", "name"), [("ltx-video", "latents_std"), ("flux2", "bn")])
def test_statistics_that_nobody_knows(service: Stub, family: str, name: str) -> None:
    """They are missed when the object is made, not when a picture is ready to be decoded."""
    give_vae(service, family)
    with pytest.raises(darkroom.VaeDetailsError, match=rf"{name}.*decode once"):
        RemoteVAE("x")


def test_unknown_vae(service: Stub) -> None:
    """A name that the service does not know is told at once."""
    with pytest.raises(darkroom.NotFoundError):
        RemoteVAE("x")


@pytest.mark.parametrize(
    ("listed", "given", "force_upcast", "expected"),
    [
        (None, None, False, torch.float32),
        ("bfloat16", None, False, torch.bfloat16),
        ("bfloat16", torch.float16, False, torch.float16),
        (None, "float16", False, torch.float16),
        ("float16", None, True, torch.float32),
        ("bfloat16", None, True, torch.bfloat16),
    ],
)
def test_dtype(
    service: Stub, listed: str | None, given: Any, force_upcast: bool, expected: torch.dtype
) -> None:
    """The caller's, the catalogue's or float32; never float16 for a VAE that overflows in it."""
    give_vae(service, dtype=listed, config={**KL, "force_upcast": force_upcast})
    vae = RemoteVAE("x", dtype=given)
    assert vae.dtype is expected
    assert next(vae.parameters()).dtype is expected


def test_setting_up_changes_nothing(service: Stub) -> None:
    """What pipelines call on a module can be called; only the device is noted."""
    give_vae(service)
    vae = RemoteVAE("x")
    assert vae.eval().requires_grad_(False).to(torch.float16) is vae
    for setting in ("enable_tiling", "disable_tiling", "enable_slicing", "disable_slicing"):
        getattr(vae, setting)()
    assert (vae.dtype, vae.device) == (torch.float32, torch.device("cpu"))
    assert vae.to("meta", dtype=torch.float16, non_blocking=True).device == torch.device("meta")
    assert vae.to(device=torch.device("cpu")).device == torch.device("cpu")
    assert list(vae.modules()) == [vae]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_decoding(service: Stub, dtype: torch.dtype) -> None:
    """Latents go unscaled, and what comes back has their dtype, as an object or a tuple."""
    give_vae(service)
    give_tensor(service, np.ones((1, 3, 2, 2), np.float32))
    vae = RemoteVAE("x")
    latents = torch.zeros(1, 4, 2, 2, dtype=dtype, requires_grad=True)
    made = vae.decode(latents)
    assert made.sample.dtype is dtype
    assert made[0] is made.sample
    seen = submission(service)
    assert (seen.query["scaling"], seen.query["format"]) == (["none"], ["safetensors"])
    for result in (
        vae.decode(latents, return_dict=False, generator=None),
        vae.decode(latents, False),
        vae.decode(latents, None, return_dict=False),
    ):
        assert type(result) is tuple
        assert torch.equal(result[0], made.sample)


def test_timesteps(service: Stub) -> None:
    """The service decodes with the timestep 0: another one is refused, not ignored."""
    give_vae(service)
    give_tensor(service, np.ones((1, 3, 2, 2), np.float32))
    vae = RemoteVAE("x")
    vae.decode(torch.as_tensor(LATENTS), torch.zeros(1), return_dict=False)
    with pytest.raises(darkroom.LatentsError, match="decode_timestep"):
        vae.decode(torch.as_tensor(LATENTS), torch.tensor([0.05]), return_dict=False)


def test_timeout(service: Stub) -> None:
    """The time to wait for a job's end is the caller's."""
    give_vae(service)
    service.on("GET", f"/v1/jobs/{JOB_ID}", Reply(200, job("running")))
    with Client(service.url) as client, pytest.raises(darkroom.WaitTimeoutError):
        RemoteVAE("x", client, timeout=0).decode(torch.as_tensor(LATENTS))


@pytest.mark.parametrize(
    ("class_name", "attribute"), [("AutoencoderTiny", "latents"), ("AutoencoderDC", "latent")]
)
def test_encoders_without_a_distribution(service: Stub, class_name: str, attribute: str) -> None:
    """What `encode` gives has the attribute of its class, and no other."""
    give_vae(service, config={"_class_name": class_name})
    give_tensor(service, LATENTS, "latents")
    vae = RemoteVAE("x")
    made = vae.encode(torch.zeros(1, 3, 8, 8))
    assert torch.equal(getattr(made, attribute), torch.as_tensor(LATENTS))
    assert not hasattr(made, "latent_dist")
    assert type(vae.encode(torch.zeros(1, 3, 8, 8), return_dict=False)) is tuple


def local_draws(generator: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """What a pipeline draws next, after diffusers' own distribution was sampled."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    count, channels, *rest = shape
    DiagonalGaussianDistribution(torch.zeros(count, 2 * channels, *rest)).sample(generator)
    return following(generator)


def following(generator: Any) -> torch.Tensor:
    """What is drawn next."""
    several = generator if isinstance(generator, list) else [generator]
    return torch.cat([torch.randn(3, generator=one) for one in several])


@pytest.mark.parametrize("seeds", [None, 5, [1, 2]], ids=str)
def test_sampling_leaves_the_seed_in_step(service: Stub, seeds: Any) -> None:
    """Sampling gives the mode, and what is drawn next is what it would be with a local VAE."""
    give_vae(service)
    give_tensor(service, LATENTS.repeat(2, 0), "latents")

    def generator() -> Any:
        torch.manual_seed(0)
        if isinstance(seeds, list):
            return [torch.Generator().manual_seed(seed) for seed in seeds]
        return None if seeds is None else torch.Generator().manual_seed(seeds)

    encoded = RemoteVAE("x").encode(torch.zeros(2, 3, 8, 8)).latent_dist
    expected, used = local_draws(generator(), (2, 4, 2, 2)), generator()
    assert torch.equal(encoded.sample(used), encoded.mode())
    assert torch.equal(following(used), expected)


@pytest.mark.parametrize(
    ("family", "given", "sent", "answered", "expected"),
    [
        ("qwen-image", (1, 16, 1, 2, 4), (1, 16, 1, 2, 4), (1, 3, 16, 32), (1, 3, 1, 16, 32)),
        ("cogvideox", (1, 16, 3, 2, 4), (1, 3, 16, 2, 4), (1, 3, 9, 16, 32), (1, 3, 9, 16, 32)),
    ],
)
def test_layouts_of_decoding(
    service: Stub,
    family: str,
    given: tuple[int, ...],
    sent: tuple[int, ...],
    answered: tuple[int, ...],
    expected: tuple[int, ...],
) -> None:
    """Latents are sent in a layout that the family cannot mistake, and answered in the VAE's."""
    give_vae(service, family)
    give_tensor(service, np.zeros(answered, np.float32))
    assert RemoteVAE("x").decode(torch.zeros(given)).sample.shape == expected
    assert submission(service).query["shape"] == [str(length) for length in sent]


@pytest.mark.parametrize(
    ("family", "given", "sent", "answered", "expected"),
    [
        ("qwen-image", (1, 3, 1, 16, 32), (1, 3, 16, 32), (1, 16, 2, 4), (1, 16, 1, 2, 4)),
        ("cogvideox", (1, 3, 9, 16, 32), (1, 3, 9, 16, 32), (1, 3, 16, 2, 4), (1, 16, 3, 2, 4)),
    ],
)
def test_layouts_of_encoding(
    service: Stub,
    family: str,
    given: tuple[int, ...],
    sent: tuple[int, ...],
    answered: tuple[int, ...],
    expected: tuple[int, ...],
) -> None:
    """The same the other way round."""
    give_vae(service, family)
    give_tensor(service, np.zeros(answered, np.float32), "latents")
    assert RemoteVAE("x").encode(torch.zeros(given)).latent_dist.mode().shape == expected
    assert submission(service).query["shape"] == [str(length) for length in sent]


def test_compression_ratios(service: Stub) -> None:
    """Ratios come from the catalogue, else from the configuration, else an error says so."""
    config: Mapping[str, Any] = {"temporal_compression_ratio": 4}
    give_vae(service, config=config, spatial_factor=16)
    vae = RemoteVAE("x")
    assert (vae.spatial_compression_ratio, vae.temporal_compression_ratio) == (16, 4)
    give_vae(service, config=config)
    with pytest.raises(darkroom.VaeDetailsError, match="spatial_compression_ratio"):
        _ = RemoteVAE("x").spatial_compression_ratio


def test_without_torch(service: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch there are no pipelines, and the error says what is missing."""
    give_vae(service)
    absent: ModuleType | None = None
    monkeypatch.setitem(sys.modules, "torch", absent)  # type: ignore[arg-type]
    with pytest.raises(darkroom.ResultTypeError, match="torch"):
        RemoteVAE("x")

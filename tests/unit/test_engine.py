"""The engine, the cache and loading, with small real VAEs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from darkroom_infra.catalog import VaeEntry
from darkroom_infra.families import LatentsError
from darkroom_wire.jobs import JobOptions
from darkroom_worker import decoding
from darkroom_worker.cache import VaeCache
from darkroom_worker.engine import (
    AbandonedError,
    DecodeRequest,
    Engine,
    OutOfMemoryError,
    Pulse,
)
from darkroom_worker.loading import LoadedVae, VaeFiles, VaeLoadError, load, locate
from tests.vaes import make_kl, make_tiny

CPU = torch.device("cpu")
SECONDS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a VAE."""
    path = tmp_path_factory.mktemp("tiny")
    make_tiny().save_pretrained(path)
    return path


def entry_for(folder: Path, name: str = "tiny", **fields: str) -> VaeEntry:
    """Make a catalogue entry."""
    return VaeEntry(**{"name": name, "family": "sd", "source": str(folder), **fields})


def load_on_cpu(entry: VaeEntry, files: VaeFiles) -> LoadedVae:
    """Load with the VAE's own dtype."""
    return load(entry, files, device=CPU, dtype="auto")


def make_cache(available: Callable[[], int] = lambda: 1 << 50) -> VaeCache:
    """Make a cache on a machine with so much free memory."""
    return VaeCache(locate, load_on_cpu, available)


def request_for(entry: VaeEntry, *shape: int, **options: float) -> DecodeRequest:
    """Make a request for random latents."""
    latents = torch.randn(*(shape or (1, 4, 8, 8)))
    return DecodeRequest(entry, latents, JobOptions(vae=entry.name, **options), as_pixels=True)


def test_the_least_recently_used_leaves_under_pressure(folder: Path) -> None:
    """Where memory is short, the VAE that was not used for longest makes room, and only it."""
    entries = [entry_for(folder, name) for name in ("a", "b", "c")]
    size = locate(entries[0]).nbytes
    cache = make_cache(lambda: (2 - len(cache.held())) * 2 * size)
    cache.get(entries[0])
    cache.get(entries[1])
    cache.get(entries[0])
    cache.get(entries[2])
    assert list(cache.held()) == ["a", "c"]


def test_a_vae_is_loaded_once(folder: Path) -> None:
    """A VAE that is held is not loaded again."""
    cache = make_cache()
    assert cache.get(entry_for(folder)) is cache.get(entry_for(folder))


def test_short_memory_halves_the_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that does not fit is decoded in parts; the pictures come all the same.

    Running out of a device's memory cannot be provoked on every machine, so the model raises what
    torch raises.
    """
    whole = decoding.decode

    def decode(vae: LoadedVae, latents: torch.Tensor) -> torch.Tensor:
        if len(latents) > 2:
            raise torch.OutOfMemoryError("too small")
        return whole(vae, latents)

    monkeypatch.setattr(decoding, "decode", decode)
    engine = Engine(make_cache())
    entry = entry_for(folder)
    busy, *others = [request_for(entry, 2, 4, 32, 32)] + [request_for(entry) for _ in range(5)]
    too_large = request_for(entry, 3, 4, 8, 8)
    for request in (busy, *others, too_large):
        engine.submit(request)
    assert all(len(request.future.result(SECONDS).tensor) == 1 for request in others)
    assert all(request.future.result(SECONDS).batch_size <= 2 for request in others)
    with pytest.raises(OutOfMemoryError):
        too_large.future.result(SECONDS)


def test_only_equal_requests_are_joined(folder: Path) -> None:
    """Another shape, dtype, scaling or VAE is another batch."""
    entry = entry_for(folder)
    first = request_for(entry)
    assert request_for(entry, 3, 4, 8, 8).key == first.key
    different = [
        request_for(entry, 1, 4, 8, 9),
        request_for(entry, scaling_factor=2.0),
        request_for(entry_for(folder, "other")),
    ]
    assert all(request.key != first.key for request in different)


def test_an_abandoned_decode_stops(folder: Path) -> None:
    """A decode for which nobody waits ends at the next layer, and the engine goes on."""
    engine = Engine(make_cache())
    request = request_for(entry_for(folder), 1, 4, 64, 64)
    request.abandoned = True
    engine.submit(request)
    with pytest.raises(AbandonedError):
        request.future.result(SECONDS)
    following = request_for(entry_for(folder))
    engine.submit(following)
    assert following.future.result(SECONDS).batch_size == 1


def test_a_vae_that_was_loaded_again_is_watched(folder: Path) -> None:
    """Progress is felt in every VAE, also in one that left the memory and came back."""
    cache = make_cache()
    engine = Engine(cache)
    for name in ("a", "b", "a", "b"):
        count = engine.pulse.count
        request = request_for(entry_for(folder, name))
        engine.submit(request)
        request.future.result(SECONDS)
        assert engine.pulse.count > count + 10, "one beat for each layer"
        assert 0.9 < request.progress < 1
        cache.keep_only("none")


def test_wrong_latents_fail_the_request_alone(folder: Path) -> None:
    """What the VAE's own configuration refuses is named, and the engine goes on."""
    engine = Engine(make_cache())
    wrong, right = request_for(entry_for(folder), 1, 5, 8, 8), request_for(entry_for(folder))
    engine.submit(wrong)
    engine.submit(right)
    with pytest.raises(LatentsError, match="4 channels"):
        wrong.future.result(SECONDS)
    assert right.future.result(SECONDS).tensor.shape == (1, 64, 64, 3)


def test_the_pulse_follows_progress() -> None:
    """A lease is renewed after a step, or while none can be expected, and not otherwise."""
    now = 0.0
    pulse = Pulse(lambda: now)
    count = pulse.count
    assert not pulse.moved_since(count)
    pulse.beat()
    assert pulse.moved_since(count)
    count = pulse.count
    with pulse.patience(10):
        assert pulse.moved_since(count)
        now = 11.0
        assert not pulse.moved_since(count)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A source that is not there fails with its path."""
    with pytest.raises(VaeLoadError, match="nowhere does not exist"):
        locate(entry_for(tmp_path / "nowhere"))


def test_pickled_weights_are_not_loaded(folder: Path, tmp_path: Path) -> None:
    """A folder that holds only other weights than safetensors is refused."""
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(VaeLoadError, match="only safetensors weights"):
        locate(entry_for(tmp_path))


def copy_with_config(folder: Path, target: Path, **changes: object) -> VaeEntry:
    """Copy a VAE, with another configuration."""
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    weights = "diffusion_pytorch_model.safetensors"
    (target / weights).write_bytes((folder / weights).read_bytes())
    return entry_for(target)


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder_block_out_channels": [32, 32, 32, 32]},
        {"num_decoder_blocks": [3, 3, 3, 2]},
        {"num_decoder_blocks": [3, 3, 2, 1]},
        {"_class_name": "AutoTokenizer"},
        {"_class_name": "os.system"},
        {"latent_channels": None},
    ],
    ids=str,
)
def test_weights_must_fit_the_configuration(
    folder: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    """Weights of another shape, missing or left over, or a class that is no VAE, are refused."""
    entry = copy_with_config(folder, tmp_path, **changes)
    with pytest.raises(VaeLoadError, match=r"VAE tiny"):
        load_on_cpu(entry, locate(entry))


def test_corrupt_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    """A file that was cut off is an error of the VAE, not of the worker."""
    entry = copy_with_config(folder, tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(VaeLoadError):
        load_on_cpu(entry, locate(entry))


def test_force_upcast_leaves_float16(tmp_path: Path) -> None:
    """A VAE that overflows in float16 runs in float32, as in its pipeline."""
    vae = make_kl(4, force_upcast=True)
    vae.save_pretrained(tmp_path / "upcast")
    entry = entry_for(tmp_path / "upcast", dtype="float16")
    assert load_on_cpu(entry, locate(entry)).dtype == "float32"
    vae.register_to_config(force_upcast=False)
    vae.save_pretrained(tmp_path / "plain")
    entry = entry_for(tmp_path / "plain", dtype="float16")
    assert load_on_cpu(entry, locate(entry)).dtype == "float16"


def test_the_dtype_is_the_weights_own(tmp_path: Path) -> None:
    """Without a dtype in the catalogue, weights run in the dtype in which they are stored."""
    make_tiny().to(torch.bfloat16).save_pretrained(tmp_path)
    entry = entry_for(tmp_path)
    assert load_on_cpu(entry, locate(entry)).dtype == "bfloat16"

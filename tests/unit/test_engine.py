"""The engine, the cache and loading, with small real VAEs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom_infra.catalog import VaeEntry
from darkroom_infra.families import LatentsError
from darkroom_infra.records import Rendering
from darkroom_wire.jobs import JobOptions
from darkroom_worker import decoding
from darkroom_worker.batching import Batching
from darkroom_worker.cache import VaeCache
from darkroom_worker.engine import Engine
from darkroom_worker.loading import LoadedVae, VaeFiles, VaeLoadError, load, locate
from darkroom_worker.planning import DoesNotFitError
from darkroom_worker.requests import AbandonedError, DeviceRequest, OutOfMemoryError
from darkroom_worker.turns import Pulse
from tests.conftest import eventually
from tests.pipelines import CASES
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


def request_for(entry: VaeEntry, *shape: int, **options: float) -> DeviceRequest:
    """Make a request for random latents."""
    latents = torch.randn(*(shape or (1, 4, 8, 8)))
    return DeviceRequest(
        entry, latents, JobOptions(vae=entry.name, **options), rendering=Rendering.PIXELS
    )


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

    def decode(vae: LoadedVae, latents: torch.Tensor, *rest: Any) -> Any:
        if len(latents) > 2:
            raise torch.OutOfMemoryError("too small")
        return whole(vae, latents, *rest)

    monkeypatch.setattr(decoding, "decode", decode)
    engine = Engine(make_cache(), batching=Batching(first=8))
    entry = entry_for(folder)
    busy, *others = [request_for(entry, 2, 4, 32, 32)] + [request_for(entry) for _ in range(5)]
    too_large = request_for(entry, 3, 4, 8, 8)
    for request in (busy, *others, too_large):
        engine.submit(request)
    assert all(len(request.future.result(SECONDS).tensor) == 1 for request in others)
    assert all(request.future.result(SECONDS).way["batch_size"] <= 2 for request in others)
    with pytest.raises(OutOfMemoryError):
        too_large.future.result(SECONDS)


def decode_after(
    engine: Engine, holding: DeviceRequest, *waiting: DeviceRequest
) -> Callable[[], None]:
    """Have requests wait behind one whose VAE cannot be had before the function is called."""
    go_on, get = threading.Event(), engine._cache.get

    def wait_and_get(entry: VaeEntry) -> LoadedVae:
        go_on.wait(SECONDS)
        return get(entry)

    engine._cache.get = wait_and_get  # type: ignore[method-assign]
    engine.submit(holding)
    assert eventually(engine._turns.under_way)
    for request in waiting:
        engine.submit(request)
    return go_on.set


def test_requests_are_decoded_side_by_side(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU two that wait are decoded at the same time, each with half of the cores."""
    whole, meeting, cores = decoding.decode, threading.Barrier(2), list[int]()

    def decode(vae: LoadedVae, latents: torch.Tensor, *rest: Any) -> Any:
        if latents.shape[-1] == 9:
            meeting.wait(SECONDS)
            cores.append(torch.get_num_threads())
        return whole(vae, latents, *rest)

    monkeypatch.setattr(decoding, "decode", decode)
    engine, entry = Engine(make_cache(), lanes=2), entry_for(folder)
    pair = [request_for(entry, 1, 4, 8, 9) for _ in range(2)]
    decode_after(engine, request_for(entry), *pair)()
    pictures = [request.future.result(SECONDS).tensor for request in pair]
    assert cores == [max(1, torch.get_num_threads() // 2)] * 2
    monkeypatch.undo()
    for before, picture in zip(pair, pictures, strict=True):
        request = DeviceRequest(entry, before.tensor, before.options, before.rendering)
        engine.submit(request)
        difference = request.future.result(SECONDS).tensor.int() - picture.int()
        assert difference.abs().max() <= 1, "the number of threads may round otherwise"


def test_what_does_not_fit_beside_another_is_decoded_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decodes side by side share the memory; one that needs all of it gets it afterwards."""
    whole, budgets = decoding.decode, list[int]()

    def decode(
        vae: LoadedVae, latents: torch.Tensor, options: JobOptions, means: decoding.Means
    ) -> Any:
        budgets.append(means.budget)
        if means.budget < 1 << 30:
            raise DoesNotFitError("needs 1 GiB")
        return whole(vae, latents, options, means)

    monkeypatch.setattr(decoding, "decode", decode)
    engine, entry = Engine(make_cache(), memory_budget=1 << 30, lanes=2), entry_for(folder)
    pair = [request_for(entry, 1, 4, 8, 9) for _ in range(2)]
    decode_after(engine, request_for(entry), *pair)()
    assert all(request.future.result(SECONDS).tensor.shape == (1, 64, 72, 3) for request in pair)
    assert min(budgets) == 1 << 29
    assert budgets.count(1 << 30) == 3


def test_decoders_that_keep_frames_are_never_used_twice_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen-Image's pictures go through a decoder of videos, which has attributes for frames."""
    whole, lock = decoding.decode, threading.Lock()

    def decode(*arguments: Any) -> Any:
        assert lock.acquire(blocking=False)
        try:
            return whole(*arguments)
        finally:
            lock.release()

    monkeypatch.setattr(decoding, "decode", decode)
    CASES["qwen-image"].make_vae().save_pretrained(tmp_path)
    entry = VaeEntry(name="qwen", family="qwen-image", source=str(tmp_path))
    engine = Engine(make_cache(), lanes=2)
    three = [request_for(entry, 1, 16, 1, 4, 4) for _ in range(3)]
    decode_after(engine, *three)()
    assert all(request.future.result(SECONDS).tensor.shape[-1] == 3 for request in three)
    assert any(request.undivided for request in three)


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
    assert following.future.result(SECONDS).way["batch_size"] == 1


def test_a_vae_that_was_loaded_again_is_watched(folder: Path) -> None:
    """Progress is felt in every VAE, also in one that left the memory and came back."""
    cache = make_cache()
    engine = Engine(cache)
    for name in ("a", "b", "a", "b"):
        beats = count_beats(engine)
        request = request_for(entry_for(folder, name))
        engine.submit(request)
        request.future.result(SECONDS)
        assert len(beats) > 10, "one beat for each layer"
        assert 0.9 < request.progress < 1
        cache.keep_only("none")


def count_beats(engine: Engine) -> list[None]:
    """Collect the beats of an engine's pulse from now on."""
    beats: list[None] = []
    engine.pulse.beat = lambda: beats.append(None)  # type: ignore[method-assign]
    return beats


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
    """The time since the last step is what tells work from standstill."""
    now = 0.0
    pulse = Pulse(lambda: now)
    now = 5.0
    assert pulse.still_for() == 5
    pulse.beat()
    assert pulse.still_for() == 0


def test_a_hanging_decode_is_overdue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a batch keeps the device longer than it may, the engine says so, and not otherwise."""
    hanging, go_on = threading.Event(), threading.Event()
    whole = decoding.decode

    def decode(*arguments: Any) -> Any:
        hanging.set()
        go_on.wait(SECONDS)
        return whole(*arguments)

    monkeypatch.setattr(decoding, "decode", decode)
    engine = Engine(make_cache())
    assert engine.overdue(0.0) is None
    request = request_for(entry_for(folder))
    engine.submit(request)
    assert hanging.wait(SECONDS)
    assert request.started.is_set()
    assert "kept the device" in (engine.overdue(0.0) or "")
    assert engine.overdue(1000.0) is None
    monkeypatch.setattr(Pulse, "still_for", lambda _: 1000.0)
    assert "no step" in (engine.overdue(1000.0) or "")
    go_on.set()
    request.future.result(SECONDS)
    assert eventually(lambda: engine.overdue(0.0) is None)


def test_a_request_may_be_alone(folder: Path) -> None:
    """What failed before is decoded without others, which shall not fail with it."""
    entry = entry_for(folder)
    first, second = request_for(entry), request_for(entry)
    assert first.key == second.key
    first.alone = True
    assert first.key != second.key


def test_alone_means_that_nobody_else_has_work_at_stake(folder: Path) -> None:
    """What the device began before is over first: a process that dies would take it along."""
    entry, engine = entry_for(folder), Engine(make_cache())
    before, suspect, after = (request_for(entry, 1, 4, 8, width) for width in (8, 8, 9))
    suspect.alone = True
    for request in (before, suspect, after):
        engine.submit(request)
    before.future.result(SECONDS)
    assert not suspect.started.wait(0.2)
    assert not after.started.is_set()
    before.over.set()
    suspect.future.result(SECONDS)
    after.future.result(SECONDS)


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


def test_large_pictures_are_decoded_in_bands(tmp_path: Path) -> None:
    """From some size on a CPU decodes in bands: the same picture, the way told, progress felt."""
    vae = make_kl(4, widths=(32, 32, 32, 32))
    vae.save_pretrained(tmp_path)
    entry = entry_for(tmp_path, dtype="float32")
    latents = torch.randn(1, 4, 64, 72)
    engine = Engine(make_cache())
    request = DeviceRequest(entry, latents, JobOptions(vae="tiny", scaling="none"))
    engine.submit(request)
    result = request.future.result(SECONDS)
    with torch.inference_mode():
        expected = vae.decode(latents).sample
    assert result.way["method"] == "exact-banded"
    assert (result.tensor - expected).abs().max() < 1e-4
    assert 0.9 < request.progress < 1


def test_a_picture_that_does_not_fit_whole_is_decoded_in_bands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a decode in one piece runs out of memory, bands save the job."""
    make_kl(4).save_pretrained(tmp_path)
    entry = entry_for(tmp_path, dtype="float32")
    whole = decoding.decode

    def decode(*arguments: Any) -> Any:
        if not arguments[3].scarce:
            raise torch.OutOfMemoryError("too small")
        return whole(*arguments)

    monkeypatch.setattr(decoding, "decode", decode)
    engine = Engine(make_cache())
    request = request_for(entry)
    engine.submit(request)
    assert request.future.result(SECONDS).way["method"] == "exact-banded"


def test_what_fits_in_no_way_is_refused_before_it_is_tried(tmp_path: Path) -> None:
    """A picture for which not even bands have room fails with the figures, and kills nothing."""
    make_kl(4).save_pretrained(tmp_path)
    entry = entry_for(tmp_path, dtype="float32")
    engine = Engine(make_cache(lambda: 1 << 22))
    request = request_for(entry, 1, 4, 128, 128)
    engine.submit(request)
    with pytest.raises(OutOfMemoryError, match="do not fit"):
        request.future.result(SECONDS)

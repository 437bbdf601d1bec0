"""The GPU benchmark: it runs from start to end, and measures nothing where pictures are wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.__main__ as suite
from bench import floors, gpu, gpu_check, gpu_table, gpu_ways
from bench.accelerator import Accelerator
from bench.environment import environment
from bench.gpu_ways import PEERS, WHOLE, graphed
from bench.subjects import QUICK, Subject
from darkroom_worker.banded import BandedDecoder, Mode

SMALL = replace(QUICK, subjects=QUICK.subjects[:1], dtypes=[torch.bfloat16])


def test_it_runs_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything but the service is measured with little work, and each way has its row."""
    monkeypatch.setattr(gpu, "QUICK", SMALL)
    gpu.main(["--quick", "--device", "cpu", "--no-service"])
    printed = capsys.readouterr().out
    ours = [f"bands, `{mode}`" for mode in ("fast", "balanced", "small")]
    others = ["bands, `fast`, without kernels", "bands, `balanced`, as a graph"]
    for way in (*PEERS, *ours, *others):
        assert f"| {way} |" in printed
    assert "of the arithmetic floor" in printed
    assert "no dtype" in printed  # Triton computes nothing on a CPU
    assert not gpu.RESULT.exists()


def test_wrong_pictures_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that is a little off ends the program, which names the dtype and the mode."""
    decode = BandedDecoder.decode

    def off(self: BandedDecoder, *arguments: Any) -> torch.Tensor:
        return decode(self, *arguments) + 0.05

    monkeypatch.setattr(gpu, "QUICK", SMALL)
    monkeypatch.setattr(BandedDecoder, "decode", off)
    with pytest.raises(SystemExit, match=r"bfloat16, 8 x 8, small, plain: .* instead of at most"):
        gpu.main(["--quick", "--device", "cpu", "--no-service"])


def test_what_is_not_recorded_is_not_called_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a GPU cannot record a decode, there is no figure of it under that name."""

    def record(*_: object) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(gpu_ways, "_record", record)
    subject, device = SMALL.subjects[0], torch.device("cpu")
    way = graphed(BandedDecoder(subject.vae(torch.float32, device)), Mode.FAST)
    z = subject.latents(64, torch.float32, device)
    found = gpu._measure(way, z, Accelerator(device))
    assert found == {"failed": "could not be recorded"}


def test_not_a_number_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture without numbers has no distance that could be too large."""
    monkeypatch.setattr(BandedDecoder, "decode", lambda self, z, *_: torch.full((1,), torch.nan))
    with pytest.raises(gpu_check.WrongPicturesError, match="nan"):
        gpu_check.check(SMALL, torch.device("cpu"))


def test_full_size_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """A CPU is only for a try."""
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])
    assert "--quick" in capsys.readouterr().err


def test_the_work_of_stable_diffusions_decoder_is_known() -> None:
    """2.48 TFLOP for 512 x 512 pixels as diffusers computes, 2.09 with merged convolutions."""
    meta = torch.device("meta")
    subject = Subject("SD", 4, (128, 256, 512, 512))
    work = floors.count(
        subject.vae(torch.bfloat16, meta), subject.latents(512, torch.bfloat16, meta)
    )
    assert work.whole_flops == pytest.approx(2.48e12, rel=0.02)
    assert work.flops == pytest.approx(2.09e12, rel=0.02)
    assert work.milliseconds({"bfloat16": 1000, "copy": 2}, "bfloat16") == {
        "arithmetic": pytest.approx(work.flops / 1e12),
        "memory": pytest.approx(work.bytes / 2e9),
    }


@pytest.fixture
def result() -> dict[str, Any]:
    """Figures of a card on which some ways did not fit."""
    spread = {"p50": 2.0, "least": 1.0, "most": 3.0}
    found = {
        "milliseconds": spread,
        "host_milliseconds": 1.0,
        "bytes": 4_000_000,
        "predicted_bytes": 5_000_000,
    }
    row = {
        "subject": "SD",
        "dtype": "float16",
        "size": 512,
        "work": {"flops": 1e12, "whole_flops": 2e12, "bytes": 1e9},
        "floor_milliseconds": {"arithmetic": 1.0, "memory": 0.5},
        "ways": {WHOLE: {"failed": "out of memory"}, "fast": found},
    }
    return {
        "card": {"name": "A card"},
        "rates": {"float16": 100.0, "copy": 1.0},
        "kernels": {"float16": True},
        "checked": [],
        "decodes": [row],
        "bands": {**row, "working_bytes": {"1048576": {"fast": {"failed": "out of memory"}}}},
        "batches": {**row, "ways": {"fast": {"1": found}}},
        "profiles": {
            **row,
            "ways": {
                "fast": {
                    "busy_milliseconds": 2.0,
                    "parts": [{"name": "convolution", "milliseconds": 1.5, "count": 60}],
                }
            },
        },
        "service": {"failed": "StartError: no servers"},
    }


def test_what_failed_is_told(result: dict[str, Any]) -> None:
    """A way that needs more memory than there is has a row that says so, and the others theirs."""
    printed = gpu_table.table(result)
    assert f"| {WHOLE} | out of memory |" in printed
    assert (
        "| bands, `fast` | 2.00 (1.00 to 3.00) |  | 4 MB |  | 1.25 | 50% | 25% | 1.0 |" in printed
    )
    assert "StartError: no servers" in printed
    assert "| bands, `fast` | `convolution` | 60 | 1.50 | 75% |" in printed


def test_the_page_takes_the_figures(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m bench --write-docs` puts the tables of a GPU's figures between their marks."""
    text = json.dumps({"environment": environment(), **result})
    (tmp_path / "gpu.json").write_text(text)
    page = tmp_path / "performance.md"
    page.write_text(suite.PAGE.read_text())
    monkeypatch.setattr(suite, "RESULTS", tmp_path)
    monkeypatch.setattr(suite, "PAGE", page)
    suite.write_docs()
    marked = page.read_text().split("<!-- generated: gpu -->")[1].split("<!-- end: gpu -->")[0]
    assert gpu_table.table(result) in marked

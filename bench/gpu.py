"""Decoding on a GPU: `python -m bench.gpu [--quick] [--device DEVICE] [--no-service]`.

First the pictures are checked: ours may be no further from a float32 reference than diffusers' own
in half precision. Else nothing is measured. Then come the time and memory of diffusers'
ways and ours beside the floors of the work on this card, other bands, batches, what the card is
busy with, and a whole service.
`torch.compile` takes most of a minute for each size, so it comes last, while there is time: all of
it is to take ten minutes. Writes bench/results/gpu.json, for `python -m bench --write-docs`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvloop
from torch import Tensor

from darkroom_infra.embedded.supervisor import StartError
from darkroom_worker.banded import BandedDecoder, Mode, fused, memory

from . import floors, throughput, vaes
from .accelerator import Accelerator, name
from .contenders import darkroom
from .environment import environment
from .gpu_check import WrongPicturesError, check
from .gpu_profile import profile
from .gpu_table import table
from .gpu_ways import COMPILED, GRAPH, WHOLE, Way, banded, graphed, title, ways, whole
from .installation import installed
from .statistics import Spread
from .subjects import FULL, QUICK, Scope, Subject

RESULT = Path(__file__).parent / "results" / "gpu.json"

LIMIT_SECONDS = 540.0
"""After so long nothing is compiled any more: that leaves a minute for what has begun."""

COMPILE_SECONDS = 60.0
"""What one compilation may take."""

ENOUGH_MILLISECONDS = 500.0
"""One way at one size is repeated for about so long, at least 3 and at most 20 times."""

WARM_UP = 3
"""How often it runs before: kernels are compiled at first, graphs recorded at the second time."""


def run(
    *,
    quick: bool,
    device: str = "cuda",
    service: bool = True,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Check, then measure.

    Raises:
        WrongPicturesError: a picture is further from the reference than it may be.
    """
    began = time.monotonic()
    accelerator = Accelerator(torch.device(device))
    scope = QUICK if quick else FULL
    report("checking pictures")
    checked = check(scope, accelerator.device)
    result: dict[str, Any] = {
        "card": accelerator.describe(),
        "rates": accelerator.rates(scope.dtypes, quick=quick),
        "kernels": {
            name(dtype): fused.is_used(accelerator.device, dtype) for dtype in scope.dtypes
        },
        "checked": checked,
        "decodes": [],
    }
    for subject in scope.subjects:
        for dtype in scope.dtypes:
            report(f"measuring {subject.name} in {name(dtype)}")
            result["decodes"] += _decodes(subject, dtype, scope, accelerator, result["rates"])
    subject, dtype = scope.subjects[0], scope.dtypes[0]
    result["bands"] = _bands(subject, dtype, scope, accelerator)
    result["batches"] = _batches(subject, dtype, scope, accelerator)
    result["profiles"] = _profiles(subject, dtype, scope, accelerator)
    if service:
        report("measuring a service")
        result["service"] = _service(scope, device, name(dtype))
    if accelerator.is_cuda:
        report("compiling")
        _add_compiled(result, scope, accelerator, began + LIMIT_SECONDS - COMPILE_SECONDS)
    result["seconds"] = round(time.monotonic() - began)
    return result


def _decodes(
    subject: Subject,
    dtype: torch.dtype,
    scope: Scope,
    accelerator: Accelerator,
    rates: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Measure all ways but the compiled one at all sizes."""
    device = accelerator.device
    compared = ways(partial(subject.vae, dtype, device))
    meta = torch.device("meta")
    counted = subject.vae(dtype, meta)
    rows = []
    for size in scope.sizes:
        work = floors.count(counted, subject.latents(size, dtype, meta))
        z = subject.latents(size, dtype, device)
        rows.append(
            {
                "subject": subject.name,
                "dtype": name(dtype),
                "size": size,
                "work": work.json(),
                "floor_milliseconds": work.milliseconds(rates, name(dtype)),
                "ways": {title: _measure(way, z, accelerator) for title, way in compared.items()},
            }
        )
    return rows


@torch.inference_mode()
def _measure(way: Way, z: Tensor, accelerator: Accelerator) -> dict[str, Any]:
    """Measure one way at one size, or tell that the memory does not suffice."""
    try:
        for _ in range(WARM_UP):
            once = accelerator.time(lambda: way.decode(z)).device
        if not way.is_recorded:
            return {"failed": "could not be recorded"}
        peak = accelerator.peak_bytes(lambda: way.decode(z))
        if peak is not None:
            peak += way.kept_bytes
        count = max(3, min(20, int(ENOUGH_MILLISECONDS / once)))
        timed = [accelerator.time(lambda: way.decode(z)) for _ in range(count)]
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    finally:
        way.clear()
        _tidy(accelerator)
    return {
        "milliseconds": Spread.of([each.device for each in timed]).json(),
        "host_milliseconds": round(statistics.median(each.host for each in timed), 3),
        "bytes": peak,
        "predicted_bytes": None if way.predict is None else way.predict(tuple(z.shape)),
    }


def _tidy(accelerator: Accelerator) -> None:
    gc.collect()
    if accelerator.is_cuda:
        torch.cuda.empty_cache()


def _bands(
    subject: Subject, dtype: torch.dtype, scope: Scope, accelerator: Accelerator
) -> dict[str, Any]:
    """Measure our fastest mode with larger and smaller bands, also as a graph."""
    size = scope.sizes[len(scope.sizes) // 2]
    z = subject.latents(size, dtype, accelerator.device)
    decoder = BandedDecoder(subject.vae(dtype, accelerator.device))
    found = {}
    for working in scope.bands:
        with _working_bytes(working):
            found[str(working)] = {
                Mode.FAST.value: _measure(banded(decoder, Mode.FAST), z, accelerator),
                title(Mode.FAST, GRAPH): _measure(graphed(decoder, Mode.FAST), z, accelerator),
            }
    return {"subject": subject.name, "dtype": name(dtype), "size": size, "working_bytes": found}


@contextmanager
def _working_bytes(working: int) -> Iterator[None]:
    before = dict(memory.WORKING_BYTES)
    memory.WORKING_BYTES.update(dict.fromkeys(before, working))
    try:
        yield
    finally:
        memory.WORKING_BYTES.update(before)


def _batches(
    subject: Subject, dtype: torch.dtype, scope: Scope, accelerator: Accelerator
) -> dict[str, Any]:
    """Measure decodes of several pictures at once, of the smallest size."""
    size = scope.sizes[0]
    vae = subject.vae(dtype, accelerator.device)
    decoder = BandedDecoder(vae)
    compared = {
        WHOLE: whole(vae),
        Mode.FAST.value: banded(decoder, Mode.FAST),
        title(Mode.FAST, GRAPH): graphed(decoder, Mode.FAST),
    }
    found = {
        name_of_way: {
            str(batch): _measure(
                way, subject.latents(size, dtype, accelerator.device, batch), accelerator
            )
            for batch in scope.batches
        }
        for name_of_way, way in compared.items()
    }
    return {"subject": subject.name, "dtype": name(dtype), "size": size, "ways": found}


def _profiles(
    subject: Subject, dtype: torch.dtype, scope: Scope, accelerator: Accelerator
) -> dict[str, Any]:
    """See what the device is busy with in a decode of the middle size."""
    size = scope.sizes[len(scope.sizes) // 2]
    vae = subject.vae(dtype, accelerator.device)
    z = subject.latents(size, dtype, accelerator.device)
    compared = {WHOLE: whole(vae), Mode.FAST.value: banded(BandedDecoder(vae), Mode.FAST)}
    with torch.inference_mode():
        found = {
            name_of_way: profile(partial(way.decode, z), accelerator)
            for name_of_way, way in compared.items()
        }
    return {"subject": subject.name, "dtype": name(dtype), "size": size, "ways": found}


def _add_compiled(
    result: dict[str, Any], scope: Scope, accelerator: Accelerator, until: float
) -> None:
    """Measure `torch.compile` size by size while there is time; for each dtype on the first VAE."""
    subjects = {subject.name: subject for subject in scope.subjects}
    for row in result["decodes"]:
        if time.monotonic() > until:
            row["ways"][COMPILED] = {"failed": "not measured: no time left"}
            continue
        subject, dtype = subjects[row["subject"]], getattr(torch, row["dtype"])
        vae = subject.vae(dtype, accelerator.device).to(memory_format=torch.channels_last)
        z = subject.latents(row["size"], dtype, accelerator.device)
        torch.compiler.reset()
        try:
            compiled = Way(torch.compile(whole(vae).decode, dynamic=False))
            row["ways"][COMPILED] = _measure(compiled, z, accelerator)
        except RuntimeError as error:  # what its compilers raise, too
            row["ways"][COMPILED] = {"failed": str(error).splitlines()[0][:80]}


def _service(scope: Scope, device: str, dtype: str) -> dict[str, Any]:
    """Measure pictures a second from submission to PNG, beside a bare loop of the same decodes."""
    try:
        return uvloop.run(_rates(scope, device, dtype))
    except (StartError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        # Servers may be missing where there is a GPU. What was measured before is worth keeping.
        return {"failed": f"{type(error).__name__}: {error}"}


async def _rates(scope: Scope, device: str, dtype: str) -> dict[str, Any]:
    vae, sizes, jobs = scope.service
    found = {}
    with tempfile.TemporaryDirectory() as folder, installed() as installation:
        catalog = vaes.save(Path(folder))
        site = installation.site(0, catalog=str(catalog), device=device, dtype=dtype)
        contender = darkroom(site, vae)
        for size in sizes:
            bare = throughput.bare(catalog, vae, size, jobs, device, dtype)
            await throughput.rate(contender, size, max(1, jobs // 4))
            rates = [await throughput.rate(contender, size, jobs) for _ in range(3)]
            found[str(size)] = {"bare": bare, "service": Spread.of(rates).json()}
    return {"vae": vae, "dtype": dtype, "jobs": jobs, "per_second": found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the result unless it was quick."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little work, and nothing is written")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu with --quick")
    parser.add_argument("--no-service", action="store_true", help="only decode in this process")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cpu" and not given.quick:
        parser.error("--device cpu needs --quick: full-size decoders take hours there")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; --device cpu --quick shows that the program runs")
    words = sys.argv[1:] if arguments is None else list(arguments)
    machine = {**environment(), "command": " ".join(["python -m bench.gpu", *words])}
    try:
        result = run(quick=given.quick, device=given.device, service=not given.no_service)
    except WrongPicturesError as error:
        sys.exit(f"wrong pictures, nothing was measured:\n{error}")
    print(table(result))
    if not given.quick:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({"environment": machine, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()

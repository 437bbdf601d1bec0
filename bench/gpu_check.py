"""Whether a device's pictures are right: compared with diffusers' and with a finer reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from darkroom_worker.banded import BandedDecoder, Mode, fused

from .accelerator import name
from .gpu_ways import Way, banded, graphed
from .subjects import Scope, Subject

WORST = 1e-4
"""How far a picture in float32 may be from one in float64, where diffusers' is nearer still."""

ODD = (13, 21)
"""An odd height and width of latents: the last bands are smaller."""


class WrongPicturesError(Exception):
    """Pictures that are further from the reference than they may be. The text names each."""


def check(scope: Scope, device: torch.device) -> list[dict[str, Any]]:
    """Decode in every mode: without Triton's kernels, with them where they are used, as graphs.

    In half precision the errors of some pictures are taken together: rounding is chance, and that
    of a single picture of 64 x 64 pixels differs by a tenth from one picture to the next.

    Raises:
        WrongPicturesError: what is wrong, in all lines.
    """
    rows, wrong = [], []
    # Else float32 is rounded to ten bits before it is multiplied.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for subject in scope.subjects:
            for dtype in (torch.float32, *scope.dtypes):
                for case, made, limit in _distances(subject, dtype, scope, device):
                    row = {"case": f"{subject.name}, {name(dtype)}, {case}"}
                    rows.append({**row, "distance": made, "limit": limit})
                    if not made <= limit:  # nor is NaN right
                        wrong.append(f"{row['case']}: {made:.2e} instead of at most {limit:.2e}")
    if wrong:
        raise WrongPicturesError("\n".join(wrong))
    return rows


def _distances(
    subject: Subject, dtype: torch.dtype, scope: Scope, device: torch.device
) -> Iterator[tuple[str, float, float]]:
    """Give for each case how far it is from the reference, and how far it may be."""
    vae = subject.vae(dtype, device)
    finer = torch.float64 if dtype == torch.float32 else torch.float32
    reference = subject.vae(finer, device)
    reference.load_state_dict(vae.state_dict())  # the same weights, rounded the same
    distance = _worst if dtype == torch.float32 else _root_mean_square
    decoder = BandedDecoder(vae)
    ways: dict[str, Callable[[Mode], Way]] = {
        "plain": lambda mode: banded(decoder, mode, fused.disabled),
        "graph": lambda mode: graphed(decoder, mode),
    }
    if fused.is_used(device, dtype):
        ways["kernels"] = lambda mode: banded(decoder, mode)
    batch = scope.check_batch
    odd = torch.randn(batch, subject.channels, *ODD).to(device, dtype)
    for z in (subject.latents(scope.check_size, dtype, device, batch), odd):
        exact = _decode(reference, z.to(finer))
        limit = distance(_decode(vae, z), exact)
        if dtype == torch.float32:
            limit = max(WORST, 2 * limit)
        for mode in Mode:
            for name_of_way, make in ways.items():
                case = f"{z.shape[-2]} x {z.shape[-1]}, {mode}, {name_of_way}"
                way = make(mode)
                if name_of_way == "graph":
                    # Recorded with others: what it decodes has to be what it is given.
                    for other in (z.flip(0), z.flip(-1)):
                        way.decode(other)
                yield case, distance(way.decode(z), exact), limit
                way.clear()


def _decode(vae: AutoencoderKL, z: Tensor) -> Tensor:
    picture: Tensor = vae.decode(z, return_dict=False)[0]
    return picture


def _worst(picture: Tensor, exact: Tensor) -> float:
    return float((picture.double() - exact.double()).abs().max())


def _root_mean_square(picture: Tensor, exact: Tensor) -> float:
    return float((picture.double() - exact.double()).square().mean().sqrt())

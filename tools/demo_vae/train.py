"""Train the `demo` VAE, a small `AutoencoderTiny`, for reconstruction on a CPU."""

import argparse
import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from data import cut_held_out, fetch_packages, load_training
from diffusers import AutoencoderTiny
from reconstruction import encode, psnr

LONG_SIDES = (512, 768, 1024, 1536)
EMA_DECAY = 0.999
WARM_UP = 200


def build_model() -> AutoencoderTiny:
    """Return the untrained model.

    All full-resolution layers are linear and the decoder puts most of its blocks at 1/8 and 1/4
    of the picture's size, so that decoding stays cheap on a CPU.
    """
    return AutoencoderTiny(
        encoder_block_out_channels=(64, 64, 64, 64),
        decoder_block_out_channels=(48, 48, 48, 48),
        num_encoder_blocks=(0, 1, 3, 3),
        num_decoder_blocks=(4, 3, 1, 0),
        latent_channels=4,
        scaling_factor=1.0,
    )


def random_crops(
    photographs: Sequence[np.ndarray],
    weights: np.ndarray,
    crop: int,
    batch: int,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Cut random squares, each flipped and turned at random.

    Args:
        photographs: uint8 arrays of shape [height, width, 3].
        weights: the probability of each photograph, shape [len(photographs)].
        crop: the side of a square in pixels.
        batch: how many squares.
        rng: where the chance comes from.

    Returns:
        float32 of shape [batch, 3, crop, crop] with values in [-1, 1].
    """
    crops = []
    for index in rng.choice(len(photographs), size=batch, p=weights):
        photograph = photographs[index]
        top = rng.integers(photograph.shape[0] - crop + 1)
        left = rng.integers(photograph.shape[1] - crop + 1)
        square = photograph[top : top + crop, left : left + crop]
        square = np.rot90(square, rng.integers(4))
        crops.append(square[:, ::-1] if rng.random() < 0.5 else square)
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    return pixels.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def loss_of(model: AutoencoderTiny, x: torch.Tensor) -> torch.Tensor:
    """Root mean square error per crop, averaged, plus a light penalty on latents beyond ±2.5.

    The root keeps busy crops from drowning out smooth ones, as the logarithm does in PSNR.

    Args:
        model: the model in training.
        x: pixels of shape [batch, 3, height, width] with values in [-1, 1].
    """
    with torch.autocast("cpu", torch.bfloat16):
        latents = model.encode(x).latents
        y = model.decode(latents).sample
    rmse = (y.float() - x).square().mean(dim=(1, 2, 3)).add(1e-6).sqrt().mean()
    excess = latents.float().abs().sub(2.5).relu().square().mean()
    return rmse + 0.05 * excess


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < WARM_UP:
        return peak * (step + 1) / WARM_UP
    return peak * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP)))


def save(model: AutoencoderTiny, folder: Path) -> None:
    """Write config.json and the weights, rounded to float16, to `folder`."""
    copy.deepcopy(model).half().save_pretrained(folder)


def main() -> None:
    """Fetch the photographs, train, and write the averaged weights to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for the packages")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=250)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)

    fetch_packages(args.cache)
    photographs = load_training(args.cache, LONG_SIDES)
    weights = np.sqrt([photograph.size for photograph in photographs])
    weights /= weights.sum()
    held_out = cut_held_out(args.cache).values()

    model = build_model().to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    start = time.monotonic()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss = loss_of(model, random_crops(photographs, weights, args.crop, args.batch, rng))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)

        done = step + 1
        if done % args.save_every == 0 or done == args.steps:
            save(average, args.out)
            values = [psnr(average, encode(average, image), image) for image in held_out]
            minutes = (time.monotonic() - start) / 60
            print(
                f"step {done} loss {loss.item():.4f} held-out PSNR {np.mean(values):.2f} dB "
                f"(worst {min(values):.2f}, best {max(values):.2f}) after {minutes:.1f} min",
                flush=True,
            )


if __name__ == "__main__":
    main()

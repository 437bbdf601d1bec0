"""Cut the demo's photographs, encode them with the `demo` VAE and report how they come back.

The cut photographs go to demo/photographs as JPEG, with their credits in CREDITS.md; their
latents go to demo/latents under the same stems. A file's PSNR is measured on the JPEG's pixels,
through float16 latents and an 8-bit picture. With `--keep-photographs` the JPEG files that are
already there are encoded as they are.
"""

import argparse
import statistics
from pathlib import Path

import torch
from data import cut_held_out, fetch_packages, read_table
from diffusers import AutoencoderTiny
from PIL import Image
from reconstruction import encode, psnr
from safetensors.torch import save_file

JPEG_QUALITY = 90


def write_photographs(cache: Path, folder: Path) -> None:
    """Cut every held-out photograph and write it to `folder`, with the credits."""
    fetch_packages(cache)
    folder.mkdir(parents=True, exist_ok=True)
    for stem, image in cut_held_out(cache).items():
        image.save(folder / f"{stem}.jpg", quality=JPEG_QUALITY, optimize=True)
    (folder / "CREDITS.md").write_text(format_credits(), encoding="utf-8")


def format_credits() -> str:
    """Return the Markdown that names source, author and licence of every photograph."""
    lines = [
        "# Credits",
        "",
        "Each photograph was scaled down, cropped and saved again as JPEG; apart from that it is",
        "unchanged. Every file keeps the licence of the photograph that it was cut from. The",
        "package is from Debian 12, except scikit-learn, which is a Python package. The `demo` VAE",
        "was not trained on any of these photographs.",
        "",
        "| file | size | package | file in the package | author | licence |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for photograph in read_table():
        if photograph.size is not None:
            stem, package, file, author, licence, (width, height), _ = photograph
            lines.append(
                f"| {stem}.jpg | {width} x {height} | {package} | {file} | {author} | {licence} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write photographs, credits and latents, and print the PSNR of each photograph."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for the packages")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--photographs", type=Path, default=Path("demo/photographs"))
    parser.add_argument("--latents", type=Path, default=Path("demo/latents"))
    parser.add_argument("--keep-photographs", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    if not args.keep_photographs:
        write_photographs(args.cache, args.photographs)
    args.latents.mkdir(parents=True, exist_ok=True)

    model = AutoencoderTiny.from_pretrained(args.model, torch_dtype=torch.float32)
    values, largest = [], 0.0
    for path in sorted(args.photographs.glob("*.jpg")):
        with Image.open(path) as file:
            image = file.convert("RGB")
        latents = encode(model, image)
        save_file({"latents": latents}, args.latents / f"{path.stem}.safetensors")
        values.append(psnr(model, latents, image))
        largest = max(largest, latents.abs().max().item())
        print(f"{path.stem:12} {image.width:4} x {image.height:3} {values[-1]:6.2f} dB")
    print(
        f"{len(values)} photographs: mean {statistics.mean(values):.2f} dB, "
        f"worst {min(values):.2f}, best {max(values):.2f}; largest latent {largest:.2f}"
    )


if __name__ == "__main__":
    main()

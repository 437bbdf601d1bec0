"""Photographs for the `demo` VAE: where they come from, how they are split and how they are cut.

`photographs.csv` names every photograph: its package, its file there, author and licence, whether
it is trained on or held out, and for a held-out one the size and the place of the cut. The
packages are downloaded into a cache folder and unpacked there.
"""

import bz2
import csv
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

TABLE = Path(__file__).with_name("photographs.csv")

# The folder of the pictures in each Debian package, and in each Python package.
DEBIAN_PACKAGES = {
    "lomiri-wallpapers-16.04": "usr/share/backgrounds",
    "lomiri-wallpapers-20.04": "usr/share/backgrounds",
    "lxqt-themes": "usr/share/lxqt/wallpapers",
    "mate-backgrounds": "usr/share/backgrounds/mate/nature",
    "plasma-workspace-wallpapers": "usr/share/wallpapers",
    "python-matplotlib-data": "usr/share/matplotlib/mpl-data/sample_data",
    "python3-scipy": "usr/lib/python3/dist-packages/scipy/misc",
    "python3-skimage": "usr/lib/python3/dist-packages/skimage/data",
}
PYTHON_PACKAGES = {"scikit-learn": "sklearn/datasets/images"}
PYTHON_VERSIONS = {"scikit-learn": "1.9.1"}


class Photograph(NamedTuple):
    """One row of the table."""

    stem: str
    package: str
    file: str
    author: str
    licence: str
    size: tuple[int, int] | None  # width and height of the cut; None where trained on
    centre: tuple[float, float]  # which part the cut keeps, as in `ImageOps.fit`


def read_table() -> list[Photograph]:
    """Read `photographs.csv`, in its order."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [parse_row(row) for row in csv.DictReader(file)]


def parse_row(row: dict[str, str]) -> Photograph:
    """Turn one row of the table into a `Photograph`."""
    held_out = row["use"] == "held out"
    return Photograph(
        row["stem"],
        row["package"],
        row["file"],
        row["author"],
        row["licence"],
        size=(int(row["width"]), int(row["height"])) if held_out else None,
        centre=(float(row["centre_x"] or 0.5), float(row["centre_y"] or 0.5)),
    )


def fetch_packages(cache: Path) -> None:
    """Download and unpack every package that is not yet in `cache`, one folder per package."""
    cache.mkdir(parents=True, exist_ok=True)
    for package in DEBIAN_PACKAGES:
        if not (cache / package).is_dir():
            subprocess.run(["apt-get", "download", "-q", package], cwd=cache, check=True)
            archive = next(cache.glob(f"{package}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", archive, cache / package], check=True)
    for package, version in PYTHON_VERSIONS.items():
        if not (cache / package).is_dir():
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
            subprocess.run([*pip, f"{package}=={version}"], cwd=cache, check=True)
            wheel = next(cache.glob(f"{package.replace('-', '_')}-*.whl"))
            zipfile.ZipFile(wheel).extractall(cache / package)


def open_photograph(cache: Path, photograph: Photograph) -> Image.Image:
    """Open one picture of an unpacked package as RGB."""
    folders = DEBIAN_PACKAGES | PYTHON_PACKAGES
    path = cache / photograph.package / folders[photograph.package] / photograph.file
    if path.suffix == ".dat":  # 8-bit RGB rows, compressed: 768 high and 1024 wide
        pixels = np.frombuffer(bz2.decompress(path.read_bytes()), dtype=np.uint8)
        return Image.fromarray(pixels.reshape(768, 1024, 3))
    with Image.open(path) as image:
        return image.convert("RGB")


def load_training(cache: Path, long_sides: tuple[int, ...]) -> list[np.ndarray]:
    """Return each training photograph at each size that it can be reduced to.

    Args:
        cache: the folder that `fetch_packages` filled.
        long_sides: lengths in pixels of the longer side; a photograph is never enlarged.

    Returns:
        uint8 arrays of shape [height, width, 3].
    """
    arrays = []
    for photograph in read_table():
        if photograph.size is not None:
            continue
        image = open_photograph(cache, photograph)
        longest = max(image.size)
        for side in [side for side in long_sides if side <= longest] or [longest]:
            small = image.copy()
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            arrays.append(np.asarray(small))
    return arrays


def cut_held_out(cache: Path) -> dict[str, Image.Image]:
    """Scale and crop every held-out photograph; return the RGB cuts by stem."""
    return {
        photograph.stem: ImageOps.fit(
            open_photograph(cache, photograph),
            photograph.size,
            Image.Resampling.LANCZOS,
            centering=photograph.centre,
        )
        for photograph in read_table()
        if photograph.size is not None
    }

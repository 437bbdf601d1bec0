"""Submit latents and save each picture as soon as it is there, whichever comes first.

    python examples/as_completed.py FOLDER TARGET

Needs a running service (`make up`), and `pip install './client' pillow`.
"""

import sys
from pathlib import Path

from darkroom import Client


def main(folder: Path, target: Path) -> None:
    """Develop every file of one folder into a picture in another."""
    target.mkdir(parents=True, exist_ok=True)
    files = sorted(folder.glob("*.safetensors"))
    with Client() as client:
        jobs = client.submit_many(files, vae="demo")
        names = {job.id: file.stem for job, file in zip(jobs, files, strict=True)}
        for job in client.as_completed(jobs, progress=True):
            path = target / f"{names[job.id]}.png"
            job.result().save(path)
            print(path)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo/latents"),
        Path(sys.argv[2]) if len(sys.argv) > 2 else Path("pictures"),
    )

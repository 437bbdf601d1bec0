"""Submit many latents and go on; the pictures are fetched later, or by somebody else.

    python examples/fire_and_forget.py FOLDER

Needs a running service (`make up`), and `pip install ./client`.
"""

import sys
from pathlib import Path

from darkroom import Client


def main(folder: Path) -> None:
    """Submit every file of a folder, and print the ids under which the pictures will be found."""
    with Client() as client:
        jobs = client.submit_many(sorted(folder.glob("*.safetensors")), vae="demo", progress=True)
        for job in jobs:
            print(job.id)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo/latents"))

"""The decoder behind LitServe."""

import os
import sys

import litserve
from decoding import Decoder


class Api(litserve.LitAPI):
    """One worker process, one request at a time: batches do not pay on a CPU."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the VAE."""
        self.decoder = Decoder()

    def predict(self, request: dict[str, str]) -> dict[str, str]:
        """Decode."""
        return {"picture": self.decoder.base64_png(request["latents"])}


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", timeout=600)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False)
    sys.exit(0)

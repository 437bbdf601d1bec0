"""The decoder behind BentoML's task queue."""

import bentoml
from decoding import Decoder


@bentoml.service(workers=1, traffic={"timeout": 600, "max_concurrency": 1000})
class Service:
    """One worker process."""

    def __init__(self) -> None:
        self.decoder = Decoder()

    @bentoml.task
    def decode(self, latents: str) -> str:
        """Decode."""
        return self.decoder.base64_png(latents)

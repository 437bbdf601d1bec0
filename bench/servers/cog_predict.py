"""The decoder behind Cog's server."""

from cog import BasePredictor, Input
from decoding import Decoder


class Predictor(BasePredictor):
    """One prediction at a time."""

    def setup(self) -> None:
        """Load the VAE."""
        self.decoder = Decoder()

    def predict(self, latents: str = Input(description="safetensors in base64")) -> str:
        """Decode."""
        return self.decoder.base64_png(latents)

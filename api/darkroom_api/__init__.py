"""The HTTP service: accepts latents, tells how jobs stand, hands out results."""

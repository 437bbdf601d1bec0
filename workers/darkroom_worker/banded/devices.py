"""The two kinds of devices on which bands are computed, and what differs between them.

A CPU wants bands that stay in its cache, one picture at a time and fewer products. A GPU wants
bands that fill it, pictures together, and few steps: each takes as long as thousands of products.
"""

from __future__ import annotations

from typing import Literal

import torch

Kind = Literal["cpu", "gpu"]


def kind(device: torch.device) -> Kind:
    """Tell a CPU from everything else."""
    return "cpu" if device.type == "cpu" else "gpu"

"""Files with many tensors, for the tests of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from darkroom_wire.tensors import Tensor, from_raw, to_safetensors

SHAPE = (1, 4, 8, 8)


def tensor(
    name: str, shape: Sequence[int] = SHAPE, seed: int = 0, dtype: str = "float32"
) -> Tensor:
    """Make a tensor of normally distributed latents."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return from_raw(values.tobytes(), shape, dtype, name)


def batch_file(shapes: Mapping[str, Sequence[int]] | Sequence[str]) -> bytes:
    """Make a file with a tensor for each name, all different."""
    named = shapes if isinstance(shapes, Mapping) else dict.fromkeys(shapes, SHAPE)
    return to_safetensors(
        [tensor(name, shape, seed) for seed, (name, shape) in enumerate(named.items())]
    )

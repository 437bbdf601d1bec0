"""HunyuanVideo: [B, 16, T, h, w]; z / scaling_factor.

Source: diffusers `pipelines/hunyuan_video/pipeline_hunyuan_video.py`, the decoding step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .video import VideoFamily


@dataclass(frozen=True)
class HunyuanVideoFamily(VideoFamily):
    """The plain case of a video."""

    fps: ClassVar[float | None] = 15.0
    tiles_frames: ClassVar[bool] = True


HUNYUAN_VIDEO = HunyuanVideoFamily("hunyuan-video")

"""Videos: MP4 and animated WebP by FFmpeg, or an archive of pictures. All take frame by frame.

FFmpeg writes to a path rather than to a Python file: its errors are those of the disk then, and no
Python runs while it writes.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Final, cast

import av
import torch
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from torch import Tensor

from darkroom_wire.jobs import Format

from .files import EncodedOutput, EncodeError, closed_on_error, measured, temporary_file
from .pictures import write_picture

SLOWEST_FPS: Final = 0.01
FASTEST_FPS: Final = 1000.0
"""WebP counts whole milliseconds."""

LONGEST_FPS_DENOMINATOR: Final = 1001
"""So that 24000/1001 and its like are met exactly, however a caller rounds them."""

PRESET: Final = "veryfast"
"""Of x264. 61 frames of 512 x 320 at crf 18, with two threads, at equal PSNR: ultrafast takes
0.08 s and 807 KiB, veryfast 0.17 s and 312 KiB, medium 0.31 s and 270 KiB.
"""

X264_THREADS: Final = 2
"""Not all cores: a CPU worker decodes with them, and other videos are encoded at the same time."""

ARCHIVE_CONTENT_TYPE: Final = "application/zip"
ARCHIVE_FILE_MODE: Final = 0o644


@dataclass(frozen=True)
class _Recipe:
    """What FFmpeg is asked for."""

    format: Format
    codec: str
    codec_options: Mapping[str, str]
    container_options: Mapping[str, str]
    colorspace: Colorspace
    tags: Mapping[str, int]
    """Attributes of the codec context by which players choose the colours."""
    even: bool
    """Whether sides must have an even number of pixels."""
    threads: int


def frame_rate(fps: float | None) -> Fraction:
    """Give frames per second as a fraction: 7.5 is 15/2, 23.976 is 2997/125.

    Raises:
        EncodeError: there are none, or they are too few or too many.
    """
    if fps is None:
        raise EncodeError("fps: a video needs the number of its frames per second")
    if not SLOWEST_FPS <= fps <= FASTEST_FPS:
        raise EncodeError(f"fps: {SLOWEST_FPS} to {FASTEST_FPS:g} expected, not {fps:g}")
    return Fraction(fps).limit_denominator(LONGEST_FPS_DENOMINATOR)


def encode_mp4(
    frames: Tensor, rate: Fraction, quality: int, on_frame: Callable[[], None]
) -> EncodedOutput:
    """Encode one video, [F, H, W, 3] in uint8, as H.264 in an MP4 that plays while it loads.

    The colours are BT.709 in 4:2:0, what every player shows. 4:2:0 has one colour for two pixels,
    so an odd width or height is made even by repeating the last column or row.
    """
    recipe = _Recipe(
        format=Format.MP4,
        codec="libx264",
        codec_options={"preset": PRESET, "crf": f"{_crf(quality):.2f}"},
        # The index's place before the frames is kept free. The option `faststart` would move all
        # frames at the end instead, and PyAV holds the interpreter's lock for that long.
        container_options={"moov_size": str(_index_bytes(len(frames)))},
        colorspace=Colorspace.ITU709,
        tags={
            "colorspace": Colorspace.ITU709,
            "color_range": ColorRange.MPEG,
            "color_primaries": ColorPrimaries.BT709,
            "color_trc": ColorTrc.BT709,
        },
        even=True,
        threads=X264_THREADS,
    )
    return _encode(frames, rate, recipe, on_frame)


def encode_webp(
    frames: Tensor, rate: Fraction, quality: int, on_frame: Callable[[], None]
) -> EncodedOutput:
    """Encode one video, [F, H, W, 3] in uint8, as an animated WebP that loops for ever.

    Each frame is a WebP picture of its own. Encoders that look for what changes between frames, as
    Pillow's does, keep the whole animation in memory, and gain only where frames stand still.
    """
    recipe = _Recipe(
        format=Format.WEBP,
        codec="libwebp",
        codec_options={"quality": str(quality)},
        container_options={"loop": "0"},
        colorspace=Colorspace.ITU601,  # WebP knows no other
        tags={},
        even=False,
        threads=1,
    )
    return _encode(frames, rate, recipe, on_frame)


def encode_archive(
    frames: Tensor,
    chosen: Format,
    quality: int,
    fps: float | None,
    on_frame: Callable[[], None],
) -> EncodedOutput:
    """Encode one video, [F, H, W, 3] in uint8, as a ZIP archive of pictures: 000000.png and so on.

    The pictures are compressed already, so the archive stores them as they are. It holds no dates:
    equal frames give equal archives.
    """
    with temporary_file() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for index, frame in enumerate(frames):
                member = zipfile.ZipInfo(f"{index:06}.{chosen.value}")
                member.external_attr = ARCHIVE_FILE_MODE << 16
                with archive.open(member, "w") as picture:
                    write_picture(picture, frame, chosen, quality)
                on_frame()
        count, height, width, _ = frames.shape
        return measured(
            file,
            width=width,
            height=height,
            extension="zip",
            content_type=ARCHIVE_CONTENT_TYPE,
            num_frames=count,
            fps=fps,
        )


def _crf(quality: int) -> float:
    """Turn 1 to 100 into x264's constant rate factor, where less is better.

    90 is 18, at which hardly an eye sees the loss; 75 is 23, x264's default; 100 is 14.7, 1 is
    47.7. 0 would be lossless, in a profile that browsers do not play.
    """
    return 18 + (90 - quality) / 3


def _index_bytes(count: int) -> int:
    """Give more bytes than the index of an MP4 with so many frames takes: 37 a frame at most."""
    return 2048 + 40 * count


def _encode(
    frames: Tensor, rate: Fraction, recipe: _Recipe, on_frame: Callable[[], None]
) -> EncodedOutput:
    count, height, width, _ = frames.shape
    if recipe.even:
        height, width = height + height % 2, width + width % 2
    with tempfile.TemporaryDirectory(prefix="darkroom-") as folder:
        path = Path(folder, f"video.{recipe.format}")
        with _translated():
            _write(path, frames, (height, width), rate, recipe, on_frame)
        # An open file stays readable after the folder is gone.
        file: BinaryIO = path.open("rb")
    with closed_on_error(file):
        return measured(
            file,
            width=width,
            height=height,
            extension=recipe.format.value,
            content_type=recipe.format.content_type,
            num_frames=count,
            fps=float(rate),
        )


@contextmanager
def _translated() -> Iterator[None]:
    """Let the machine's errors pass; the others are the encoder's refusals."""
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError | MemoryError):
            raise
        raise EncodeError(f"the encoder refused the video: {error}") from error


def _write(
    path: Path,
    frames: Tensor,
    size: tuple[int, int],
    rate: Fraction,
    recipe: _Recipe,
    on_frame: Callable[[], None],
) -> None:
    options = dict(recipe.container_options)
    reformatter = VideoReformatter()
    with av.open(str(path), "w", format=recipe.format.value, options=options) as container:
        codec_options = dict(recipe.codec_options)
        stream = cast(
            av.VideoStream, container.add_stream(recipe.codec, rate=rate, options=codec_options)
        )
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = recipe.threads
        for tag, value in recipe.tags.items():
            setattr(stream.codec_context, tag, value)
        for index, pixels in enumerate(frames):
            frame = reformatter.reformat(
                _rgb_frame(pixels, size),
                format="yuv420p",
                dst_colorspace=recipe.colorspace,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
            on_frame()
        container.mux(stream.encode())


def _rgb_frame(pixels: Tensor, size: tuple[int, int]) -> av.VideoFrame:
    """Copy [H, W, 3] into a frame, repeating the last row and column where it is larger."""
    height, width = size
    frame = av.VideoFrame(width, height, "rgb24")
    # FFmpeg's rows are longer than their pixels, for alignment.
    rows = torch.frombuffer(frame.planes[0], dtype=torch.uint8).view(height, -1)
    target = rows[:, : 3 * width].view(height, width, 3)
    own_height, own_width, _ = pixels.shape
    target[:own_height, :own_width] = pixels
    target[:own_height, own_width:] = target[:own_height, own_width - 1 : own_width]
    target[own_height:] = target[own_height - 1 : own_height]
    return frame

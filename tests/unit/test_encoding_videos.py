"""Encoding videos: what players and programs find in the files."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import pytest
import torch
from PIL import Image

from darkroom_wire.jobs import Format
from darkroom_worker.encoding import EncodedOutput
from tests.pixels import close_all, encoded, smooth

RATES = [(24.0, Fraction(24)), (7.5, Fraction(15, 2)), (23.976, Fraction(2997, 125))]
RATES += [(24000 / 1001, Fraction(24000, 1001)), (29.97003, Fraction(30000, 1001))]
RATES += [(0.5, Fraction(1, 2)), (240.0, Fraction(240))]
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255), (0, 0, 0)]
COLOURS += [(30, 160, 220)]


@pytest.fixture(autouse=True)
def _files_are_closed() -> Iterator[None]:
    yield
    close_all()


def only(video: torch.Tensor, chosen: Format, fps: float = 24, **options: Any) -> EncodedOutput:
    """Encode one video, [F, H, W, 3]."""
    (output,) = encoded(video[None], chosen, fps=fps, **options)
    return output


def decoded(output: EncodedOutput) -> torch.Tensor:
    """Read a video's frames back: [F, H, W, 3]."""
    if output.extension == "mp4":
        with av.open(output.file) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    else:
        with Image.open(output.file) as animation:
            frames = []
            for index in range(getattr(animation, "n_frames", 1)):
                animation.seek(index)
                frames.append(np.array(animation.convert("RGB")))
    return torch.from_numpy(np.stack(frames))


def durations(output: EncodedOutput) -> list[int]:
    """Read how many milliseconds each frame of an animated WebP is shown."""
    with Image.open(output.file) as animation:
        assert animation.format == "WEBP"
        result = []
        for index in range(animation.n_frames):
            animation.seek(index)
            animation.load()
            result.append(int(animation.info["duration"]))
        return result


def psnr(first: torch.Tensor, second: torch.Tensor) -> float:
    """Compare pixels, in decibels."""
    error = (first.double() - second.double()).square().mean()
    return float(10 * torch.log10(255**2 / error))


def boxes(file: BinaryIO) -> list[str]:
    """Name an MP4's boxes in their order."""
    names: list[str] = []
    while header := file.read(8):
        size, name = struct.unpack(">I4s", header)
        if size == 1:
            size = struct.unpack(">Q", file.read(8))[0] - 8
        file.seek(size - 8, io.SEEK_CUR)
        names.append(name.decode())
    return names


def steps(count: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """Make frames of one grey each, every one brighter than the last."""
    greys = torch.linspace(16, 240, count).round().to(torch.uint8)
    return greys[:, None, None, None].expand(count, height, width, 3)


@pytest.mark.parametrize(("fps", "rate"), RATES)
def test_an_mp4_has_the_frames_the_rate_and_the_size(fps: float, rate: Fraction) -> None:
    """Players see H.264 in yuv420p with every frame, at exactly the rate that was asked for."""
    output = only(smooth(7, 32, 48), Format.MP4, fps)
    assert (output.num_frames, output.fps) == (7, float(rate))
    assert (output.width, output.height) == (48, 32)
    assert (output.extension, output.content_type) == ("mp4", "video/mp4")
    with av.open(output.file) as container:
        (stream,) = container.streams.video
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.codec_context.width, stream.codec_context.height) == (48, 32)
        assert (stream.frames, stream.average_rate) == (7, rate)
        times = [frame.pts * frame.time_base for frame in container.decode(stream)]
    assert times == [index / rate for index in range(7)]


@pytest.mark.parametrize("count", [1, 2, 3000])
def test_an_mp4_begins_to_play_before_it_is_loaded(count: int) -> None:
    """The index stands before the frames, also where it is long, and is whole."""
    output = only(steps(count, 16, 16), Format.MP4)
    names = boxes(output.file)
    assert names.index("moov") < names.index("mdat")
    output.file.seek(0)
    assert len(decoded(output)) == count


@pytest.mark.parametrize("chosen", [Format.MP4, Format.WEBP])
def test_frames_come_back_in_their_order(chosen: Format) -> None:
    """No frame is lost, doubled or moved, though H.264 stores frames in another order."""
    video = steps(40)
    found = decoded(only(video, chosen)).double().mean((1, 2, 3))
    expected = video.double().mean((1, 2, 3))
    assert len(found) == 40
    assert (found - expected).abs().max() < 2.5  # steps are 5.7 apart


@pytest.mark.parametrize("chosen", [Format.MP4, Format.WEBP])
def test_a_video_looks_like_its_frames(chosen: Format) -> None:
    """The default quality keeps a smooth moving picture above 35 dB."""
    video = smooth(24, 96, 128)
    assert psnr(decoded(only(video, chosen)), video) > 35


@pytest.mark.parametrize("chosen", [Format.MP4, Format.WEBP])
@pytest.mark.parametrize("colour", COLOURS)
def test_colours_are_right(chosen: Format, colour: tuple[int, int, int]) -> None:
    """A flat colour comes back within 3 levels, for players that read the file's tags."""
    video = torch.tensor(colour, dtype=torch.uint8).expand(4, 48, 64, 3)
    found = decoded(only(video, chosen)).double().mean((0, 1, 2))
    assert (found - torch.tensor(colour)).abs().max() <= 3


def test_an_mp4_says_which_colours_it_has() -> None:
    """Without tags players guess the matrix by the height: the file says BT.709, limited range."""
    with av.open(only(smooth(2, 32, 48), Format.MP4).file) as container:
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_range)
        assert (*tags, context.color_primaries, context.color_trc) == (1, 1, 1, 1)


@pytest.mark.parametrize(("height", "width"), [(33, 48), (32, 47), (31, 29), (1, 1)])
def test_an_odd_mp4_repeats_its_last_row_and_column(height: int, width: int) -> None:
    """H.264 in yuv420p has even sides: no pixel is cut off, and the output tells its real size."""
    video = smooth(5, height, width)
    output = only(video, Format.MP4)
    found = decoded(output)
    assert (output.height, output.width) == (height + height % 2, width + width % 2)
    assert found.shape == (5, output.height, output.width, 3)
    padded = np.pad(video.numpy(), [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")
    assert psnr(found, torch.from_numpy(padded)) > 35


def test_an_odd_animated_webp_keeps_its_size() -> None:
    """WebP has odd sides itself."""
    video = smooth(5, 31, 29)
    output = only(video, Format.WEBP)
    assert (output.height, output.width) == (31, 29)
    assert decoded(output).shape == video.shape
    assert psnr(decoded(output), video) > 35


@pytest.mark.parametrize("chosen", [Format.MP4, Format.WEBP])
def test_one_frame_is_a_video_too(chosen: Format) -> None:
    """A video model asked for one frame gives a file with one frame."""
    video = smooth(1, 32, 48)
    output = only(video, chosen)
    assert output.num_frames == 1
    assert psnr(decoded(output), video) > 35


@pytest.mark.parametrize("chosen", [Format.MP4, Format.WEBP, Format.PNG])
def test_pixels_may_lie_in_memory_as_they_like(chosen: Format) -> None:
    """Pixels whose channels lie apart, as a VAE leaves them, give the same file."""
    video = smooth(5, 32, 48)
    apart = video.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    assert not apart.is_contiguous()
    assert only(apart, chosen).sha256 == only(video, chosen).sha256


@pytest.mark.parametrize(("quality", "crf"), [(None, 18), (90, 18), (75, 23), (100, 14.7)])
def test_quality_sets_the_rate_factor(quality: int | None, crf: float) -> None:
    """Quality means for MP4 what it means for pictures; 90, x264's crf 18, is the default."""
    content = only(smooth(3, 32, 48), Format.MP4, quality=quality).file.read()
    match = re.search(rb" crf=([\d.]+) ", content)
    assert match is not None
    assert float(match[1]) == pytest.approx(crf, abs=0.05)


def test_quality_100_still_plays_everywhere() -> None:
    """The best quality stays in a profile that browsers play, which lossless H.264 is not."""
    with av.open(only(smooth(3, 32, 48), Format.MP4, quality=100).file) as container:
        assert container.streams.video[0].codec_context.profile == "High"


@pytest.mark.parametrize("chosen", [Format.WEBP, Format.JPEG])
def test_a_lower_quality_is_smaller(chosen: Format) -> None:
    """Animated WebP and archives of JPEG follow the quality, 90 where there is none."""
    video = smooth(4, 96, 128)
    usual = only(video, chosen, quality=90)
    assert only(video, chosen, quality=10).bytes < usual.bytes
    assert only(video, chosen).sha256 == usual.sha256


@pytest.mark.parametrize(("fps", "rate"), RATES)
def test_an_animated_webp_keeps_time(fps: float, rate: Fraction) -> None:
    """WebP counts milliseconds: frames differ by one, but the animation as a whole is in time."""
    output = only(steps(25), Format.WEBP, fps)
    assert (output.num_frames, output.fps) == (25, float(rate))
    assert (output.extension, output.content_type) == ("webp", "image/webp")
    shown = durations(output)
    assert len(shown) == 25
    assert all(abs(duration - 1000 / rate) <= 1 for duration in shown)
    assert abs(sum(shown) - 25_000 / rate) <= 1.5


def test_an_animated_webp_loops() -> None:
    """It plays for ever, as browsers' animations do."""
    with Image.open(only(steps(3), Format.WEBP).file) as animation:
        assert animation.info["loop"] == 0


def test_an_archive_holds_each_frame_exactly() -> None:
    """A video as PNG is one archive, with a picture for each frame under a name that sorts."""
    video = torch.randint(0, 256, (12, 17, 23, 3), dtype=torch.uint8)
    output = only(video, Format.PNG, 7.5)
    assert (output.extension, output.content_type) == ("zip", "application/zip")
    assert (output.width, output.height) == (23, 17)
    assert (output.num_frames, output.fps) == (12, 7.5)
    with zipfile.ZipFile(output.file) as archive:
        assert archive.testzip() is None
        members = archive.infolist()
        assert [member.filename for member in members] == [f"{i:06}.png" for i in range(12)]
        assert {member.compress_type for member in members} == {zipfile.ZIP_STORED}
        for member, expected in zip(members, video, strict=True):
            with Image.open(io.BytesIO(archive.read(member))) as picture:
                assert torch.equal(torch.from_numpy(np.array(picture)), expected)


def test_an_archive_of_jpegs_holds_the_pictures_that_a_batch_gives() -> None:
    """A frame in an archive is the same file as a picture of its own, and needs no rate."""
    video = smooth(3, 48, 64)
    (output,) = encoded(video[None], Format.JPEG, quality=70)
    assert output.fps is None
    pictures = [picture.file.read() for picture in encoded(video, Format.JPEG, quality=70)]
    with zipfile.ZipFile(output.file) as archive:
        assert archive.namelist() == ["000000.jpeg", "000001.jpeg", "000002.jpeg"]
        assert [archive.read(name) for name in archive.namelist()] == pictures


@pytest.mark.parametrize("chosen", [Format.MP4, Format.WEBP])
def test_each_video_of_a_batch_is_a_file_of_its_own(chosen: Format) -> None:
    """A batch of N latents gives N videos, in order."""
    videos = torch.stack([steps(4), steps(4).flip(0)])
    outputs = encoded(videos, chosen, fps=8)
    forth, back = (decoded(output).double().mean((1, 2, 3)) for output in outputs)
    assert forth[0] < forth[-1]
    assert back[0] > back[-1]


MEASURE = """
import sys, torch
from pathlib import Path
from darkroom_wire.jobs import Format
from darkroom_worker.encoding import encode

chosen, count = Format(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)

def noise(count):
    return torch.empty(1, 3, count, 256, 384, dtype=torch.uint8).random_().permute(0, 2, 3, 4, 1)

def peak():
    # Not getrusage, whose peak begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

def save(video):
    next(encode(video, chosen, fps=24)).file.close()

save(noise(16))
video = noise(count)
before = peak()
save(video)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
@pytest.mark.parametrize(
    "chosen", [Format.MP4, Format.WEBP, Format.PNG, Format.JPEG, Format.SAFETENSORS]
)
def test_memory_does_not_grow_with_a_videos_length(chosen: Format) -> None:
    """However long a video is, encoding holds a few frames besides what the engine gave.

    The longer video has 45 MiB of pixels more, and its file at least 10 MiB. x264 looks ahead, so
    that it takes more memory up to some fifty frames.
    """

    def grown(count: int) -> float:
        command = [sys.executable, "-c", MEASURE, chosen.value, str(count)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert grown(240) - grown(80) < 6

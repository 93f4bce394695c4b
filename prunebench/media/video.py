"""Frames of a sample's video. Only chosen frames are converted and kept, however long the file is.

A file is read twice: once packet by packet without decoding, for the exact number of frames and their times (headers
may lie or say nothing), and once around the chosen frames, from the key frame before each of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.errors import MediaError, MissingExtra, first_line
from prunebench.media.files import MediaFile, readable

if TYPE_CHECKING:
    from prunebench.calibration.samples import Sample

__all__ = ["ARRAY_FPS", "MAX_BYTES", "VideoInfo", "container_of", "evenly", "frames_of", "video_info", "whole"]

ARRAY_FPS = 1.0
"""An array has no clock: its frames are taken to be one second apart."""

MAX_BYTES = 2 << 30
"""More than this in one answer is refused: somebody asked for all frames of a film."""

Choose = Callable[[int, float], Sequence[int]]

_TIMED = {"mov", "matroska", "asf", "flv"}
"""Containers (FFmpeg's names) that store the time of every frame. For the others (AVI, MPEG-PS, raw streams) FFmpeg
makes times up, others after seeking than before; they are decoded from the beginning."""


@dataclass(frozen=True)
class VideoInfo:
    """Number of frames, mean frames per second, and size in pixels as shown (after rotation)."""

    frames: int
    fps: float
    width: int
    height: int


@dataclass(frozen=True)
class _Index:
    """What one pass over the packets tells.

    Attributes:
        count: frames.
        fps: their mean rate.
        times: presentation time of each frame in order, or None where they cannot be sought (then frames are counted
            from the beginning).
        keys: times of frames that decoding can start from.
    """

    count: int
    fps: float
    times: list[int] | None
    keys: list[int]


def evenly(count: int) -> Choose:
    """A choice of at most `count` frames from the first to the last, evenly spaced."""

    def choose(n_frames: int, fps: float) -> list[int]:
        if n_frames <= count:
            return list(range(n_frames))
        return np.rint(np.linspace(0, n_frames - 1, count)).astype(int).tolist()

    return choose


def frames_of(sample: Sample, choose: Choose | None = None) -> np.ndarray:
    """The chosen frames of a sample's video, uint8 (T, H, W, 3), upright.

    Args:
        sample: with an array or a file as its video.
        choose: (number of frames, frames per second) → indices, in any order, repeats allowed; None takes all.

    Raises:
        MediaError: no video, one that cannot be read, or indices outside it.
        MissingExtra: a file, and PyAV is not installed.
    """
    if sample.video is None:
        raise MediaError(f"sample {sample.id!r} has no video")
    if isinstance(sample.video, MediaFile):
        return _frames_of_file(sample.video.path, choose)
    frames = np.asarray(sample.video)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise MediaError(
            f"sample {sample.id!r}: a video must be uint8 (frames, height, width, 3), got {frames.dtype} {frames.shape}"
        )
    return frames if choose is None else frames[_chosen(choose, len(frames), ARRAY_FPS, f"sample {sample.id!r}")]


def video_info(source: np.ndarray | MediaFile) -> VideoInfo:
    """Frames, rate and size of a video.

    Raises:
        MediaError, MissingExtra: as in `frames_of`.
    """
    if not isinstance(source, MediaFile):
        return VideoInfo(len(source), ARRAY_FPS, source.shape[2], source.shape[1])
    with container_of(source.path) as container:
        index = _index(source.path, container)
    first = _frames_of_file(source.path, lambda n, fps: [0])
    return VideoInfo(index.count, index.fps, first.shape[2], first.shape[1])


@contextmanager
def container_of(path: Path) -> Iterator[Any]:
    """An open PyAV container; whatever goes wrong with the file inside is a `MediaError`."""
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "media", f"reading {path.name}") from error
    readable(path)
    try:
        # The absolute path: FFmpeg takes what stands before a colon for a protocol.
        with av.open(str(path.absolute()), metadata_errors="ignore") as container:
            yield container
    except av.error.EOFError as error:
        raise MediaError(f"{path} ends where its content should begin: there is no frame and no sound in it") from error
    except (av.error.FFmpegError, UnicodeError) as error:
        raise MediaError(f"{path} is damaged or of a kind that FFmpeg does not read: {_reason(error)}") from error


def whole(path: Path, found: Iterator[Any]) -> Iterator[Any]:
    """Packets or frames of a file, where PyAV stumbles over a stream that the file's beginning did not announce."""
    try:
        yield from found
    except IndexError as error:
        raise MediaError(f"{path} has a stream that begins on the way: convert it to mp4 or mkv") from error


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or first_line(error)


def _frames_of_file(path: Path, choose: Choose | None) -> np.ndarray:
    with container_of(path) as container:
        index = _index(path, container)
        chosen = list(range(index.count)) if choose is None else _chosen(choose, index.count, index.fps, str(path))
        size = _first_video(container).codec_context
        if (asked := len(chosen) * size.width * size.height * 3) > MAX_BYTES:
            raise MediaError(
                f"{path}: {len(chosen)} frames of {size.width} × {size.height} are {asked / 2**30:.1f} GiB: "
                "choose fewer of its frames"
            )
        frames: dict[int, np.ndarray] = {}
        wanted = sorted(set(chosen))
        found = _by_order(path, wanted) if index.times is None else _by_time(container, index, index.times, wanted)
        for position, frame in found:
            first = next(iter(frames.values()), None)
            frames[position] = _rgb(frame, None if first is None else first.shape[:2])
    if missing := [i for i in chosen if i not in frames]:
        raise MediaError(f"{path} is damaged: frame {missing[0]} of {index.count} cannot be decoded")
    return np.stack([frames[i] for i in chosen])


def _chosen(choose: Choose, count: int, fps: float, what: str) -> list[int]:
    chosen = [int(i) for i in choose(count, fps)]
    if not chosen:
        raise MediaError(f"{what}: no frame was chosen of {count}")
    if outside := [i for i in chosen if not 0 <= i < count]:
        raise MediaError(f"{what}: frame {outside[0]} was chosen, it has {count}")
    return chosen


def _video_stream(path: Path, container: Any) -> Any:
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(f"{path} has no video in it (streams: {_kinds(container)})")
    if streams[0].codec_context is None:
        raise MediaError(f"{path} is encoded in a way that this FFmpeg cannot decode: convert it to H.264")
    streams[0].thread_type = "AUTO"
    return streams[0]


def _kinds(container: Any) -> str:
    return ", ".join(stream.type for stream in container.streams) or "none"


def _index(path: Path, container: Any) -> _Index:
    stream = _video_stream(path, container)
    times: set[int] = set()
    keys: set[int] = set()
    timed, packets = True, 0
    for packet in whole(path, container.demux(stream)):
        if packet.size == 0 or packet.is_discard:
            continue
        if packet.pts is None:
            timed = False
            break
        packets += 1
        times.add(packet.pts)
        if packet.is_keyframe:
            keys.add(packet.pts)
    if timed and 0 < packets == len(times):  # two packets of one time: half frames, or times made up on the way
        ordered = sorted(times)
        sought = ordered if container.format.name.split(",")[0] in _TIMED else None
        return _Index(len(ordered), _rate(stream, ordered), sought, sorted(keys))
    with container_of(path) as again:
        count = sum(1 for _ in whole(path, again.decode(_video_stream(path, again))))
    if not count:
        raise MediaError(f"{path} has no frame in it")
    return _Index(count, _stated_rate(stream) or ARRAY_FPS, None, [])


def _rate(stream: Any, times: list[int]) -> float:
    """Mean rate; the stated one where it agrees with the frames' times (which some containers round)."""
    stated = _stated_rate(stream)
    seconds = float((times[-1] - times[0]) * stream.time_base) if stream.time_base else 0.0
    if not seconds:
        return stated or ARRAY_FPS
    measured = (len(times) - 1) / seconds
    return stated if stated and abs(stated - measured) <= 0.01 * measured else measured


def _stated_rate(stream: Any) -> float | None:
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else None


def _by_order(path: Path, wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """(index, frame) of ascending indices in a stream without times: counted from its start."""
    left = list(wanted)
    with container_of(path) as container:
        for position, frame in enumerate(whole(path, container.decode(_video_stream(path, container)))):
            if position == left[0]:
                yield left.pop(0), frame
            if not left:
                return


def _by_time(container: Any, index: _Index, times: list[int], wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """(index, frame) of ascending indices, decoding no more than from the key frame before each of them."""
    stream = _first_video(container)
    frames: Iterator[Any] | None = None
    here: Any = None  # the frame that was decoded last
    for position in wanted:
        target = times[position]
        key = bisect_right(index.keys, target) - 1
        # Going on costs less than seeking unless there is a key frame between here and there.
        near = here is not None and here.pts <= target and (key < 0 or index.keys[key] <= here.pts)
        if not near:
            frames, here = _seek(container, stream, index.keys[: key + 1] or times[:1], target)
        while here is not None and here.pts < target:
            ahead = _next(frames)
            if ahead is None:
                break
            here = ahead
        # A packet may hold no picture of its own (an invisible reference): then its neighbour is what is shown.
        if here is not None and abs(bisect_left(times, here.pts) - position) <= 1:
            yield position, here


def _first_video(container: Any) -> Any:
    from av.stream import Disposition

    return next(s for s in container.streams.video if not s.disposition & Disposition.attached_pic)


def _seek(container: Any, stream: Any, keys: list[int], target: int) -> tuple[Iterator[Any], Any]:
    """Decoding from the last of `keys`, and the first frame that comes.

    Some containers seek by decoding time and land behind: then an earlier key frame is tried.
    """
    while True:
        start = keys[-1] if len(keys) > 1 else min(keys[0], 0)
        container.seek(start, stream=stream, backward=True)
        frames = container.decode(stream)
        first = _next(frames)
        if len(keys) == 1 or (first is not None and first.pts <= target):
            return frames, first
        keys = keys[:-1]


def _next(frames: Iterator[Any] | None) -> Any:
    """The next frame that has a time, or None at the end."""
    return next((frame for frame in frames or () if frame.pts is not None), None)


def _rgb(frame: Any, shape: tuple[int, int] | None) -> np.ndarray:
    turn = round(frame.rotation / 90) % 4  # counter-clockwise quarter turns
    width = height = None
    if shape is not None:  # a stream may change its size on the way
        height, width = shape if turn % 2 == 0 else shape[::-1]
    return np.rot90(frame.to_ndarray(format="rgb24", width=width, height=height), turn)

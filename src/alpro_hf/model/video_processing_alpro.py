"""`AlproVideoProcessor`: samples the frames of a video and turns them into normalised pixels.

Video files are decoded by `decoding.py`, which also resizes them (FFmpeg's bicubic scaler, as in the original ALPRO).
Arrays, tensors and images are resized with torchvision by the base class; its bicubic filter differs slightly.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from PIL.Image import DecompressionBombError, Image
from PIL.Image import open as open_image
from transformers.image_processing_utils import BatchFeature, get_size_dict
from transformers.image_utils import ChannelDimension, PILImageResampling
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.utils import logging
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .decoding import decode
from .decoding_column import file_of, is_column, is_frame_decoder, sampled_frames
from .decoding_formats import is_image_sequence
from .decoding_source import VideoSource
from .decoding_types import (
    DEFAULT_LIMITS,
    SAMPLING_STRATEGIES,
    Frames,
    NotAVideoError,
    SamplingStrategy,
    VideoInfo,
    VideoLimits,
    frames_at,
)

logger = logging.get_logger(__name__)

CHANNELS = (1, 3, 4)  # grey, RGB, RGB with alpha
_UNCOUNTABLE = 1e15  # more frames than any limit allows
_EXIF_ORIENTATION = 0x112

# Mean and standard deviation of CLIP, with which the original ALPRO normalises, too.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def sample_indices(
    num_frames_in_video: int,
    num_frames: int,
    strategy: SamplingStrategy = "center",
    *,
    seed: int = 0,
    epoch: int = 0,
    index: int = 0,
) -> list[int]:
    """Choose `num_frames` ascending frame numbers of a video with `num_frames_in_video` frames.

    - `center`: the middle frame of each of `num_frames` equal segments.
    - `uniform`: multiples of `floor(length / num_frames)`, as in the evaluation of the original ALPRO. This step skips
      the end of most clips, and repeats frame 0 if the clip is shorter than `num_frames`.
    - `random`: drawn without replacement (original ALPRO `rand`).
    - `headtail`: half of them drawn from each half of the clip (original ALPRO `headtail`).

    The last two depend only on (`seed`, `epoch`, `index` of the row), so that an interrupted training continues with
    the same frames. A clip shorter than `num_frames` repeats frames, all about equally often.

    Raises:
        ValueError: The strategy is unknown, or a count is below one.
    """
    if num_frames_in_video < 1 or num_frames < 1:
        raise ValueError(
            f"sample_indices needs at least one frame to choose and one to choose from, got num_frames={num_frames} "
            f"and num_frames_in_video={num_frames_in_video}."
        )
    n, k = num_frames_in_video, num_frames
    # whole numbers alone, so that no rounding of floats differs between machines
    if strategy == "center":
        return [(2 * i + 1) * n // (2 * k) for i in range(k)]
    if strategy == "uniform":
        return [i * (n // k) for i in range(k)]
    generator = np.random.default_rng((seed, epoch, index))
    if strategy == "random":
        return _draw(generator, 0, n, k)
    if strategy == "headtail":
        middle = n // 2
        head = _draw(generator, 0, max(middle, 1), k // 2)
        return head + _draw(generator, min(middle, n - 1), n, k - k // 2)
    raise ValueError(f"Unknown frame sampling {strategy!r}. Use one of {', '.join(SAMPLING_STRATEGIES)}.")


def _draw(generator: np.random.Generator, start: int, stop: int, count: int) -> list[int]:
    """`count` sorted numbers of [start, stop); none is repeated before all are used."""
    rounds, rest = divmod(count, stop - start)
    drawn = generator.choice(stop - start, size=rest, replace=False)
    return sorted(start + int(i) for i in (*list(range(stop - start)) * rounds, *drawn))


@dataclass
class AlproVideoMetadata(VideoMetadata):
    """`VideoMetadata` of transformers with three additional fields. Sizes are those of the pictures as shown.

    Args:
        frames_repeated: whether a frame occurs more than once in `frames_indices`, because the clip is too short.
        frames_timestamps: seconds of each sampled frame after the first frame of the clip; exact at a variable frame
            rate, unlike `index / fps`. In the metadata that `sample_frames` gets, those of all frames of a file with a
            variable rate, else None.
        hdr: `pq` or `hlg` if the file has high dynamic range, which was converted to ordinary brightness; else None.
    """

    frames_repeated: bool = False
    frames_timestamps: list[float] | None = None
    hdr: str | None = None

    @property
    def timestamps(self) -> list[float]:
        return super().timestamps if self.frames_timestamps is None else self.frames_timestamps


class AlproVideoProcessorKwargs(VideosKwargs, total=False):
    """Arguments of `AlproVideoProcessor` in addition to those of transformers.

    frame_sampling (`str`, *optional*, defaults to `"center"`):
        Strategy of `sample_indices`: `center`, `uniform`, `random` or `headtail`.
    sampling_seed (`int`, *optional*, defaults to 0):
        Seed of `random` and `headtail`.
    sampling_epoch (`int`, *optional*, defaults to 0):
        Epoch of the training, so that each epoch draws other frames.
    sampling_index (`int` or `list[int]`, *optional*):
        Row of the data set, one per video; defaults to the position in the batch.
    allow_url (`bool`, *optional*, defaults to `False`):
        Whether http(s) URLs are downloaded. Only in a call: a checkpoint cannot switch it on.
    video_limits (`dict[str, int | float | None]`, *optional*):
        Fields of `VideoLimits` that differ from its defaults. Those of a processor, which may come with a checkpoint,
        can only be stricter than the defaults; a call may also loosen them.
    decoder (`Callable`, *optional*):
        Decodes files instead of `decoding.decode`; for example `IsolatedDecoder().decode`. Only in a call.
    """

    frame_sampling: str | None
    sampling_seed: int | None
    sampling_epoch: int | None
    sampling_index: int | list[int] | None
    allow_url: bool | None
    video_limits: dict[str, int | float | None] | None
    decoder: Any  # Callable[..., Frames] | None, a type that the validation of transformers cannot check


class AlproVideoProcessor(BaseVideoProcessor):
    """Turns videos into `pixel_values_videos` of shape (videos, frames, 3, height, width), float32, normalised.

    A video is a path, `bytes`, a binary file object, an http(s) URL (with `allow_url=True`), a list of images or of
    the paths of images, or an array or tensor of shape (T, H, W, C) or (T, C, H, W). A single image is a clip of one
    frame. `videos` is one video or a list of videos, which may be of different types. Every clip gives `num_frames`
    frames, whatever its length: frames of shorter clips are repeated, and the metadata (`return_metadata=True`) report
    it in `frames_repeated`. `fps` samples at that rate instead, and `do_sample_frames=False` keeps every frame; then
    the clips of a batch must have equal length.

    Frames of a file with a variable rate are chosen by their time: `center` takes those shown in the middle of equal
    spans of time, `fps` one every `1 / fps` seconds from the start. The other strategies count frames.

    The default size is 224 x 224, ignoring the aspect ratio, as in the original ALPRO; nothing is cropped.

    Raises:
        VideoDecodeError: A file cannot be decoded exactly (see `decoding.py`).
        TypeError, ValueError: An argument is not a video.
    """

    valid_kwargs = AlproVideoProcessorKwargs  # type: ignore[assignment]
    model_input_names = ["pixel_values_videos"]  # noqa: RUF012 (as in transformers)

    resample = PILImageResampling.BICUBIC
    size = {"height": 224, "width": 224}  # noqa: RUF012
    image_mean = CLIP_MEAN
    image_std = CLIP_STD
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = True
    num_frames = 8
    frame_sampling: SamplingStrategy = "center"
    sampling_seed = 0
    sampling_epoch = 0
    return_tensors = "pt"

    def __init__(self, **kwargs: Any) -> None:
        # Attributes are saved with a checkpoint. One from the Hub must not be able to switch downloads on.
        for name in ("allow_url", "decoder"):
            if kwargs.pop(name, None):
                raise ValueError(f"{name} belongs to the call, processor(videos, {name}=...), not to the processor.")
        super().__init__(**kwargs)
        _check_strategy(self.frame_sampling)
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if isinstance(value, list | tuple) and len(value) != 3:
                raise ValueError(f"{name}={value!r:.80} must be three numbers, one for each channel.")
        # now, because a folder may come from a stranger, and a call knows nothing of it
        if self.num_frames is not None:
            _check_count(self.num_frames)
        if (fps := getattr(self, "fps", None)) is not None:
            _check_rate(fps)
        if (limits := getattr(self, "video_limits", None)) is not None:
            _video_limits(limits)
        if self.resample is not None and self.resample not in list(PILImageResampling):
            raise ValueError(f"resample={self.resample!r:.80} is no filter of PIL, such as 3 (bicubic).")
        for name in ("size", "crop_size"):
            sides = getattr(self, name)
            if sides is not None and not all(type(side) is int and side > 0 for side in _sides_of(sides)):
                raise ValueError(f"{name}={dict(sides)!r:.80} must be whole numbers of pixels of at least 1.")

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: int | float | None = None,
        frame_sampling: SamplingStrategy | None = None,
        sampling_seed: int | None = None,
        sampling_epoch: int | None = None,
        sampling_index: int | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Frame numbers for a video described by `metadata`, int64 (T,), ascending. See `sample_indices`.

        `fps` has precedence over `num_frames` and needs a `metadata.fps`. Arguments that are `None` default to the
        attributes of the processor. If `metadata` has the times of all frames, `center` goes by them.
        """
        n = metadata.total_num_frames
        count = self._count(metadata, num_frames, fps)
        strategy = frame_sampling or self.frame_sampling
        times = metadata.frames_timestamps if isinstance(metadata, AlproVideoMetadata) else None
        if times is not None and len(times) == n and metadata.duration and strategy == "center":
            steps = np.arange(count) / fps if fps else (np.arange(count) + 0.5) * (metadata.duration / count)
            return np.array(frames_at(times, steps.tolist()), np.int64)
        indices = sample_indices(
            n,
            count,
            strategy,
            seed=self.sampling_seed if sampling_seed is None else sampling_seed,
            epoch=self.sampling_epoch if sampling_epoch is None else sampling_epoch,
            index=sampling_index or 0,
        )
        return np.array(indices, np.int64)

    def _count(self, metadata: VideoMetadata, num_frames: int | None, fps: int | float | None) -> int:
        """The number of frames to sample, at least 1; see `sample_frames`."""
        if fps is None:
            count = num_frames if num_frames is not None else self.num_frames
            _check_count(count)
            return int(count)
        _check_rate(fps)
        if not metadata.fps:
            raise ValueError(f"fps={fps} needs the frame rate of the video: pass video_metadata, or use num_frames.")
        times = metadata.frames_timestamps if isinstance(metadata, AlproVideoMetadata) else None
        seconds = metadata.duration if times and metadata.duration else metadata.total_num_frames / metadata.fps
        return max(1, round(min(seconds * fps, _UNCOUNTABLE)))

    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn: Any = None) -> Any:
        """Decode one video, or each of a list, at its original size: uint8 (T, 3, H, W) and `AlproVideoMetadata`."""
        if isinstance(video_url_or_urls, list):
            return list(
                zip(*[self.fetch_videos(video, sample_indices_fn) for video in video_url_or_urls], strict=True)
            )
        frames = self._decode(video_url_or_urls, sample_indices_fn, None, None)
        return frames.pixels, _describe(frames)

    def preprocess(self, videos: Any, **kwargs: Unpack[AlproVideoProcessorKwargs]) -> BatchFeature:
        """Load, sample, resize and normalise videos; see the class.

        Returns:
            `BatchFeature` with `pixel_values_videos`, and with `return_metadata=True` a list of `AlproVideoMetadata`
            under `video_metadata`.
        """
        unknown = kwargs.keys() - self.valid_kwargs.__annotations__.keys()
        if unknown:
            raise TypeError(f"AlproVideoProcessor takes no argument {', '.join(sorted(unknown))}.")

        def setting(name: str) -> Any:
            value = kwargs.get(name)
            return getattr(self, name, None) if value is None else value

        clips = _split(videos)
        if not clips:
            raise ValueError("AlproVideoProcessor got an empty list of videos.")
        rows = setting("sampling_index")
        rows = list(range(len(clips))) if rows is None else [rows] if isinstance(rows, int) else list(rows)
        given = kwargs.pop("video_metadata", None)
        described = [None] * len(clips) if given is None else _flat(given)
        if not len(rows) == len(described) == len(clips):
            raise ValueError(
                f"Got {len(clips)} videos, sampling_index for {len(rows)} and video_metadata for {len(described)}: "
                "pass one of each per video."
            )
        _check_strategy(setting("frame_sampling"))
        names = ("num_frames", "fps", "frame_sampling", "sampling_seed", "sampling_epoch")
        sample = partial(self.sample_frames, **{name: setting(name) for name in names})
        height, width = self._decoded_size(setting("do_resize"), setting("size"), setting("resample"))
        limits = self._limits(kwargs.get("video_limits"))
        allow_url, decoder = setting("allow_url"), kwargs.pop("decoder", None)

        def check_size(source: str, about: VideoMetadata) -> None:
            """Refuse frames that are too many or too large before anything is made for them."""
            count = about.total_num_frames
            if setting("do_sample_frames"):
                count = self._count(about, setting("num_frames"), setting("fps"))
            height, width = _largest_sides(
                about,
                setting("size") if setting("do_resize") else None,
                setting("crop_size") if setting("do_center_crop") else None,
            )
            what = f"the size in bytes of {count} frames of up to {height} x {width} pixels, as the settings ask, is"
            limits.check("max_decoded_size", count * 3 * height * width, source, what)

        loaded, metadata = [], []
        for place, (clip, row, description) in enumerate(zip(clips, rows, described, strict=True)):
            choose = partial(sample, sampling_index=row) if setting("do_sample_frames") else None
            if is_frame_decoder(clip):
                clip, description = sampled_frames(clip, choose)
                choose = None
            if is_video_source(clip):
                frames = self._decode(clip, choose, height, width, allow_url, limits, decoder, check_size)
                loaded.append(frames.pixels)
                metadata.append(_describe(frames))
            else:
                pixels, about = _sample_frames(
                    _Images(clip, limits)
                    if is_image_sequence(clip)
                    else _channels_first(clip, setting("input_data_format")),
                    description,
                    choose,
                    partial(check_size, f"videos[{place}]"),
                )
                if setting("do_rescale") and pixels.is_floating_point() and pixels.max() <= 1:
                    logger.warning_once(
                        "A video of floating-point values up to 1 is about to be divided by 255. If it is in [0, 1] "
                        "already, pass do_rescale=False."
                    )
                loaded.append(pixels)
                metadata.append(about)
        # The base class would sample again, and would guess the layout of the arrays.
        kwargs["do_sample_frames"] = False
        kwargs["input_data_format"] = ChannelDimension.FIRST
        return super().preprocess(loaded, video_metadata=metadata, **kwargs)

    def _limits(self, called: dict[str, Any] | None) -> VideoLimits:
        """The limits of a call; else those of the processor, as far as they are stricter than the defaults.

        A processor may come with a checkpoint from a stranger, and only the caller may take on higher costs.
        """
        if called is not None:
            return _video_limits(called)
        own, strict = _video_limits(getattr(self, "video_limits", None) or {}), {}
        for field in fields(VideoLimits):
            value, default = getattr(own, field.name), getattr(DEFAULT_LIMITS, field.name)
            strict[field.name] = default if value is None or value > default else value
        if strict != asdict(own):
            logger.warning_once(
                "The video_limits of this processor are looser than the defaults, which are used instead. To loosen "
                "limits, pass them in the call: processor(videos=..., video_limits={...})."
            )
        return VideoLimits(**strict)

    def _decode(
        self,
        source: VideoSource,
        choose: Any,
        height: int | None,
        width: int | None,
        allow_url: bool | None = None,
        limits: VideoLimits = DEFAULT_LIMITS,
        decoder: Callable[..., Frames] | None = None,
        check: Callable[[str, VideoMetadata], None] | None = None,
    ) -> Frames:
        def indices(info: VideoInfo) -> list[int]:
            times = None if info.frame_times is None else list(info.frame_times)
            about = AlproVideoMetadata(
                info.num_frames, info.fps, info.width, info.height, info.duration, "pyav", frames_timestamps=times
            )
            if check is not None:
                check(info.source, about)
            if choose is None:
                return list(range(info.num_frames))
            return [int(i) for i in choose(metadata=about)]

        return (decoder or decode)(
            source, indices, height=height, width=width, limits=limits, allow_url=bool(allow_url)
        )

    def decoded_size(self) -> tuple[int | None, int | None]:
        """The (height, width) at which to decode frames for this processor; `None` for the size of the video."""
        return self._decoded_size(self.do_resize, self.size, self.resample)

    @staticmethod
    def _decoded_size(do_resize: bool, size: Any, resample: Any) -> tuple[int | None, int | None]:
        """The (height, width) to decode at; `None` if only the base class can make that size.

        `decode` resizes with a bicubic filter only, and the result of a `shortest_edge` depends on the file.
        """
        if not do_resize or size is None or resample not in (PILImageResampling.BICUBIC, None):
            return None, None
        sides = dict(get_size_dict(size, default_to_square=True))
        return sides.get("height"), sides.get("width")


def _check_strategy(strategy: str) -> None:
    if strategy not in SAMPLING_STRATEGIES:
        raise ValueError(f"Unknown frame_sampling {strategy!r}. Use one of {', '.join(SAMPLING_STRATEGIES)}.")


def _check_count(count: Any) -> None:
    if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
        raise ValueError(f"num_frames={count!r:.80} must be a whole number of at least 1.")


def _check_rate(fps: Any) -> None:
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps={fps!r:.80} must be a positive number.")


def _sides_of(size: Any) -> list[Any]:
    """The sides that a size names; the library makes an object of a dictionary, with None for the others."""
    return [side for side in dict(size).values() if side is not None]


def _describe(frames: Frames) -> AlproVideoMetadata:
    info = frames.info
    return AlproVideoMetadata(
        total_num_frames=info.num_frames,
        fps=info.fps,
        width=info.width,
        height=info.height,
        duration=info.duration,
        video_backend="pyav",
        frames_indices=frames.indices,
        frames_repeated=frames.repeated,
        frames_timestamps=frames.timestamps,
        hdr=info.hdr,
    )


def _sample_frames(
    video: "torch.Tensor | _Images", given: Any, choose: Any, check: Callable[[VideoMetadata], None]
) -> tuple[torch.Tensor, AlproVideoMetadata]:
    """The chosen frames of an array (T, 3, H, W) or of images, and metadata: `given`, if any, else its shape."""
    held, (height, width) = len(video), video.shape[-2:]
    about = AlproVideoMetadata(held, height=height, width=width, frames_indices=list(range(held)))
    if given is not None:
        about.update({key: value for key, value in dict(given).items() if value is not None})
    own = replace(about, total_num_frames=held, height=height, width=width, frames_timestamps=None)
    check(own)
    if choose is None:
        return video[list(range(held))] if isinstance(video, _Images) else video, about
    chosen = choose(own).tolist()
    numbers = list(about.frames_indices or range(held))  # in the original video, if the caller has sampled before
    if len(numbers) != held:
        raise ValueError(f"video_metadata names {len(numbers)} frames_indices, and the video has {held} frames.")
    about.frames_indices = [numbers[i] for i in chosen]
    about.frames_repeated = len(set(chosen)) < len(chosen)
    if about.frames_timestamps is not None and len(about.frames_timestamps) == held:
        about.frames_timestamps = [about.frames_timestamps[i] for i in chosen]
    return video[chosen], about


class _Images:
    """A clip given as the paths of its frames. Only the frames that are asked for are read."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]], limits: VideoLimits) -> None:
        self.paths, self.limits = paths, limits
        with self._opened(paths[0]) as first:
            turned = first.getexif().get(_EXIF_ORIENTATION, 1) > 4  # a quarter turn, with or without a mirror
            width, height = first.size
        self.shape = (len(paths), 3, width, height) if turned else (len(paths), 3, height, width)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, chosen: list[int]) -> torch.Tensor:
        """uint8 (T, 3, H, W), upright."""
        read: dict[int, Image] = {}
        for i in chosen:
            if i not in read:
                with self._opened(self.paths[i]) as image:
                    try:
                        read[i] = ImageOps.exif_transpose(image).convert("RGB")
                    except (OSError, SyntaxError, ValueError) as error:
                        raise self._error(self.paths[i], error) from error
        return _channels_first(_stack([read[i] for i in chosen]), ChannelDimension.LAST)

    def _opened(self, path: str | os.PathLike[str]) -> Image:
        try:
            image = open_image(path)
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:
            raise self._error(path, error) from error
        width, height = image.size
        self.limits.check("max_pixels", width * height, os.fsdecode(path), "the number of pixels of an image is")
        return image

    @staticmethod
    def _error(path: str | os.PathLike[str], error: Exception) -> NotAVideoError:
        advice = "A list of the paths of images is one clip; replace or leave out this file"
        return NotAVideoError(os.fsdecode(path), f"it is not an image that can be read ({error})", advice)


def _video_limits(given: Any) -> VideoLimits:
    names = [field.name for field in fields(VideoLimits)]
    numbers = isinstance(given, dict) and all(
        value is None or (isinstance(value, int | float) and value > 0) for value in given.values()
    )
    if not numbers or not set(given) <= set(names):
        raise ValueError(
            f"video_limits={given!r} must be a dictionary with the keys {', '.join(names)}, values positive or None."
        )
    return VideoLimits(**given)


def _largest_sides(about: VideoMetadata, size: Any, crop_size: Any) -> tuple[int, int]:
    """Height and width that the frames have at most, here or in the base class, before or after they are cropped."""
    height, width = about.height or 1, about.width or 1
    if size is not None:
        sides = dict(get_size_dict(size, default_to_square=True))
        shortest, longest = sides.get("shortest_edge"), sides.get("longest_edge")
        if shortest:
            height, width = (math.ceil(shortest * side / min(height, width)) for side in (height, width))
        if longest:
            height, width = (min(longest, side) if shortest else longest for side in (height, width))
        height, width = sides.get("height") or height, sides.get("width") or width
    if crop_size is not None:
        sides = dict(get_size_dict(crop_size))
        height, width = max(height, sides.get("height") or 0), max(width, sides.get("width") or 0)
    return height, width


def is_video_source(video: Any) -> bool:
    """Whether an object is a file to decode: a path, bytes or a file object, instead of pixels."""
    return isinstance(video, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(video, "read")


def is_frame(item: Any) -> bool:
    """Whether an object is one image: a `PIL.Image`, or an array or tensor with three dimensions."""
    return isinstance(item, Image) or (isinstance(item, np.ndarray | torch.Tensor) and item.ndim == 3)


def _split(videos: Any) -> list[Any]:
    """The clips of `videos`: files, lists of paths of images, or arrays and tensors with four dimensions.

    A list of videos is flat. A list in it that holds several videos is an error: to which row would they belong?
    """
    videos = file_of(videos)  # of a value of a column of datasets.Video
    if is_column(videos):
        videos = list(videos)
    if is_frame_decoder(videos):
        return [videos]
    one = _as_clip(videos)
    if one is not None:
        return [one]
    if isinstance(videos, np.ndarray | torch.Tensor) and videos.ndim == 5:
        return list(videos)
    if isinstance(videos, list | tuple):
        clips = []
        for place, item in enumerate(videos):
            inner = _split(item)
            if len(inner) != 1:
                raise ValueError(
                    f"videos[{place}] is a {type(item).__name__} of {len(inner)} videos. Pass a flat list of videos. "
                    "A list inside of it is one clip, and holds its frames: images, or paths of images "
                    "(.jpg, .png, ...)."
                )
            clips += inner
        return clips
    shape = f" of shape {tuple(videos.shape)}" if hasattr(videos, "shape") else ""
    raise TypeError(
        "A video is a path, bytes, a binary file object, a value of a column of datasets.Video, a list of images or "
        "of their paths, or an array or tensor of shape (T, H, W, C) or (T, C, H, W), not "
        f"{type(videos).__name__}{shape}."
    )


def _as_clip(video: Any) -> Any:
    """A video that is not a list of videos, as a clip; None for anything else."""
    if is_video_source(video) or is_image_sequence(video):
        return video
    if is_frame(video):
        return _stack([video])
    if isinstance(video, np.ndarray | torch.Tensor) and video.ndim == 4:
        return video
    if isinstance(video, list | tuple) and video and all(is_frame(item) for item in video):
        return _stack(video)
    return None


def _flat(given: Any) -> list[Any]:
    """Flatten `video_metadata` to one description for each clip. The library nests it as it nests videos."""
    if isinstance(given, list | tuple):
        return [description for item in given for description in _flat(item)]
    return [given]


def _stack(frames: Any) -> torch.Tensor:
    arrays = [np.array(f.convert("RGB")) if isinstance(f, Image) else f for f in frames]
    shapes = sorted({tuple(a.shape) for a in arrays})
    if len(shapes) > 1:
        raise ValueError(f"The images of one clip must have one size, got {', '.join(map(str, shapes))}.")
    return torch.stack([torch.as_tensor(a) for a in arrays])


def _channels_first(video: np.ndarray | torch.Tensor, layout: str | ChannelDimension | None) -> torch.Tensor:
    """Reorder to (T, 3, H, W). Grey is repeated, alpha is dropped."""
    if len(video) == 0:
        raise ValueError(f"A video of shape {tuple(video.shape)} has no frames.")
    tensor = torch.as_tensor(video)
    if layout is None:  # a guess: frames 1, 3 or 4 pixels high with the channels last are mistaken
        layout = ChannelDimension.FIRST if tensor.shape[1] in CHANNELS else ChannelDimension.LAST
    if ChannelDimension(layout) == ChannelDimension.LAST:
        tensor = tensor.permute(0, 3, 1, 2)
    channels = tensor.shape[1]
    if channels not in CHANNELS:
        raise ValueError(f"A video of shape {tuple(video.shape)} has no dimension of 1, 3 or 4 channels.")
    return tensor.expand(-1, 3, -1, -1) if channels == 1 else tensor[:, :3]

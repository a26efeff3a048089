import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import RATE, Encoder
from transformers.image_utils import PILImageResampling

from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.model.decoding import decode
from alpro_hf.model.decoding_types import NotAVideoError, VideoDecodeError, VideoTooLargeError
from alpro_hf.model.video_processing_alpro import (
    CLIP_MEAN,
    CLIP_STD,
    SAMPLING_STRATEGIES,
    AlproVideoMetadata,
    AlproVideoProcessor,
    sample_indices,
)

TABLE = json.loads((Path(__file__).parents[1] / "fixtures" / "frame_indices.json").read_text())
CENTERS = [3, 9, 15, 21, 27, 33, 39, 45]  # of 8 segments of 48 frames


@pytest.fixture(scope="module")
def processor() -> AlproVideoProcessor:
    return AlproVideoProcessor(size={"height": 32, "width": 40})


@pytest.fixture(scope="module")
def clip(encode: Encoder) -> Path:
    return encode("h264_key12.mp4")


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(c)[:, None, None] for c in (CLIP_MEAN, CLIP_STD))
    return (pixels.float() / 255 - mean) / std


# --- which frames ---


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row['num_video_frames']}-{row['num_frames']}")
def test_uniform_is_the_reference(row: dict) -> None:
    assert sample_indices(row["num_video_frames"], row["num_frames"], "uniform") == row["reference_uniform"]


def test_center() -> None:
    assert sample_indices(48, 8) == CENTERS
    assert sample_indices(8, 8) == list(range(8))
    assert sample_indices(1, 3) == [0, 0, 0]
    assert sample_indices(3, 8) == [0, 0, 0, 1, 1, 2, 2, 2]
    for n, k in ((7, 4), (100, 8), (299, 16), (5, 1)):
        indices = sample_indices(n, k)
        for i, index in enumerate(indices):
            assert i * n / k <= index < (i + 1) * n / k, "one index in each segment"


@pytest.mark.parametrize("strategy", ["random", "headtail"])
def test_drawn_frames(strategy: str) -> None:
    draws = [
        sample_indices(100, 8, strategy, seed=s, epoch=e, index=i) for s in (0, 1) for e in (0, 1) for i in (0, 1)
    ]
    assert len({tuple(d) for d in draws}) == 8
    for drawn in draws:
        assert drawn == sorted(set(drawn))
        assert 0 <= drawn[0] <= drawn[-1] < 100
    torch.manual_seed(1)  # the global generators do not matter
    np.random.seed(1)
    assert sample_indices(100, 8, strategy, seed=1, epoch=1, index=1) == draws[-1]
    seen = {i for epoch in range(200) for i in sample_indices(20, 4, strategy, epoch=epoch)}
    assert seen == set(range(20))


def test_headtail_takes_half_from_each_half() -> None:
    for epoch in range(20):
        drawn = sample_indices(31, 8, "headtail", epoch=epoch)
        assert sum(i < 15 for i in drawn) == 4


@pytest.mark.parametrize("strategy", SAMPLING_STRATEGIES)
@pytest.mark.parametrize("length", [1, 2, 3, 5, 7])
def test_short_clips_repeat(strategy: str, length: int) -> None:
    indices = sample_indices(length, 8, strategy)
    assert len(indices) == 8
    assert indices == sorted(indices)
    assert all(0 <= i < length for i in indices)
    if strategy != "uniform":
        counts = [indices.count(i) for i in range(length)]
        assert max(counts) - min(counts) <= (1 if strategy != "headtail" else 2)


def test_wrong_sampling_arguments() -> None:
    with pytest.raises(ValueError, match=r"'middle'. Use one of center, uniform, random, headtail"):
        sample_indices(10, 4, "middle")
    with pytest.raises(ValueError, match="num_frames=0"):
        sample_indices(10, 0)
    with pytest.raises(ValueError, match="num_frames_in_video=0"):
        sample_indices(0, 4)
    with pytest.raises(ValueError, match="'middle'"):
        AlproVideoProcessor(frame_sampling="middle")


# --- which pixels ---


def test_defaults(clip: Path) -> None:
    batch = AlproVideoProcessor()(clip)
    assert batch.pixel_values_videos.shape == (1, 8, 3, 224, 224)
    assert batch.pixel_values_videos.dtype == torch.float32
    assert list(batch) == ["pixel_values_videos"]
    expected = normalised(decode(clip, CENTERS, height=224, width=224).pixels)
    torch.testing.assert_close(batch.pixel_values_videos[0], expected, atol=1e-5, rtol=1e-5)


def test_files_are_resized_by_the_decoder(processor: AlproVideoProcessor, clip: Path) -> None:
    expected = normalised(decode(clip, CENTERS, height=32, width=40).pixels)
    torch.testing.assert_close(processor(clip).pixel_values_videos[0], expected, atol=1e-5, rtol=1e-5)
    whole = decode(clip, CENTERS).pixels
    from_array = processor(whole).pixel_values_videos[0]
    assert not torch.equal(from_array, expected)
    assert (from_array - expected).abs().mean() < 0.1, "another bicubic filter, the same picture"


def test_kinds_of_input_in_one_batch(processor: AlproVideoProcessor, clip: Path) -> None:
    whole = decode(clip).pixels
    images = [PIL.Image.fromarray(frame) for frame in whole.permute(0, 2, 3, 1).numpy()]
    videos = [clip, str(clip), clip.read_bytes(), whole, whole.permute(0, 2, 3, 1).numpy(), images, images[0]]
    batch = processor(videos, return_metadata=True)
    pixels = batch.pixel_values_videos
    assert pixels.shape == (7, 8, 3, 32, 40)
    for same in ((0, 1), (0, 2), (3, 4), (3, 5)):
        assert torch.equal(pixels[same[0]], pixels[same[1]])
    assert torch.equal(pixels[6][0], pixels[6][7])
    assert [m.frames_indices for m in batch.video_metadata] == [CENTERS] * 6 + [[0] * 8]
    assert [m.frames_repeated for m in batch.video_metadata] == [False] * 6 + [True]


def test_batches_of_arrays(processor: AlproVideoProcessor) -> None:
    videos = torch.randint(0, 256, (2, 8, 3, 36, 44), dtype=torch.uint8)
    both = processor(videos).pixel_values_videos
    assert both.shape == (2, 8, 3, 32, 40)
    assert torch.equal(processor(list(videos)).pixel_values_videos, both)
    assert torch.equal(processor(list(videos[0])).pixel_values_videos, both[:1]), "a list of frames is one clip"
    with open(__file__, "rb") as file, pytest.raises(NotAVideoError, match=r"test_video_processing_alpro.py"):
        processor([videos[0], file])


def test_grey_and_alpha_arrays(processor: AlproVideoProcessor) -> None:
    rgb = torch.randint(0, 256, (8, 3, 32, 40), dtype=torch.uint8)
    grey = processor(rgb[:, :1]).pixel_values_videos
    assert torch.equal(grey, processor(rgb[:, :1].repeat(1, 3, 1, 1)).pixel_values_videos)
    alpha = torch.cat([rgb, rgb[:, :1]], 1).permute(0, 2, 3, 1)
    assert torch.equal(processor(alpha).pixel_values_videos, processor(rgb).pixel_values_videos)
    image = PIL.Image.new("L", (40, 32), 128)
    assert processor([image] * 3).pixel_values_videos.shape == (1, 8, 3, 32, 40)


def test_metadata_of_files(processor: AlproVideoProcessor, encode: Encoder) -> None:
    times = [1000, *range(2000, 2000 + 100 * 47, 100)]
    slow_start = encode("slow_start.mkv", times=times)
    short = encode("short.mp4", num_frames=5)
    batch = processor([slow_start, short], return_metadata=True)
    first, second = batch.video_metadata
    assert isinstance(first, AlproVideoMetadata)
    assert (first.total_num_frames, first.height, first.width) == (48, 90, 160)
    assert first.fps == pytest.approx(47 / ((times[-1] - times[0]) / 1000))
    assert first.duration == pytest.approx(48 / first.fps)
    middles = [(2 * i + 1) * first.duration / 16 for i in range(8)]  # by time, because the rate varies
    shown = [max(i for i in range(48) if (times[i] - 1000) / 1000 <= middle) for middle in middles]
    assert first.frames_indices == shown != CENTERS
    assert first.timestamps == pytest.approx([(times[i] - 1000) / 1000 for i in shown])
    assert not first.frames_repeated
    assert (second.total_num_frames, second.fps, second.duration) == (5, RATE, 5 / RATE)
    assert second.frames_indices == [0, 0, 1, 2, 2, 3, 4, 4]
    assert second.frames_repeated


def test_frames_of_a_variable_rate_are_chosen_by_time(processor: AlproVideoProcessor, encode: Encoder) -> None:
    """A screen recording: 20 frames a second apart, then 28 in 1.4 seconds."""
    times = [*range(0, 20_000, 1000), *range(20_000, 21_400, 50)]
    path = encode("screen.mp4", times=times)
    for decoder in (None, IsolatedDecoder(processes=1)):
        [metadata] = processor(
            path, fps=0.5, return_metadata=True, **({} if decoder is None else {"decoder": decoder.decode})
        ).video_metadata
        assert metadata.timestamps == pytest.approx([*range(0, 21, 2)])
        if decoder is not None:
            decoder.close()
    [center] = processor(path, num_frames=7, return_metadata=True).video_metadata
    assert np.abs(np.diff(center.timestamps) - center.duration / 7).max() <= 1
    assert 21.3 < center.duration < 21.5
    [uniform] = processor(path, num_frames=4, frame_sampling="uniform", return_metadata=True).video_metadata
    assert uniform.frames_indices == sample_indices(48, 4, "uniform")  # by number, as published


def test_a_slideshow_is_as_long_as_its_last_slide_says(processor: AlproVideoProcessor, encode: Encoder) -> None:
    for name in ("slides.mp4", "slides.mkv"):
        path = encode(name, times=[0, 28_000, 29_000, 57_000], num_frames=4)
        [metadata] = processor(path, num_frames=6, return_metadata=True).video_metadata
        assert 57 <= metadata.duration <= 60
        assert metadata.frames_indices == [0, 0, 0, 2, 2, 2], name  # frame 1 is shown for a second


def test_a_clip_as_paths_of_its_frames(processor: AlproVideoProcessor, clip: Path, tmp_path: Path) -> None:
    whole = decode(clip).pixels
    paths = [tmp_path / f"{i:03}.png" for i in range(48)]
    for path, frame in zip(paths, whole.permute(0, 2, 3, 1).numpy(), strict=True):
        PIL.Image.fromarray(np.ascontiguousarray(frame)).save(path)
    expected = processor(whole, return_metadata=True)
    for videos in (paths, [str(path) for path in paths], [paths], [tuple(paths)]):
        batch = processor(videos, return_metadata=True)
        assert torch.equal(batch.pixel_values_videos, expected.pixel_values_videos)
        assert batch.video_metadata[0].frames_indices == CENTERS
    assert processor([paths[:5], paths[5:], whole]).pixel_values_videos.shape[0] == 3
    paths[CENTERS[0] + 1].write_text("not read")  # only the frames that are sampled are opened
    assert torch.equal(processor(paths).pixel_values_videos, expected.pixel_values_videos)
    paths[CENTERS[0]].write_text("no image")
    with pytest.raises(NotAVideoError, match=r"003\.png: it is not an image"):
        processor(paths)
    with pytest.raises(VideoTooLargeError, match=r"000\.png: the number of pixels of an image is 14,400"):
        processor(paths, video_limits={"max_pixels": 100})


def test_nested_lists_are_not_flattened(processor: AlproVideoProcessor, clip: Path) -> None:
    with pytest.raises(ValueError, match=r"videos\[1\] is a list of 2 videos. Pass a flat list"):
        processor([clip, [clip, clip]])
    with pytest.raises(ValueError, match=r"videos\[0\] is a list of 0 videos"):
        processor([[]])
    assert processor([[clip], [clip]]).pixel_values_videos.shape[0] == 2


def test_a_folder_or_a_pattern_is_no_video(processor: AlproVideoProcessor, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"It is a folder, and a video is one file.*find_videos"):
        processor(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"pattern is not expanded here.*glob"):
        processor(str(tmp_path / "*.mp4"))


UNBOUNDED = {"max_pixels": None, "max_duration": None, "max_file_size": None, "max_decoded_size": None}


@pytest.mark.parametrize(
    "settings",
    [
        {"num_frames": 10**9},
        {"fps": 10**12, "num_frames": None},
        {"fps": 1e300, "num_frames": None},
        {"size": {"height": 30_000, "width": 30_000}},
        {"size": {"shortest_edge": 30_000}},
        {"size": {"longest_edge": 60_000}},
        {"crop_size": {"height": 30_000, "width": 30_000}, "do_center_crop": True},
    ],
    ids=str,
)
def test_settings_of_a_checkpoint_never_loosen_the_limits(settings: dict, clip: Path, tmp_path: Path) -> None:
    AlproVideoProcessor().save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file = file if file.exists() else tmp_path / "video_preprocessor_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **settings, "video_limits": UNBOUNDED}))
    stranger = AlproVideoProcessor.from_pretrained(tmp_path)
    whole = torch.zeros(8, 3, 90, 160, dtype=torch.uint8)
    for video in (clip, whole, [PIL.Image.new("RGB", (160, 90))] * 8):
        options = {"video_metadata": {"fps": 25.0, "total_num_frames": 8}} if video is not clip else {}
        with pytest.raises(VideoTooLargeError, match="max_decoded_size"):
            stranger(video, **options)


def test_limits_are_loosened_in_the_call_alone(clip: Path, encode: Encoder) -> None:
    slow = encode("long.mp4", times=[0, 7 * 3600 * 1000], num_frames=2)
    with pytest.raises(VideoTooLargeError, match="max_duration"):
        AlproVideoProcessor(video_limits=UNBOUNDED)(slow)
    assert AlproVideoProcessor()(slow, video_limits=UNBOUNDED).pixel_values_videos.shape[1] == 8
    strict = AlproVideoProcessor(video_limits={"max_duration": 1})
    with pytest.raises(VideoTooLargeError, match="limit is 1"):
        strict(clip)
    for wrong in ({"max_frames": 3}, {"max_pixels": "many"}, {"max_pixels": -1}, [1]):
        with pytest.raises(ValueError, match="video_limits="):
            AlproVideoProcessor(video_limits=wrong)(clip)
    for wrong in ({"num_frames": "eight"}, {"num_frames": 0}, {"fps": -1.0}, {"fps": float("nan")}):
        with pytest.raises(ValueError, match="must be a"):
            AlproVideoProcessor(**wrong)(clip)


def test_metadata_of_arrays(processor: AlproVideoProcessor) -> None:
    video = torch.zeros(16, 3, 32, 40, dtype=torch.uint8)
    given = {"total_num_frames": 160, "fps": 20.0, "duration": 8.0, "frames_indices": list(range(0, 160, 10))}
    batch = processor(video, video_metadata=given, num_frames=4, return_metadata=True)
    metadata = batch.video_metadata[0]
    assert batch.pixel_values_videos.shape[1] == 4
    assert metadata.frames_indices == [20, 60, 100, 140]
    assert metadata.timestamps == [1.0, 3.0, 5.0, 7.0]
    kept = processor(video, do_sample_frames=False, return_metadata=True)
    assert kept.pixel_values_videos.shape[1] == 16
    assert kept.video_metadata[0].frames_indices == list(range(16))
    with pytest.raises(ValueError, match="names 3 frames_indices, and the video has 16"):
        processor(video, video_metadata={**given, "frames_indices": [1, 2, 3]})


def test_sampling_arguments(processor: AlproVideoProcessor, clip: Path) -> None:
    def indices(videos: object = clip, **kwargs: object) -> list[list[int]]:
        metadata = processor(videos, return_metadata=True, **kwargs).video_metadata
        return [m.frames_indices for m in metadata]

    assert indices(num_frames=3) == [sample_indices(48, 3)]
    assert indices(frame_sampling="uniform") == [sample_indices(48, 8, "uniform")]
    assert indices(do_sample_frames=False) == [list(range(48))]
    assert indices(fps=5.0) == [sample_indices(48, 10)]
    drawn = indices(frame_sampling="random", sampling_seed=4, sampling_epoch=2, sampling_index=9)
    assert drawn == [sample_indices(48, 8, "random", seed=4, epoch=2, index=9)]
    several = indices([clip, clip], frame_sampling="headtail", sampling_index=[5, 9])
    assert several == [sample_indices(48, 8, "headtail", index=i) for i in (5, 9)]
    by_position = indices([clip, clip], frame_sampling="random")
    assert by_position == [sample_indices(48, 8, "random", index=i) for i in (0, 1)]
    with pytest.raises(ValueError, match="frame rate"):
        processor(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), fps=2.0)
    with pytest.raises(ValueError, match="'middle'"):
        processor(clip, frame_sampling="middle")
    with pytest.raises(ValueError, match="2 videos, sampling_index for 3"):
        processor([clip, clip], sampling_index=[1, 2, 3])


def test_metadata_nested_as_the_library_nests_it(processor: AlproVideoProcessor) -> None:
    """One description for each clip, flat or in lists of one, as a dictionary or as an object."""
    arrays = [torch.zeros(8, 3, 16, 16, dtype=torch.uint8), torch.zeros(12, 3, 16, 16, dtype=torch.uint8)]
    rates = [{"total_num_frames": len(array), "fps": len(array) / 2.0, "duration": 2.0} for array in arrays]
    objects = [AlproVideoMetadata(**rate) for rate in rates]
    for given in (rates, [[rate] for rate in rates], objects, [[about] for about in objects], [rates], tuple(rates)):
        batch = processor(arrays, fps=3, video_metadata=given, return_metadata=True)
        assert batch.pixel_values_videos.shape[:2] == (2, 6)
        assert [about.fps for about in batch.video_metadata] == [4.0, 6.0]
    for given in (rates[0], [rates[0]], [[rates[0]]], objects[0], [[objects[0]]]):
        assert processor(arrays[0], fps=3, video_metadata=given).pixel_values_videos.shape[:2] == (1, 6)
    with pytest.raises(ValueError, match=r"Got 2 videos, .* video_metadata for 1"):
        processor(arrays, fps=3, video_metadata=[[rates[0]]])


def test_other_sizes_and_filters(processor: AlproVideoProcessor, clip: Path) -> None:
    assert processor(clip, size=24).pixel_values_videos.shape[-2:] == (24, 24)
    assert processor(clip, do_resize=False).pixel_values_videos.shape[-2:] == (90, 160)
    assert processor(clip, size={"shortest_edge": 30}).pixel_values_videos.shape[-2:] == (30, 53)
    nearest = processor(clip, resample=PILImageResampling.NEAREST).pixel_values_videos
    assert torch.equal(
        nearest, processor(decode(clip).pixels, resample=PILImageResampling.NEAREST).pixel_values_videos
    )
    raw = processor(clip, do_rescale=False, do_normalize=False).pixel_values_videos
    assert torch.equal(raw[0], decode(clip, CENTERS, height=32, width=40).pixels)


def test_return_tensors(processor: AlproVideoProcessor, clip: Path) -> None:
    assert isinstance(processor(clip, return_tensors="np").pixel_values_videos, np.ndarray)


def test_save_and_load(tmp_path: Path, clip: Path) -> None:
    saved = AlproVideoProcessor(
        size={"height": 16, "width": 24}, num_frames=3, frame_sampling="uniform", video_limits={"max_duration": 60.0}
    )
    saved.save_pretrained(tmp_path)
    loaded = AlproVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == saved.to_dict()
    assert torch.equal(loaded(clip).pixel_values_videos, saved(clip).pixel_values_videos)
    assert AlproVideoProcessor.from_pretrained(tmp_path, num_frames=5)(clip).pixel_values_videos.shape[1] == 5


def test_errors_and_limits(processor: AlproVideoProcessor, clip: Path) -> None:
    with pytest.raises(VideoDecodeError, match="allow_url=True"):
        processor("https://example.com/clip.mp4")
    with pytest.raises(ValueError, match="belongs to the call"):
        AlproVideoProcessor(allow_url=True)
    with pytest.raises(VideoTooLargeError, match="max_duration"):
        processor(clip, video_limits={"max_duration": 1.0})
    with pytest.raises(TypeError, match="not int"):
        processor(3)
    with pytest.raises(TypeError, match=r"not ndarray of shape \(5, 5\)"):
        processor(np.zeros((5, 5)))
    with pytest.raises(ValueError, match="empty list"):
        processor([])
    with pytest.raises(ValueError, match="no frames"):
        processor(np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="no dimension of 1, 3 or 4 channels"):
        processor(np.zeros((2, 8, 8, 5), np.uint8))
    with pytest.raises(ValueError, match="one size"):
        processor([PIL.Image.new("RGB", (8, 8)), PIL.Image.new("RGB", (9, 8))])
    with pytest.raises(TypeError, match="takes no argument frame_count"):
        processor(clip, frame_count=3)


def test_library_hooks_work_without_torchcodec(processor: AlproVideoProcessor, clip: Path) -> None:
    pixels, metadata = processor.fetch_videos(clip, processor.sample_frames)
    assert torch.equal(pixels, decode(clip, CENTERS).pixels)
    assert metadata.frames_indices == CENTERS
    videos, several = processor.fetch_videos([clip, clip])
    assert [len(video) for video in videos] == [48, 48]
    assert [m.total_num_frames for m in several] == [48, 48]


@pytest.mark.parametrize("name", ["image_mean", "image_std"])
@pytest.mark.parametrize("value", [[], [0.5], [0.5] * 4])
def test_a_mean_is_of_three_channels(name, value) -> None:
    with pytest.raises(ValueError, match=f"{name}=.* must be three numbers"):
        AlproVideoProcessor(**{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"num_frames": 0},
        {"num_frames": True},
        {"num_frames": "4"},
        {"fps": 0, "num_frames": None},
        {"fps": float("nan")},
        {"size": {"height": 0, "width": 16}},
        {"size": {"height": "16", "width": 16}},
        {"crop_size": {"height": -1, "width": 16}},
        {"resample": 99},
        {"video_limits": "none"},
        {"video_limits": {"max_pixels": -1}},
    ],
    ids=str,
)
def test_settings_that_no_video_can_have_are_an_error_when_the_processor_is_made(settings: dict) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(settings))}=.* (must be|is no filter)"):
        AlproVideoProcessor(**settings)

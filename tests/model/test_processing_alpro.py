import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import Encoder
from transformers import AutoProcessor, AutoTokenizer, BertTokenizer
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from alpro_hf.model.configuration_alpro import AlproConfig
from alpro_hf.model.processing_alpro import AlproProcessor, AlproProcessorKwargs
from alpro_hf.model.video_processing_alpro import AlproVideoProcessor

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "fox",
    "pizza",
    "runs",
    "spins",
    "to",
    "the",
    "left",
    "##s",
]


def make_tokenizer(**kwargs: object) -> BertTokenizer:
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, **kwargs)


@pytest.fixture(scope="module")
def processor() -> AlproProcessor:
    return AlproProcessor(
        AlproVideoProcessor(size={"height": 32, "width": 32}, num_frames=4), make_tokenizer(model_max_length=12)
    )


@pytest.fixture(scope="module")
def clip(encode: Encoder) -> Path:
    return encode("h264_key12.mp4")


def test_one_of_each(processor: AlproProcessor, clip: Path) -> None:
    batch = processor(text="A fox runs", videos=clip)
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values_videos"}
    assert batch.input_ids.tolist() == [[2, 5, 6, 8, 3]]
    assert batch.pixel_values_videos.shape == (1, 4, 3, 32, 32)


def test_arguments_and_their_defaults_are_declared_once(processor: AlproProcessor, clip: Path) -> None:
    assert AlproProcessor.valid_processor_kwargs is AlproProcessorKwargs
    assert AlproProcessorKwargs.__name__ == f"{AlproProcessor.__name__}Kwargs"  # the name that the library looks for
    for own in (getattr(AlproProcessor, "videos_kwargs", {}), AlproProcessorKwargs._defaults.get("videos_kwargs", {})):
        assert not [name for name, value in own.items() if getattr(processor.video_processor, name, None) == value]
    for alone in (processor(videos=clip), processor(text="a fox"), processor(text="a fox", videos=clip)):
        assert all(isinstance(value, torch.Tensor) for value in alone.values())
    arrays = processor(text="a fox", videos=clip, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in arrays.values())


def test_many_of_each(processor: AlproProcessor, clip: Path) -> None:
    batch = processor(text=["a fox runs", "pizza", "the pizza spins"], videos=[clip, str(clip)])
    assert batch.input_ids.shape == (3, 5), "padded to the longest"
    assert batch.attention_mask.sum(1).tolist() == [5, 3, 5]
    assert batch.input_ids[1].tolist() == [2, 7, 3, 0, 0]
    assert batch.pixel_values_videos.shape == (2, 4, 3, 32, 32)


def test_text_or_videos_alone(processor: AlproProcessor, clip: Path) -> None:
    assert set(processor(text="a fox")) == {"input_ids", "attention_mask"}
    assert set(processor(videos=clip)) == {"pixel_values_videos"}
    with pytest.raises(ValueError, match="at least one input"):
        processor()


def test_a_text_or_video_without_its_name_is_refused(processor: AlproProcessor, clip: Path) -> None:
    image = PIL.Image.new("RGB", (8, 8))
    for arguments, options in (((str(clip),), {}), (("a dog",), {}), ((), {"images": image}), ((), {"audio": [0.0]})):
        with pytest.raises(TypeError, match=r"takes text=\.\.\. and videos=\.\.\., by name"):
            processor(*arguments, **options)
    assert "input_ids" in processor(None, "a fox")


def test_texts_without_words_are_named(processor: AlproProcessor) -> None:
    for text, error, words in (
        ("", ValueError, r"text is empty \(''\)"),
        (["a fox", " "], ValueError, r"text\[1\] is empty"),
        (["a fox", "a pizza", None], TypeError, r"text\[2\] is None, not a string"),
        ([7], TypeError, r"text\[0\] is 7"),
        (float("nan"), TypeError, "text is nan"),
    ):
        with pytest.raises(error, match=words):
            processor(text=text)


def test_names_of_videos_among_the_texts(processor: AlproProcessor, encode: Encoder, tmp_path, caplog) -> None:
    """An existing video is no text; a missing one is perhaps a misspelt path."""
    gif = encode("animation.gif", codec="gif", pix_fmt="rgb8", num_frames=4)
    unnamed = tmp_path / "clip.xyz"
    unnamed.write_bytes(encode("h264_key12.mp4").read_bytes())
    for path in (gif, unnamed):
        with pytest.raises(ValueError, match=r"text\[1\]='.*' is a video file.*videos="):
            processor(text=["a fox", str(path)])
    (tmp_path / "notes.txt").write_text("a fox")
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        processor(text=["a fox.", "smal.mp4", str(tmp_path / "notes.txt"), "the fox runs to the left. a pizza"])
    finally:
        library.removeHandler(caplog.handler)
    [warning] = caplog.records
    assert "text[1]='smal.mp4' ends like a video, and there is no such file" in warning.getMessage()


def test_long_text_is_truncated(processor: AlproProcessor) -> None:
    batch = processor(text=["a fox " * 1000, "a"])
    assert batch.input_ids.shape == (2, 12)
    assert batch.input_ids[0, -1] == 3
    assert processor(text="a fox", padding="max_length").input_ids.shape == (1, 12)
    assert processor(text="a fox runs to the left", max_length=5).input_ids.shape == (1, 5)


def test_a_tokenizer_without_limit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set tokenizer\.model_max_length to config"):
        AlproProcessor(AlproVideoProcessor(), make_tokenizer())


def test_arguments_reach_their_part(processor: AlproProcessor, clip: Path) -> None:
    batch = processor(
        text="a fox", videos=clip, num_frames=2, frame_sampling="uniform", size={"height": 16, "width": 24},
        return_metadata=True,
    )  # fmt: skip
    assert batch.pixel_values_videos.shape == (1, 2, 3, 16, 24)
    assert batch.video_metadata[0].frames_indices == [0, 24]
    assert batch.video_metadata[0].fps == 25
    nested = processor(
        text="a fox", videos=clip, videos_kwargs={"num_frames": 2}, text_kwargs={"padding": "max_length"}
    )
    assert nested.pixel_values_videos.shape[1] == 2
    assert nested.input_ids.shape == (1, 12)


def test_decode(processor: AlproProcessor) -> None:
    ids = processor(text=["a fox runs", "pizza"]).input_ids
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["a fox runs", "pizza"]
    assert processor.decode(ids[0], skip_special_tokens=True) == "a fox runs"
    assert set(processor.model_input_names) == {"input_ids", "attention_mask", "pixel_values_videos"}


def test_save_and_load(processor: AlproProcessor, clip: Path, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    AlproConfig().save_pretrained(tmp_path)
    expected = processor(text=["a fox runs", "a " * 50], videos=clip)
    for auto in (AlproProcessor, AutoProcessor):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is AlproProcessor
        assert type(loaded.video_processor) is AlproVideoProcessor
        batch = loaded(text=["a fox runs", "a " * 50], videos=clip)
        assert set(batch) == set(expected)
        for key in expected:
            assert torch.equal(batch[key], expected[key]), key
    assert AutoVideoProcessor.from_pretrained(tmp_path).num_frames == 4
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 12

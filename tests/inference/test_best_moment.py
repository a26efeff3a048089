"""The moment of a film that a text describes: found in memory, and asked about."""

import json
from pathlib import Path

import pytest
import torch

from alpro_hf import bundled_model
from alpro_hf.data.decode_span import span_decoder
from alpro_hf.data.spans import Span, SpanError
from alpro_hf.data.windows import WindowSettings, overlap, stream_windows
from alpro_hf.inference.best_moment import best_moment, encode_windows
from alpro_hf.inference.question_answering import ask
from alpro_hf.loading import load_model
from alpro_hf.model.decoding import decode
from alpro_hf.sprites.films import write_films


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = write_films(
        tmp_path_factory.mktemp("films"), "test", 1, scenes=(5, 5), seconds=(1.5, 3), workers=1, progress=False
    )
    return folder / "films" / "00000.mp4", [json.loads(line) for line in (folder / "moments.jsonl").open()]


@pytest.fixture(scope="module")
def searching() -> tuple:
    model, processor = load_model("retrieval", bundled_model("retrieval"))
    return model.eval(), processor


def test_each_caption_finds_its_scene(film, searching) -> None:
    path, scenes = film
    right = 0
    for scene in scenes:
        moment = best_moment(*searching, path, scene["text"])
        right += overlap(moment.span.start, moment.span.end, scene["start"], scene["end"]) > 0.5
        assert 0 <= moment.match_probability <= 1 and -1 <= moment.similarity <= 1
    assert right >= 4
    with pytest.raises(ValueError, match="blank"):
        best_moment(*searching, path, " ")


def test_windows_are_encoded_as_clips_of_their_frames(film, searching) -> None:
    model, processor = searching
    settings = WindowSettings(lengths=(2,), cuts=None)
    windows = list(encode_windows(model, processor, film[0], settings))
    assert len(windows) > 4 and windows[0][0] == Span(0, 2)
    video = processor.video_processor
    height, width = video.decoded_size()
    frames = torch.as_tensor(decode(film[0], height=height, width=width).pixels)
    cut = stream_windows(film[0], settings, video.num_frames, height=height, width=width)
    for (span, clip), window in zip(windows, cut, strict=True):
        shown = []
        for part, frame in enumerate(window.pixels):
            middle = (span.start + (span.end - span.start) * (part + 0.5) / video.num_frames) * 12
            [same] = (frames == torch.from_numpy(frame)).flatten(1).all(dim=1).nonzero(as_tuple=True)
            shown.append(min(same.tolist(), key=lambda index, middle=middle: abs(index - middle)))
            assert abs(shown[-1] - middle) < 1.01  # frames are fed at a steady rate, so they may be one beside
        seen = processor(videos=frames[shown].permute(0, 2, 3, 1).numpy(), return_tensors="pt")
        with torch.inference_mode():
            alone = model.alpro.get_video_features(seen["pixel_values_videos"]).pooler_output[0]
        torch.testing.assert_close(clip.embed, alone, atol=1e-4, rtol=0)


def test_a_question_is_about_the_frames_of_the_moment(film) -> None:
    model, processor = load_model("qa", bundled_model("qa"))
    model.eval()
    path, scenes = film
    shown: list[list[int]] = []

    def noting(*source, **options):
        frames = decode(*source, **options)
        shown.append(frames.indices)
        return frames

    span = Span(scenes[2]["start"], scenes[2]["end"])
    processor(videos=path, decoder=span_decoder(processor, span, noting))
    [indices] = shown
    assert len(indices) == processor.video_processor.num_frames
    assert all(span.start <= index / 12 < span.end for index in indices) and indices == sorted(indices)
    [moment] = ask(model, processor, path, ["what happens?"], span=span, top_k=3)
    [whole] = ask(model, processor, path, ["what happens?"], top_k=3)
    assert moment != whole
    with pytest.raises(SpanError, match="lasts"):
        ask(model, processor, path, ["what happens?"], span=Span(500, 510))

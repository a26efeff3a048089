"""Captions compete for a clip, and are followed over its time."""

from pathlib import Path

import pytest
import torch

from alpro_hf import AlproForVideoTextRetrieval, AlproModel, AlproProcessor, bundled_model
from alpro_hf.data.spans import Span
from alpro_hf.inference.caption_scores import encode_sliding_windows, score_captions, sliding_windows
from alpro_hf.model.decoding import probe
from alpro_hf.model.matching_alpro import encode_clips
from alpro_hf.sprites.render import write_clip
from alpro_hf.sprites.world import draw_scene

CAPTIONS = ("the balloon sways from side to side", "the bear bounces up and down")


@pytest.fixture(scope="module")
def parts():
    folder = bundled_model("retrieval")
    return AlproForVideoTextRetrieval.from_pretrained(folder).eval(), AlproProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "sequence.mp4"
    write_clip(path, draw_scene("test", 0, 5), size=96)  # first the balloon sways, then the bear bounces
    return path


def test_scores_of_several_captions_are_those_of_each_alone(parts, clip) -> None:
    model, processor = parts
    with torch.inference_mode():
        pixels = processor(videos=str(clip), return_tensors="pt")["pixel_values_videos"]
        [encoded] = encode_clips(model, pixels)
        found = score_captions(model, processor, CAPTIONS, [encoded, encoded])
        assert found.similarity.shape == found.match_probability.shape == (2, 2)
        for i, caption in enumerate(CAPTIONS):
            inputs = processor(text=[caption], videos=str(clip), return_tensors="pt")
            output = model(**inputs)
            match = output.vtm_logits.softmax(dim=1)[0, 1].item()
            assert found.match_probability[i].tolist() == pytest.approx([match] * 2, abs=1e-5)
            similarity = (output.text_embeds @ output.video_embeds.T).item()
            assert found.similarity[i].tolist() == pytest.approx([similarity] * 2, abs=1e-5)


def test_a_model_without_a_matching_head_compares_by_similarity_alone(parts, clip, tmp_path) -> None:
    towers = AlproModel.from_pretrained(bundled_model("retrieval")).eval()
    pixels = parts[1](videos=str(clip), return_tensors="pt")["pixel_values_videos"]
    with torch.inference_mode():
        found = score_captions(towers, parts[1], CAPTIONS, encode_clips(towers, pixels))
    assert found.match_probability is None and found.similarity.shape == (2, 1)


def test_what_happens_first_and_what_happens_then_cross_over_time(parts, clip) -> None:
    info = probe(clip)
    windows, encoded = encode_sliding_windows(*parts, clip, info)
    found = score_captions(*parts, CAPTIONS, encoded)
    first, then = found.similarity
    assert len(windows) == len(first) == 16
    assert windows[0].start == 0 and windows[-1].end == pytest.approx(info.duration)
    lead = first - then
    assert (lead[:5] > 0).all() and lead[:5].mean() > 0.1
    assert (lead[-9:] < -0.25).all()
    half, of_half = encode_sliding_windows(*parts, clip, info, Span(1.0, 2.0), share=0.5, points=3)
    assert [(span.start, span.end) for span in half] == [(1.0, 1.5), (1.25, 1.75), (1.5, 2.0)]
    first, then = score_captions(*parts, CAPTIONS, of_half).similarity
    assert (then > first).all()
    # a window of the whole clip is the clip as the model reads it
    whole, alone = encode_sliding_windows(*parts, clip, info, share=1.0, points=2)
    assert [(span.start, span.end) for span in whole] == [(0, info.duration)] * 2
    pixels = parts[1](videos=str(clip), return_tensors="pt")["pixel_values_videos"]
    with torch.inference_mode():
        assert torch.allclose(alone[0].embed, encode_clips(parts[0], pixels)[0].embed, atol=1e-4)


def test_windows_and_captions_out_of_range_are_refused(parts) -> None:
    for end, *bad in ((1.0, 0.5, 4), (2.0, 0.0, 4), (2.0, 1.5, 4), (2.0, 0.5, 1), (float("nan"), 0.5, 4)):
        with pytest.raises(ValueError, match="received"):
            sliding_windows(Span(1.0, end), *bad)
    for captions in ([], ["a fox", " "]):
        with pytest.raises(ValueError, match="blank"):
            score_captions(*parts, captions, [])
    with pytest.raises(ValueError, match="no clip"):
        score_captions(*parts, ["a fox"], [])

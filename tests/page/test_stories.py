"""HTML of the duel, of captions over time and of the maps of words."""

import re

import pytest
import torch

from alpro_hf.data.spans import Span
from alpro_hf.inference.caption_scores import CaptionScores
from alpro_hf.inference.explain import SentenceMaps, WordMap
from alpro_hf.page.duel_views import KINDS, Measured, duel, kinds
from alpro_hf.page.plots import curves
from alpro_hf.page.trail import trail
from alpro_hf.page.word_maps import word_panels
from alpro_hf.sprites.language import PHRASES
from alpro_hf.sprites.world import PAIRS

CAPTIONS = ("the tiger grows", "the tiger <b>shrinks")


def _scores(similarity: tuple[float, float], match: tuple[float, float] | None) -> CaptionScores:
    return CaptionScores(torch.tensor(similarity)[:, None], None if match is None else torch.tensor(match)[:, None])


@pytest.mark.parametrize(
    ("similarity", "match", "said"),
    [
        ((0.8, 0.5), (0.9, 0.1), "prefers <strong>“the tiger grows”</strong> by both scores."),
        ((0.5, 0.8), (0.1, 0.9), "prefers <strong>“the tiger &lt;b&gt;shrinks”</strong> by both scores."),
        ((0.8, 0.5), (0.1, 0.9), "The two scores disagree"),
        ((0.80, 0.79), (0.31, 0.30), "by a hair"),
        ((0.8, 0.8), (0.4, 0.4), "the same scores"),
        ((0.8, 0.5), None, "by similarity."),
    ],
)
def test_a_duel_says_which_caption_the_scores_prefer(similarity, match, said) -> None:
    html = duel(CAPTIONS, _scores(similarity, match), None, None)
    assert said in html
    assert "<b>" not in html and "How far to trust" not in html
    assert html.count("versus") == (1 if match is None else 2)
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", html)]
    assert widths == pytest.approx([100 * value for value in (*similarity, *(match or ()))], abs=0.06)
    # no bar is marked as the winner where there is none
    assert html.count("track left won") + html.count("track right won") == sum(
        pair is not None and pair[0] != pair[1] for pair in (similarity, match)
    )


def test_what_was_measured_is_said_only_for_its_kind() -> None:
    strong, weak = Measured(98.1, 100.0, 139), Measured(58.8, 53.7, 136)
    html = duel(CAPTIONS, _scores((0.8, 0.5), (0.9, 0.1)), "grow/shrink", strong)
    assert "on 139 test clips that show growing or shrinking" in html
    assert "98 % by VTC and in 100 % by VTM" in html
    assert "close to guessing" not in html
    html = duel(CAPTIONS, _scores((0.8, 0.5), (0.9, 0.1)), "clockwise/counterclockwise", weak)
    assert "close to guessing" in html
    listed = kinds({"clockwise/counterclockwise": weak, "grow/shrink": strong}, ["grow/shrink"])
    assert listed.index("growing") < listed.index("counterclockwise")
    assert listed.count("<button") == 1 and 'data-kind="grow/shrink"' in listed


def test_every_kind_of_opposites_has_its_words() -> None:
    assert KINDS.keys() == {"/".join(pair) for pair in PAIRS} | {"roles", "order", "swapped"}
    assert {action for pair in PAIRS for action in pair} == PHRASES.keys()


def test_curves_lie_on_the_scale_and_name_the_best_moment() -> None:
    windows = [Span(0, 1), Span(0.5, 1.5), Span(1, 2)]
    values = torch.tensor([[0.72, 0.6, 0.51], [0.5, 0.6, 0.79]])
    html = curves(("a <fox", "b"), windows, values, ["x.jpg"] * 4)
    assert "a &lt;fox <small>fits best from 0.0 to 1.0 s, with 0.72" in html
    assert "b <small>fits best from 1.0 to 2.0 s, with 0.79" in html
    assert re.findall(r"<b>(-?[\d.]+)</b>", html) == ["0.5", "0.6", "0.7", "0.8"]
    [first, _] = re.findall(r'points="([^"]+)"', html)
    assert [point.split(",")[0] for point in first.split()] == ["25.00", "50.00", "75.00"]
    tops = [float(point.split(",")[1]) for point in first.split()]
    assert tops == pytest.approx([100 * (0.8 - value) / 0.3 for value in values[0].tolist()], abs=0.01)
    flat = curves(("a",), windows, torch.tensor([[-0.01, 0.0, 0.01]]), ["x.jpg"])
    assert len(re.findall(r"<b>", flat)) == 4  # a flat curve is not blown up


def test_maps_of_all_words_have_one_scale() -> None:
    strong, weak = torch.tensor([[0.0, 0.6], [0.0, 0.0]]), torch.tensor([[0.1, 0.3], [0.0, 0.0]])
    words = [WordMap("<grows", True, strong), WordMap("while", False, weak)]
    html = word_panels("x.jpg", SentenceMaps(0.4, torch.full((2, 2), 0.1), words))
    sentence, grows, while_ = [
        [float(value) for value in re.findall(r'fill-opacity="([\d.]+)"', panel)]
        for panel in html.split("<figure")[1:]
    ]
    assert len(grows) == 4 and min(grows) == 0  # the greatest of all values is as bright as the clip
    assert grows[0] == while_[2] == max(sentence + grows + while_)  # nothing is equally dark everywhere
    assert 0 < sentence[0] < while_[0]  # a quarter of the sentence, a tenth of the words
    assert while_[1] > grows[1]
    assert "<small>60 %</small>" in html and "<small>unknown</small>" in html
    assert "&lt;grows" in html and "Scale from 0 to 60 %" in html


def test_a_trail_shows_what_moves_at_all_its_places() -> None:
    clip = torch.full((4, 3, 8, 8), 100, dtype=torch.uint8)
    for i in range(4):
        clip[i, :, 0, 2 * i] = 220
    picture = trail(clip)
    assert picture.shape == (3, 8, 8) and picture.dtype == torch.uint8
    row = picture[0, 0].tolist()
    assert row[1::2] == [100] * 4
    assert 100 < row[0] < row[2] < row[4] < row[6] == 220  # later is stronger
    moving = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(trail(moving), moving[2])  # where everything moves, one frame

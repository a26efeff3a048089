"""Labels of windows: the nearest ones of a list, with probabilities at the model's temperature."""

import json
from pathlib import Path

import pytest
import torch

from alpro_hf import bundled_model
from alpro_hf.data.windows import WindowSettings
from alpro_hf.inference.label_moments import LabelError, Labeller
from alpro_hf.loading import load_model
from alpro_hf.sprites.films import write_films


@pytest.fixture(scope="module")
def loaded() -> tuple:
    return load_model("retrieval", bundled_model("retrieval"))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = write_films(
        tmp_path_factory.mktemp("films"), "test", 1, scenes=(5, 5), seconds=(1.5, 3), workers=1, progress=False
    )
    return folder / "films" / "00000.mp4", [json.loads(line) for line in (folder / "moments.jsonl").open()]


def test_the_scenes_of_a_film_are_named(loaded, film) -> None:
    path, scenes = film
    texts = [scene["text"] for scene in scenes]
    moments = list(Labeller(*loaded, texts).label(path, top=2, settings=WindowSettings(short=0)))
    assert len(moments) == 5 and all(len(moment.labels) == 2 for moment in moments)
    right = sum(moment.labels[0][0] == text for moment, text in zip(moments, texts, strict=True))
    assert right >= 4
    for moment, scene in zip(moments, scenes, strict=True):
        assert moment.span.start == pytest.approx(scene["start"], abs=0.21)
        assert moment.labels[0][1] >= moment.labels[1][1]
    [whole] = Labeller(*loaded, texts).label(path)  # short: one clip
    assert whole.span is None and len(whole.labels) == 1


def test_probabilities_are_the_softmax_of_the_logits_of_the_model(loaded, film) -> None:
    model, processor = loaded
    labels = ["pizza", "hamster", "scooter"]
    labeller = Labeller(model, processor, labels, "a video of {}")
    [moment] = labeller.label(film[0], top=9)
    expected = []
    with torch.inference_mode():
        for label in labels:
            inputs = processor(text=[f"a video of {label}"], videos=film[0], return_tensors="pt")
            expected.append(model.alpro(**inputs).logits_per_video[0, 0])
    expected = dict(zip(labels, torch.stack(expected).softmax(0).tolist(), strict=True))
    assert dict(moment.labels) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        ([], "{}", "There is no label"),
        (["a", " "], "{}", "one is blank"),
        (["a", "b", "a"], "{}", "'a' occurs twice"),
        (["a"], "a video", "must have {} once"),
        (["a"], "{} and {}", "must have {} once"),
    ],
)
def test_labels_and_templates_that_cannot_be_used(loaded, labels, template, message) -> None:
    with pytest.raises(LabelError, match=message):
        Labeller(*loaded, labels, template)


@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        ([str(number) for number in range(50_000)], "{}", "There are 50,000 labels. Give at most 10,000"),
        (["a", "b " * 1000], "{}", "has 2,000 characters. A label or template has at most 1,000"),
        (["a"], "a " * 1000 + "{}", "has 2,002 characters"),
    ],
)
def test_lists_of_labels_have_bounds(loaded, labels, template, message) -> None:
    """The model reads each of them, which a list of many would make endless."""
    with pytest.raises(LabelError, match=message):
        Labeller(*loaded, labels, template)

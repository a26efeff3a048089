"""What a model cannot know, on real files and the bundled models."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from fixtures import tiny
from fixtures.gallery import write_video
from PIL import Image, ImageDraw

from alpro_hf import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproProcessor, bundled_model
from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.evaluation.unfamiliar import is_sprite_clip, knows_only_sprites, unfamiliar_videos, unknown_words
from alpro_hf.sprites.render import tile_of, write_clip, write_split
from alpro_hf.sprites.world import draw_scene


@pytest.fixture(scope="module")
def decoder() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(processes=1) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def retrieval() -> tuple[Any, Any]:
    folder = bundled_model("retrieval")
    return AlproForVideoTextRetrieval.from_pretrained(folder).eval(), AlproProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def qa() -> tuple[Any, Any]:
    folder = bundled_model("qa")
    return AlproForVideoQuestionAnswering.from_pretrained(folder).eval(), AlproProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, draw_scene("test", 0, 0))
    return path


def remux(source: Path, target: Path) -> Path:
    """The same packets in another container, with the metadata, as `ffmpeg -c copy` writes it."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        new.metadata.update(old.metadata)
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return target


@pytest.mark.parametrize("size", [64, 128, 192])
@pytest.mark.parametrize("split", ["train", "test-hard", "test-unseen"])
def test_every_rendered_clip_is_known(split: str, size: int, decoder: IsolatedDecoder, tmp_path: Path) -> None:
    for path in write_split(tmp_path, split, 2, size=size, num_frames=8, progress=False).glob("clips/*.mp4"):
        assert is_sprite_clip(path, decoder)


@pytest.mark.parametrize("name", ["copy.mkv", "copy.mov", "copy"])
def test_copies_under_any_name_are_known(name: str, clip: Path, decoder: IsolatedDecoder, tmp_path: Path) -> None:
    target = tmp_path / name
    if "." in name:
        remux(clip, target)
    else:
        target.write_bytes(clip.read_bytes())
    assert is_sprite_clip(target, decoder)


def reencode(source: Path, target: Path, size: int, crf: int) -> Path:
    """The clip decoded and encoded again without its metadata, in another size."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream("libx264", rate=12, options={"crf": str(crf), "threads": "1"})
        stream.width = stream.height = size
        for frame in old.decode(video=0):
            new.mux(stream.encode(frame.reformat(size, size, "yuv420p")))
        new.mux(stream.encode())
    return target


@pytest.mark.parametrize(("size", "crf"), [(128, 24), (256, 32)])
def test_copies_without_the_mark_are_known_by_their_pictures(
    size: int, crf: int, decoder: IsolatedDecoder, tmp_path: Path
) -> None:
    for number, (split, index) in enumerate([("test", 4), ("test", 6), ("test", 9)]):
        original = tmp_path / f"{number}.mp4"
        write_clip(original, draw_scene(split, 0, index))
        copy = reencode(original, tmp_path / f"{number}-copy.mp4", size, crf)
        assert decoder.probe(copy).comment == ""
        assert is_sprite_clip(copy, decoder)


def picture(kind: str, moment: int, side: int = 128) -> np.ndarray:
    """A frame of a square video that is not of the sprite world."""
    image = Image.new("RGB", (side, side), (244, 240, 230))
    draw = ImageDraw.Draw(image)
    if kind == "noise":
        return np.random.default_rng(moment).integers(0, 256, (side, side, 3), dtype=np.uint8)
    if kind == "gradient":
        ramp = (np.linspace(0, 200, side)[:, None] + np.linspace(0, 50, side)[None] + 4 * moment) % 256
        return np.stack([ramp, 255 - ramp, ramp / 2], axis=-1).astype(np.uint8)
    if kind == "slides":
        for line in range(8):
            draw.text((6, 6 + 15 * line), f"point {line + 8 * (moment // 4)}: results", fill=(20, 20, 60))
    if kind == "disc":
        draw.ellipse((20 + 3 * moment, 40, 60 + 3 * moment, 80), fill=(240, 60, 40))
    if kind == "square":
        draw.rectangle((30, 20 + 3 * moment, 70, 60 + 3 * moment), fill=(60, 120, 220))
    if kind == "still sprite":  # pictograms occur elsewhere, too; in the sprite world they do something
        tile = tile_of("fox", 44)
        image.paste(tile, (40, 40), tile)
    return np.asarray(image)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "gradient", "slides", "disc", "square", "still sprite"])
def test_square_videos_of_other_things_are_not(kind: str, decoder: IsolatedDecoder, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"threads": "1"})
        stream.width = stream.height = 128
        stream.pix_fmt = "yuv420p"
        for moment in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(kind, moment), format="rgb24")))
        container.mux(stream.encode())
    assert not is_sprite_clip(path, decoder)


def test_other_videos_are_not(
    real_clips: dict[str, Path], clip: Path, decoder: IsolatedDecoder, tmp_path: Path, retrieval: tuple[Any, Any]
) -> None:
    named = tmp_path / "alpro-demo" / "test" / "clips" / "00000.mp4"  # the name says nothing
    others = [*real_clips.values(), write_video(named, seed=0, size=128)]
    broken = tmp_path / "broken.mp4"
    broken.write_text("not a video")
    paths = [others[0], clip, broken, tmp_path / "gone.mp4", *others[1:]]
    assert unfamiliar_videos(retrieval[0], paths, decoder) == others


def test_the_folder_of_a_model_says_what_it_knows(
    retrieval: tuple[Any, Any], real_clips: dict[str, Path], decoder: IsolatedDecoder, tmp_path: Path
) -> None:
    retrieval[0].save_pretrained(tmp_path / "copy")
    assert knows_only_sprites(AlproForVideoTextRetrieval.from_pretrained(tmp_path / "copy"))
    other = AlproForVideoTextRetrieval(tiny.config())
    assert not knows_only_sprites(other)
    assert unfamiliar_videos(other, real_clips.values(), decoder) == []


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("the squirrel, grows quickly", ["squirrel", "quickly"]),
        ("A Dog moves UP", []),
        ("a kangaroo spins clockwise", ["kangaroo"]),  # a sprite that training never shows
        ("but a dog, not 2 of them", ["but", "not", "2", "them"]),  # "but" is a part of "butterfly" in the vocabulary
        ("a dog dogs a dog", ["dogs"]),
        ("ein Hund läuft", ["ein", "Hund", "läuft"]),
        ("how many animals", ["how", "many", "animals"]),  # no caption has them
        ("a dog.", []),
    ],
)
def test_words_that_training_never_had(retrieval: tuple[Any, Any], text: str, unknown: list[str]) -> None:
    assert unknown_words(*retrieval, text) == unknown


def test_words_of_questions(qa: tuple[Any, Any]) -> None:
    assert unknown_words(*qa, "how many animals can you see?") == []
    assert unknown_words(*qa, "why does the dog bark?") == ["why", "bark"]


def test_an_unchanged_file_is_opened_once_and_a_changed_one_again(retrieval, clip, tmp_path, monkeypatch) -> None:
    opened: list[Path] = []
    with IsolatedDecoder(processes=1) as decoder:
        comment = decoder.comment
        monkeypatch.setattr(decoder, "comment", lambda path: opened.append(path) or comment(path))
        path = tmp_path / "clip.mp4"
        path.write_bytes(clip.read_bytes())
        assert [unfamiliar_videos(retrieval[0], [path], decoder) for _ in range(2)] == [[], []]
        assert opened == [path]
        write_video(path, 0)
        assert [unfamiliar_videos(retrieval[0], [path], decoder) for _ in range(2)] == [[path], [path]]
        assert opened == [path, path]
        path.unlink()
        assert unfamiliar_videos(retrieval[0], [path], decoder) == []  # passed over, as before

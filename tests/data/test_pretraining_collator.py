"""Batches for pre-training: from real clips and images, what is drawn and by what, cached pseudo-labels, lost rows."""

import io
import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import BertTokenizer

from alpro_hf import AlproConfig, AlproForPreTraining
from alpro_hf.data.augmentation import AlproAugmentation, draw_crop
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.images import ImageDecodeError, read_image
from alpro_hf.data.mixed_rows import MixedRows
from alpro_hf.data.pretraining_collator import AlproPreTrainingCollator
from alpro_hf.data.rows import Draw, NumberedRows
from alpro_hf.model.decoding import decode
from alpro_hf.model.processing_alpro import AlproProcessor
from alpro_hf.model.video_processing_alpro import AlproVideoProcessor, sample_indices

FRAMES, SIZE, PATCH = 4, 32, 8
WORDS = [
    "the",
    "cat",
    "dog",
    "car",
    "road",
    "tree",
    "house",
    "man",
    "woman",
    "child",
    "ball",
    "runs",
    "stands",
    "green",
    "red",
    "blue",
    "on",
    "under",
    "near",
    "a",
]
TEXT = "the cat runs on the green road near a red house"


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def make_processor():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return AlproProcessor(
        AlproVideoProcessor(num_frames=FRAMES, size={"height": SIZE, "width": SIZE}),
        BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=40),
    )


def collator(processor, augment=True, **options):
    if augment:
        options |= {f"{kind}_augmentation": AlproAugmentation(kind, SIZE) for kind in ("video", "image")}
    return AlproPreTrainingCollator(processor, **{"patch_size": PATCH, **options})


@pytest.fixture(scope="module")
def clips(encode) -> list[Path]:
    return [encode(f"pretraining-{frames}.mp4", num_frames=frames) for frames in (48, 40, 30, 5)]


@pytest.fixture(scope="module")
def images(source_frames, tmp_path_factory) -> list[Path]:
    """Pictures of 160 x 90 pixels in several formats."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / name for name in ("a.jpg", "b.png", "c.webp", "d.bmp")]
    for path, frame in zip(paths, source_frames[::10], strict=False):
        Image.fromarray(frame).save(path)
    return paths


def rows_of(kind, sources, epoch=0, **fields):
    texts = (TEXT, "a dog", "the man near the tree", "a child on a blue ball")
    return [
        {kind: source, "text": texts[i % 4], "index": i, "epoch": epoch, **fields} for i, source in enumerate(sources)
    ]


# ------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_batch_has_what_the_model_reads(processor, clips, images, kind):
    sources = clips if kind == "video" else images
    batch = collator(processor)(rows_of(kind, sources))
    length = 2 + len(TEXT.split())
    shapes = {
        "input_ids": ((4, length), torch.int64),
        "attention_mask": ((4, length), torch.int64),
        "pixel_values_videos": ((4, FRAMES, 3, SIZE, SIZE), torch.float32),
        "mlm_input_ids": ((4, length), torch.int64),
        "mlm_labels": ((4, length), torch.int64),
        "crop_mask": ((4, 4, 4), torch.bool),
        "black": ((3,), torch.float32),
        "video_ids": ((4,), torch.int64),
        "text_ids": ((4,), torch.int64),
        "row_ids": ((4,), torch.int64),
    }
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items() if name != "kind"} == shapes
    assert batch["kind"] == kind
    assert batch["pixel_values_videos"].is_contiguous()
    assert len(set(batch["video_ids"].tolist())) == 4
    assert batch["row_ids"].tolist() == [0, 1, 2, 3]

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = AlproForPreTraining(
        AlproConfig(
            text_config={**sizes, "vocab_size": len(WORDS) + 5, "fusion_layer": 1},
            video_config={**sizes, "image_size": SIZE, "patch_size": PATCH, "num_frames": FRAMES},
            entities=["cat", "dog"],
        )
    )
    targets = torch.tensor([[0.9, 0.1]] * 4)
    inputs = {name: value for name, value in batch.items() if name not in ("kind", "black", "row_ids")}
    outputs = model(**inputs, pem_targets=targets, return_loss=True)
    for name in ("loss", "loss_mlm", "loss_pem", "loss_vtm", "loss_vtc"):
        assert getattr(outputs, name) > 0, name


def test_all_ways_to_give_a_video_are_one(processor, clips):
    path = clips[0]
    content = path.read_bytes()
    ways = [path, str(path), content, {"bytes": None, "path": str(path)}, {"bytes": content, "path": "elsewhere.mp4"}]
    batches = [collator(processor)(rows_of("video", [way])) for way in ways]
    for batch in batches[1:]:
        assert torch.equal(batch["pixel_values_videos"], batches[0]["pixel_values_videos"])
    named = [batch["video_ids"].item() for batch in batches]
    assert named[0] == named[1] == named[3] != named[2] == named[4]


def test_all_ways_to_give_an_image_are_one(processor, images):
    path = images[1]
    content = path.read_bytes()
    ways = [
        path,
        str(path),
        content,
        {"bytes": content, "path": None},
        {"bytes": None, "path": path},
        Image.open(path),
    ]
    batches = [collator(processor)(rows_of("image", [way])) for way in ways]
    for batch in batches[1:]:
        assert torch.equal(batch["pixel_values_videos"], batches[0]["pixel_values_videos"])
    assert isinstance(batches[-1]["video_ids"].item(), int)


def test_an_image_is_a_still_clip(processor, images):
    frames = collator(processor)(rows_of("image", images))["pixel_values_videos"]
    assert torch.equal(frames, frames[:, :1].expand_as(frames))
    one = collator(processor, image_frames=1)(rows_of("image", images))["pixel_values_videos"]
    assert torch.equal(one, frames[:, :1])


def test_images_are_upright_and_rgb(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0] = 200, 100, 50
    sideways = Image.fromarray(np.rot90(pixels).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    sideways.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), pixels)
    transparent = Image.fromarray(np.dstack([pixels, np.full((4, 6), 9, np.uint8)]))
    assert np.array_equal(read_image(transparent), pixels)
    grey = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(grey, "png")
    assert np.array_equal(read_image(grey.getvalue()), np.repeat(pixels[..., :1], 3, axis=2))


def test_a_clip_is_decoded_at_the_size_that_the_augmentation_starts_from(processor, clips):
    batch = collator(processor, seed=5)(rows_of("video", clips, epoch=3))
    augment = AlproAugmentation("video", SIZE)
    height, width = augment.input_size
    for i, path in enumerate(clips):
        frames = decode(
            path,
            lambda info, i=i: sample_indices(info.num_frames, FRAMES, "headtail", seed=5, epoch=3, index=i),
            height=height,
            width=width,
        ).pixels
        drawn = augment(frames, Draw(5, 3, i).generator("augmentation"))
        expected = processor.video_processor(drawn, do_resize=False)["pixel_values_videos"][0]
        assert torch.equal(batch["pixel_values_videos"][i], expected)


def test_an_image_is_cut_before_it_is_resized(processor, images):
    batch = collator(processor, seed=5)(rows_of("image", images, epoch=3))
    for i, path in enumerate(images):
        frame = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
        drawn = AlproAugmentation("image", SIZE)(frame, Draw(5, 3, i).generator("augmentation"))
        expected = processor.video_processor(drawn, do_resize=False)["pixel_values_videos"][0]
        assert torch.equal(batch["pixel_values_videos"][i], expected)


def test_decoded_clips_are_augmented_too(processor, source_frames):
    clip = source_frames[:10].copy()
    batch = collator(processor)(rows_of("video", [clip]))
    chosen = sample_indices(10, FRAMES, "headtail", seed=42, epoch=0, index=0)
    frames = torch.from_numpy(clip[chosen]).permute(0, 3, 1, 2)
    drawn = AlproAugmentation("video", SIZE)(frames, Draw(42, 0, 0).generator("augmentation"))
    expected = processor.video_processor(drawn, do_resize=False)["pixel_values_videos"]
    # the processor resizes the square first
    assert (batch["pixel_values_videos"] - expected).abs().mean() < 0.01


def test_black_is_a_black_pixel(processor):
    clip = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
    batch = collator(processor, augment=False)([{"video": clip, "text": "a cat"}])
    assert torch.equal(batch["pixel_values_videos"][0, 0, :, 0, 0], batch["black"])
    plain = make_processor()
    plain.video_processor.do_normalize = False
    assert collator(plain, augment=False)([{"video": clip, "text": "a cat"}])["black"].tolist() == [0, 0, 0]


# --------------------------------------------------------------------------------------------------------------- draws


def test_streams_of_numbers_stay_the_same_between_versions():
    """Cached pseudo-labels would go with other crops."""
    assert Draw(42, 1, 7).generator("crop").initial_seed() == 0xEB5204FC09A39291
    assert Draw(42, 1, 7).generator("augmentation").initial_seed() == 0x51B87D67281A34C0
    assert Draw(42, 1, 7).generator("masking").initial_seed() == 0xF99997292211A28C


DRAWN = ("pixel_values_videos", "crop_mask", "mlm_input_ids", "mlm_labels")


def drawn_from(batch, rows=slice(None)):
    return {name: batch[name][rows] for name in DRAWN if name in batch}


@pytest.mark.parametrize("kind", ["video", "image"])
def test_rows_depend_on_seed_epoch_and_index_alone(processor, clips, images, kind):
    rows = rows_of(kind, clips if kind == "video" else images)
    whole = collator(processor)(rows)
    torch.manual_seed(1)
    np.random.seed(1)
    again = collator(processor)(rows[::-1])
    alone = collator(processor)(rows[2:3])  # with a shorter padding
    for name in DRAWN:
        assert torch.equal(whole[name], again[name].flip(0)), name
        assert torch.equal(whole[name][2:3, ..., : alone[name].shape[-1]], alone[name]), name
    for change in ({"epoch": 1}, {"index": 9}):
        other = collator(processor)([{**rows[0], **change}, *rows[1:]])
        for name in ("pixel_values_videos", "crop_mask", "mlm_labels"):
            assert not torch.equal(other[name][0], whole[name][0]), name
            assert torch.equal(other[name][1:], whole[name][1:]), name
    assert not torch.equal(collator(processor, seed=1)(rows)["crop_mask"], whole["crop_mask"])


def test_what_is_drawn_for_one_purpose_does_not_depend_on_the_others(processor, clips):
    rows = rows_of("video", clips)
    whole = collator(processor)(rows)
    without_masks = collator(processor, mlm_probability=0)(rows)
    without_boxes = collator(processor, pem=False)(rows)
    without_augmentation = collator(processor, augment=False)(rows)
    assert not {"mlm_input_ids", "mlm_labels"} & without_masks.keys()
    assert not {"crop_mask", "black", "pem_targets"} & without_boxes.keys()
    for name in ("pixel_values_videos", "crop_mask"):
        assert torch.equal(without_masks[name], whole[name])
    for name in ("pixel_values_videos", "mlm_input_ids", "mlm_labels"):
        assert torch.equal(without_boxes[name], whole[name])
    for name in ("crop_mask", "mlm_input_ids", "mlm_labels"):
        assert torch.equal(without_augmentation[name], whole[name])
    assert not torch.equal(without_augmentation["pixel_values_videos"], whole["pixel_values_videos"])


def test_boxes_are_those_of_the_grid(processor, clips):
    batch = collator(processor, seed=3)(rows_of("video", clips, epoch=2))
    for i in range(4):
        assert torch.equal(batch["crop_mask"][i], draw_crop((4, 4), Draw(3, 2, i).generator("crop")))


@pytest.mark.parametrize("kind", ["video", "image"])
def test_evaluation_has_no_chance_in_its_frames(processor, clips, images, kind):
    sources = clips if kind == "video" else images
    rows = [{key: value for key, value in row.items() if key != "epoch"} for row in rows_of(kind, sources)]
    batch = collator(processor)(rows)
    pictures = sources if kind == "video" else [read_image(path) for path in sources]
    expected = [processor.video_processor(picture)["pixel_values_videos"] for picture in pictures]
    assert torch.equal(batch["pixel_values_videos"], torch.cat(expected))
    trained = collator(processor)(rows_of(kind, sources))
    for name in ("crop_mask", "mlm_input_ids", "mlm_labels"):
        assert torch.equal(batch[name], trained[name])
    unnumbered = collator(processor)([{key: value for key, value in row.items() if key != "index"} for row in rows])
    for name in DRAWN:
        assert torch.equal(batch[name], unnumbered[name])
    assert "row_ids" not in unnumbered


def test_words_are_masked_as_in_bert(processor):
    clip = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
    rows = [{"video": clip, "text": TEXT, "index": i, "epoch": 0} for i in range(600)]
    batch = collator(processor, augment=False, pem=False)(rows)
    ids, masked, labels = batch["input_ids"], batch["mlm_input_ids"], batch["mlm_labels"]
    tokenizer = processor.tokenizer
    chosen = labels != -100
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert special.any() and not (chosen & special).any()
    words = int((~special).sum())
    assert abs(int(chosen.sum()) / words - 0.15) < 4 * (0.15 * 0.85 / words) ** 0.5
    count = int(chosen.sum())
    became_mask = (masked == tokenizer.mask_token_id) & chosen
    assert abs(int(became_mask.sum()) / count - 0.8) < 4 * (0.8 * 0.2 / count) ** 0.5
    other = chosen & ~became_mask & (masked != ids)
    assert abs(int(other.sum()) / count - 0.1) < 4 * (0.1 * 0.9 / count) ** 0.5
    assert (labels == -100).all(dim=1).any(), "a short text may keep all its words"


# ------------------------------------------------------------------------------------------------ cached pseudo-labels


def test_cached_pseudo_labels_bring_back_their_crop(processor, clips):
    targets = [np.array([0.7, 0.2, 0.1], np.float16)] * 4
    cache = {"pem_seed": 8, "pem_epoch": 1}
    rows = [
        {**row, **cache, "pem_index": 30 + i, "pem_targets": targets[i]}
        for i, row in enumerate(rows_of("video", clips, epoch=6))
    ]
    batch = collator(processor)(rows)
    then = collator(processor, seed=8)([{**row, "epoch": 1, "index": 30 + i} for i, row in
                                        enumerate(rows_of("video", clips))])  # fmt: skip
    now = collator(processor)(rows_of("video", clips, epoch=6))
    for name in ("pixel_values_videos", "crop_mask"):
        assert torch.equal(batch[name], then[name])
        assert not torch.equal(batch[name], now[name])
    for name in ("mlm_input_ids", "mlm_labels"):
        assert torch.equal(batch[name], now[name])
    assert batch["pem_targets"].dtype == torch.float32
    torch.testing.assert_close(batch["pem_targets"], torch.tensor([[0.7, 0.2, 0.1]] * 4), atol=1e-3, rtol=0)

    evaluated = collator(processor)([{k: v for k, v in row.items() if k != "epoch"} for row in rows])
    assert torch.equal(evaluated["pixel_values_videos"], then["pixel_values_videos"])
    ignored = collator(processor, pem=False)(rows)
    assert torch.equal(ignored["pixel_values_videos"], now["pixel_values_videos"])
    assert "pem_targets" not in ignored
    some = collator(processor)([*rows[:3], {**rows[3], "pem_targets": None}])
    assert "pem_targets" not in some
    assert torch.equal(some["crop_mask"], torch.cat([then["crop_mask"][:3], now["crop_mask"][3:]]))


def test_labels_without_their_draw_are_refused(processor, clips):
    row = rows_of("video", clips)[0] | {"pem_targets": [0.5, 0.5], "pem_seed": 1, "pem_epoch": 0}
    with pytest.raises(ValueError, match=r"pem_index.*alpro pseudo-label"):
        collator(processor)([row])


# ----------------------------------------------------------------------------------------------------------- lost rows


@pytest.fixture
def broken(tmp_path, images, encode):
    """Kind -> files that look like it and cannot be decoded."""
    (tmp_path / "garbage.jpg").write_bytes(b"no picture at all" * 100)
    (tmp_path / "half.jpg").write_bytes(images[0].read_bytes()[:1500])
    png = bytearray(images[1].read_bytes())
    png[len(png) // 2] ^= 0xFF
    (tmp_path / "flipped.png").write_bytes(png)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "half.mp4").write_bytes(encode("pretraining-48.mp4").read_bytes()[:2000])
    names = {"image": ("garbage.jpg", "half.jpg", "flipped.png", "empty.png"), "video": ("garbage.jpg", "half.mp4")}
    return {kind: [tmp_path / name for name in (*files, "missing.file")] for kind, files in names.items()}


@pytest.mark.parametrize("kind", ["video", "image"])
def test_what_is_broken_loses_its_row_and_nothing_else(processor, clips, images, broken, kind, caplog):
    whole = clips if kind == "video" else images
    sources = [broken[kind][0], whole[0], *broken[kind][1:], whole[1]]
    rows = rows_of(kind, sources)
    collate = collator(processor)
    with caplog.at_level(logging.WARNING, logger="alpro_hf"):
        batch = collate(rows)
    kept = [1, len(rows) - 1]
    alone = collator(processor)([rows[i] for i in kept])
    for name in alone:
        assert name == "kind" or torch.equal(batch[name], alone[name]), name
    assert batch["row_ids"].tolist() == kept
    assert collate.dropped == len(broken[kind])
    for path in broken[kind]:
        assert path.name in caplog.text
    collated = collator(processor).collate(rows)
    assert sorted(collated.failures) == [i for i in range(len(rows)) if i not in kept]
    assert [row["index"] for row in collated.rows] == kept


def test_a_batch_without_any_row_left_names_the_images(processor, broken):
    with pytest.raises(ValueError, match=r"(?s)batch of 5.*garbage\.jpg.*flipped\.png"):
        collator(processor)(rows_of("image", broken["image"]))
    assert collator(processor).collate(rows_of("image", broken["image"])).batch == {}


def test_damaged_images_are_named(broken):
    for path in broken["image"][:4]:
        with pytest.raises(ImageDecodeError, match=path.name):
            read_image(path)
    with pytest.raises(ImageDecodeError, match="1700 bytes"):
        read_image(broken["image"][0].read_bytes())
    with pytest.raises(TypeError, match="float"):
        read_image(3.5)


# ----------------------------------------------------------------------------------------------------- wrong arguments


def test_kinds_do_not_mix(processor, clips, images):
    rows = [*rows_of("video", clips[:2]), *rows_of("image", images[:1])]
    with pytest.raises(ValueError, match=r"row 0 .* video and row 2 an image.*MixedRows"):
        collator(processor)(rows)
    assert collator(processor)([{**row, "image": None} for row in rows[:2]])["kind"] == "video"
    with pytest.raises(ValueError, match="video and image"):
        collator(processor)([{**rows[0], "image": images[0]}])
    with pytest.raises(ValueError, match=r"neither.*'clip'"):
        collator(processor)([{"clip": clips[0], "text": "a cat"}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlm_probability": 1.5}, "mlm_probability=1.5"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"image_frames": 0}, "image_frames=0"),
        ({"train_sampling": "middle"}, "headtail"),
    ],
)
def test_wrong_arguments_are_refused(processor, options, message):
    with pytest.raises(ValueError, match=message):
        collator(processor, **options)


def test_a_grid_that_does_not_fit_is_refused(processor, clips):
    with pytest.raises(ValueError, match=r"32 x 32 pixels.*patches of 12"):
        collator(processor, patch_size=12)(rows_of("video", clips))


def test_a_missing_field_or_source_is_named(processor, clips):
    with pytest.raises(KeyError, match=r"'text'.*caption"):
        collator(processor)([{"video": clips[0], "caption": "a cat"}])
    with pytest.raises(ValueError, match="'bytes' or a 'path'"):
        collator(processor)([{"video": {"bytes": None, "path": None}, "text": "a cat"}])
    with pytest.raises(ValueError, match="NumberedRows"):
        collator(processor)([{"video": clips[0], "text": "a cat", "epoch": 0}])


def test_decoded_clips_must_be_bytes(processor):
    with pytest.raises(TypeError, match=r"uint8.*float32"):
        collator(processor)([{"video": np.zeros((4, 8, 8, 3), np.float32), "text": "a cat"}])


# ------------------------------------------------------------------------------------------------------------- loaders


def test_mixed_sources_in_worker_processes(processor, clips, images):
    """Undecoded columns of the library, read in this process and in workers."""
    videos = datasets.Dataset.from_dict({"video": list(map(str, clips)), "text": ["a cat"] * 4})
    pictures = datasets.Dataset.from_dict(
        {"image": list(map(str, images)), "text": ["a dog"] * 4},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )

    def batches(workers):
        rows = MixedRows({"videos": videos, "images": pictures}, steps=6, batch_size=2, seed=1)
        return list(DataLoader(rows, batch_size=2, num_workers=workers, collate_fn=collator(processor)))

    here, there = batches(0), batches(1)
    assert {batch["kind"] for batch in here} == {"video", "image"}
    for one, other in zip(here, there, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == other[name] if name == "kind" else torch.equal(one[name], other[name]), name


def test_fine_tuning_is_augmented_in_training_alone(processor, clips):
    augment = AlproAugmentation("finetune", SIZE)
    rows = [{"video": path, "text": "a cat"} for path in clips]
    plain, augmented = AlproCollator(processor), AlproCollator(processor, augmentation=augment)
    evaluated = augmented(NumberedRows(rows).__getitems__([0, 1, 2, 3]))["pixel_values_videos"]
    assert torch.equal(evaluated, processor.video_processor(clips)["pixel_values_videos"])
    training = NumberedRows(rows, training=True)
    trained = augmented(training.__getitems__([0, 1, 2, 3]))["pixel_values_videos"]
    unchanged = plain(training.__getitems__([0, 1, 2, 3]))["pixel_values_videos"]
    assert not torch.equal(trained, unchanged)
    raw = decode(clips[1], lambda info: sample_indices(info.num_frames, FRAMES, "headtail", seed=42, index=1),
                 height=SIZE, width=SIZE).pixels  # fmt: skip
    expected = augment(raw, Draw(42, 0, 1).generator("augmentation"))
    assert torch.equal(trained[1], processor.video_processor(expected, do_resize=False)["pixel_values_videos"][0])

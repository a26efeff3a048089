"""Pseudo-labels kept beside the rows: right, resumable, and as good in training as those made on the fly."""

import json
import logging

import datasets
import numpy as np
import pytest
import torch
from fixtures import colours
from PIL import Image
from transformers import BertTokenizer

from alpro_hf.cli.main import main
from alpro_hf.data.augmentation import AlproAugmentation
from alpro_hf.data.load_rows import read_rows
from alpro_hf.data.pretraining_collator import AlproPreTrainingCollator
from alpro_hf.data.rows import NumberedRows
from alpro_hf.model.loss_alpro import crop_on_black
from alpro_hf.model.pretraining_alpro import AlproForPreTraining, AlproPrompterModel
from alpro_hf.model.processing_alpro import AlproProcessor
from alpro_hf.model.video_processing_alpro import AlproVideoProcessor
from alpro_hf.training import pseudo_labels
from alpro_hf.training.pseudo_labels import PseudoLabelError, pseudo_label, read_skipped, summarise

SIZE, PATCH = 32, 8  # a grid of 4 x 4 patches
ENTITIES = ["red", "green", "blue", "white", "colour"]


@pytest.fixture(scope="module")
def processor():
    vocab = {word: i for i, word in enumerate(colours.WORDS)}
    return AlproProcessor(
        AlproVideoProcessor(num_frames=4, size={"height": SIZE, "width": SIZE}),
        BertTokenizer(vocab=vocab, model_max_length=16),
    )


def config():
    small = colours.config(entities=ENTITIES)
    small.video_config.image_size = SIZE
    small.video_config.position_initializer_range = 0.02  # so that clips differ by their pixels
    return small


@pytest.fixture(scope="module")
def prompter(processor):
    torch.manual_seed(0)
    model = AlproPrompterModel(config())
    tokens = processor.tokenizer([f"which {entity} ?" for entity in ENTITIES], return_tensors="pt", padding=True)
    for kind in ("video", "image"):
        model.set_prompts(kind, tokens["input_ids"], tokens["attention_mask"])
    model.image_prompt_embeds.neg_()
    model.alpro.temperature.data.fill_(0.02)
    return model.eval().requires_grad_(False)


def make_collator(processor, **options):
    # the stronger changes, so that the untrained teacher does not say the same of all crops
    augmentations = {kind: AlproAugmentation(kind, SIZE, randaugment="torchvision") for kind in ("video", "image")}
    options = {f"{kind}_augmentation": augmentation for kind, augmentation in augmentations.items()} | options
    return AlproPreTrainingCollator(processor, **{"patch_size": PATCH, **options})


@pytest.fixture(scope="module")
def rows(encode):
    """Seven captioned clips of different lengths."""
    videos = [str(encode(f"labels-{frames}.mp4", num_frames=frames)) for frames in (48, 40, 33, 26, 18, 11, 4)]
    texts = ["red", "green and blue", "which colour ?", "white", "blue", "how many frames ?", "red and white"]
    return datasets.Dataset.from_dict({"video": videos, "text": texts, "source": ["clips"] * 7})


@pytest.fixture(scope="module")
def broken_rows(rows, tmp_path_factory):
    """The same with two rows that cannot be decoded, in places 2 and 3."""
    path = tmp_path_factory.mktemp("broken") / "broken.mp4"
    path.write_bytes(b"no video at all" * 100)
    listed = rows.to_list()
    lost = [{**listed[0], "video": str(path)}, {**listed[0], "video": str(path.with_name("missing.mp4"))}]
    return datasets.Dataset.from_list([*listed[:2], *lost, *listed[2:]])


def direct(prompter, collator, rows, epoch=0):
    """Targets of each row for itself, in float32."""
    numbered = NumberedRows(rows, training=True)
    numbered.set_epoch(epoch)
    for i in range(len(rows)):
        batch = collator([numbered[i]])
        crops = crop_on_black(batch["pixel_values_videos"], batch["crop_mask"], batch["black"])
        yield prompter.pseudo_labels(crops, batch["kind"])[0]


def label(rows, prompter, processor, output, **options):
    collator = options.pop("collator", None) or make_collator(processor)
    return pseudo_label(rows, prompter, collator, output, **{"batch_size": 2, "progress": False, **options})


# -------------------------------------------------------------------------------------------------------------- labels


def test_labels_are_what_the_prompter_says_of_each_crop(rows, prompter, processor, tmp_path):
    labelled = label(rows, prompter, processor, tmp_path / "out", epoch=3, shard_size=3)
    expected = torch.stack(list(direct(prompter, make_collator(processor), rows, epoch=3)))
    assert expected.argmax(dim=1).unique().numel() > 1, "the labels of a constant teacher would prove nothing"
    targets = torch.tensor(labelled["pem_targets"])
    torch.testing.assert_close(targets, expected, atol=1e-3, rtol=0)
    assert labelled.features["pem_targets"] == datasets.List(datasets.Value("float16"), length=len(ENTITIES))
    assert labelled["pem_seed"][:] == [42] * 7 and labelled["pem_epoch"][:] == [3] * 7
    assert labelled["pem_index"][:] == list(range(7))
    assert labelled.select_columns(rows.column_names).to_list() == rows.to_list()
    assert datasets.load_from_disk(str(tmp_path / "out")).to_list() == labelled.to_list()
    assert read_skipped(tmp_path / "out") == []


def test_batches_shards_and_workers_change_nothing(rows, prompter, processor, tmp_path):
    one = label(rows, prompter, processor, tmp_path / "one", batch_size=7)
    for number, options in enumerate([{"batch_size": 3, "shard_size": 2}, {"shard_size": 5, "workers": 2}]):
        other = label(rows, prompter, processor, tmp_path / str(number), **options)
        np.testing.assert_allclose(other["pem_targets"], one["pem_targets"], atol=1e-3)
        assert other.remove_columns("pem_targets").to_list() == one.remove_columns("pem_targets").to_list()


@pytest.mark.parametrize("augmented", [True, False])
def test_training_on_cached_labels_is_training_on_fresh_ones(rows, prompter, processor, tmp_path, augmented):
    options = {} if augmented else {"video_augmentation": None}
    cached = label(rows, prompter, processor, tmp_path / "out", collator=make_collator(processor, **options), epoch=2)
    torch.manual_seed(1)
    student = AlproForPreTraining(config()).eval()
    student.config.pem_threshold = 0.0

    def losses(dataset, on_the_fly):
        numbered = NumberedRows(dataset, training=True)
        numbered.set_epoch(2)
        batch = make_collator(processor, **options)(numbered.__getitems__(list(range(7))))
        if on_the_fly:
            crops = crop_on_black(batch["pixel_values_videos"], batch["crop_mask"], batch["black"])
            batch["pem_targets"] = prompter.pseudo_labels(crops, batch["kind"])
        inputs = {name: value for name, value in batch.items() if name not in ("kind", "black", "row_ids")}
        with torch.no_grad():
            outputs = student(**inputs, return_loss=True, generator=torch.Generator().manual_seed(0))
        return {name: outputs[name].item() for name in ("loss_vtc", "loss_vtm", "loss_mlm", "loss_pem", "loss")}

    fresh, kept = losses(rows, True), losses(cached, False)
    assert fresh["loss_pem"] > 0
    for name in ("loss_vtc", "loss_vtm", "loss_mlm"):
        assert kept[name] == fresh[name], name
    assert kept["loss_pem"] == pytest.approx(fresh["loss_pem"], rel=1e-3)


def test_cached_labels_stay_with_their_row_when_rows_before_it_are_lost(broken_rows, prompter, processor, tmp_path):
    """The row's own number moves, the draw of its crop does not."""
    cached = label(broken_rows, prompter, processor, tmp_path / "out")
    assert cached["pem_index"][:] == [0, 1, 4, 5, 6, 7, 8]
    for row, index in zip(NumberedRows(cached, training=True).__getitems__([2, 6]), [4, 8], strict=True):
        batch = make_collator(processor)([row])
        crops = crop_on_black(batch["pixel_values_videos"], batch["crop_mask"], batch["black"])
        fresh = prompter.pseudo_labels(crops, batch["kind"])
        torch.testing.assert_close(batch["pem_targets"], fresh, atol=1e-3, rtol=0)
        assert row["video"] == broken_rows[index]["video"]


def test_images_are_compared_with_prompts_for_images(prompter, processor, source_frames, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for path, frame in zip(paths, source_frames[::12], strict=True):
        Image.fromarray(frame).save(path)
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    images = datasets.Dataset.from_dict({"image": paths, "text": ["red"] * 4}, features=features)
    labelled = label(images, prompter, processor, tmp_path / "out")
    assert labelled.features["image"] == datasets.Image()
    plain = datasets.Dataset.from_dict({"image": paths, "text": ["red"] * 4})
    expected = torch.stack(list(direct(prompter, make_collator(processor), plain)))
    torch.testing.assert_close(torch.tensor(labelled["pem_targets"]), expected, atol=1e-3, rtol=0)
    np.testing.assert_array_equal(np.array(labelled[3]["image"]), source_frames[36])


def test_labels_of_several_epochs_are_those_of_each(broken_rows, prompter, processor, tmp_path):
    collator = make_collator(processor)
    every = pseudo_label(
        broken_rows, prompter, collator, tmp_path / "every", epoch=1, epochs=3, batch_size=5, shard_size=7
    )
    whole = len(every) // 3
    for epoch in range(3):
        one = pseudo_label(broken_rows, prompter, collator, tmp_path / str(epoch), epoch=1 + epoch)
        part = every.select(range(epoch * whole, (epoch + 1) * whole))
        assert one["pem_epoch"] == part["pem_epoch"] == [1 + epoch] * whole
        assert one["pem_index"] == part["pem_index"]
        np.testing.assert_allclose(one["pem_targets"], part["pem_targets"], atol=2e-3)
        assert one["text"] == part["text"]
    # one row of the data gets three clips and three boxes
    first = [every[epoch * whole] for epoch in range(3)]
    batches = [collator([{**row, "index": 0, "epoch": 0}]) for row in first]
    assert len({batch["pixel_values_videos"].numpy().tobytes() for batch in batches}) == 3
    assert read_skipped(tmp_path / "every") == read_skipped(tmp_path / "0") != []
    with pytest.raises(PseudoLabelError, match="'epochs' differ"):
        pseudo_label(broken_rows, prompter, collator, tmp_path / "0", epoch=1, epochs=2)


def test_labels_are_replaced_by_new_ones(rows, prompter, processor, tmp_path):
    first = label(rows, prompter, processor, tmp_path / "first")
    second = label(first, prompter, processor, tmp_path / "second", epoch=1)
    fresh = label(rows, prompter, processor, tmp_path / "fresh", epoch=1)
    assert second.to_list() == fresh.to_list() != first.to_list()


# ------------------------------------------------------------------------------------------------ interrupted, broken


class Interrupting(AlproPrompterModel):
    """A prompter that is interrupted after a number of batches, and counts them."""

    patience = 0
    batches = 0

    def pseudo_labels(self, *args, **kwargs):
        if self.batches == self.patience:
            raise KeyboardInterrupt
        self.batches += 1
        return super().pseudo_labels(*args, **kwargs)


def test_an_interrupted_run_goes_on_with_the_first_missing_shard(
    broken_rows, prompter, processor, tmp_path, monkeypatch
):
    whole = label(broken_rows, prompter, processor, tmp_path / "whole", shard_size=2, batch_size=1)
    patient = Interrupting(config()).eval()
    patient.load_state_dict(prompter.state_dict())
    patient.patience = 4  # the first shard, the broken one, the third and one batch of the fourth
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        label(broken_rows, patient, processor, output, shard_size=2, batch_size=1)
    done = sorted(path.name for path in output.glob("*.arrow"))
    assert done == [f"data-0000{i}-of-00005.arrow" for i in range(3)]
    with pytest.raises(FileNotFoundError):
        datasets.load_from_disk(str(output))
    stamps = {name: (output / name).stat().st_mtime_ns for name in done}
    patient.patience, patient.batches = 99, 0
    resumed = label(broken_rows, patient, processor, output, shard_size=2, batch_size=1)
    assert patient.batches == 3
    assert {name: (output / name).stat().st_mtime_ns for name in done} == stamps
    assert resumed.to_list() == whole.to_list()
    assert read_skipped(output) == read_skipped(tmp_path / "whole")
    label(broken_rows, patient, processor, output, shard_size=2, batch_size=1)
    assert patient.batches == 3, "a finished folder needs no work"


def test_what_is_broken_is_left_out_and_listed(broken_rows, prompter, processor, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="alpro_hf"):
        labelled = label(broken_rows, prompter, processor, tmp_path / "out", shard_size=3)
    assert labelled["video"][:] == [row["video"] for i, row in enumerate(broken_rows) if i not in (2, 3)]
    skipped = read_skipped(tmp_path / "out")
    assert [row["row"] for row in skipped] == [2, 3]
    assert "broken.mp4" in skipped[0]["reason"] and "missing.mp4" in skipped[1]["reason"]
    assert len(caplog.messages) == 2


def test_a_first_shard_without_rows_changes_nothing(broken_rows, prompter, processor, tmp_path):
    labelled = label(broken_rows.select([2, 3, 0, 1]), prompter, processor, tmp_path / "out", shard_size=2)
    assert labelled["pem_index"][:] == [2, 3]
    assert datasets.load_from_disk(str(tmp_path / "out")).to_list() == labelled.to_list()
    assert not [path.name for path in (tmp_path / "out").iterdir() if "partial" in path.name]


def test_other_labels_have_another_fingerprint(rows, prompter, processor, tmp_path):
    """`datasets` caches what is made of rows under their fingerprint: equal ones would mix up two folders."""
    one, other = (label(rows, prompter, processor, tmp_path / str(epoch), epoch=epoch) for epoch in (0, 1))
    epochs = [labelled.map(lambda row: {"drawn": row["pem_epoch"]})["drawn"][:] for labelled in (one, other)]
    assert epochs == [[0] * 7, [1] * 7]


def test_nothing_but_broken_rows_is_an_error(broken_rows, prompter, processor, tmp_path):
    with pytest.raises(PseudoLabelError, match=r"None of the rows.*missing\.mp4"):
        label(broken_rows.select([2, 3]), prompter, processor, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epoch": 1}, "'epoch'"),
        ({"shard_size": 4}, "'shard_size'"),
        ({"collator": {"seed": 1}}, "'seed'"),
        ({"collator": {"train_sampling": "random"}}, "'train_sampling'"),
        ({"collator": {"video_augmentation": None}}, "'video_augmentation'"),
        ({"rows": 3}, "'rows', 'data'"),
        ({"text": "red"}, "'data'"),
        ({"threshold": 0.5}, None),
        ({"weights": True}, "'prompter'"),
    ],
    ids=lambda value: str(value),
)
def test_a_folder_of_other_labels_is_not_continued(rows, prompter, processor, tmp_path, change, named):
    label(rows, prompter, processor, tmp_path / "out")
    teacher = AlproPrompterModel(config()).eval()
    teacher.load_state_dict(prompter.state_dict())
    if "weights" in change:
        teacher.video_prompt_embeds[0, 0] += 1
    teacher.config.pem_threshold = change.get("threshold", 0.2)
    options = {name: change[name] for name in ("epoch", "shard_size") if name in change}
    collator = make_collator(processor, **change.get("collator", {}))
    data = rows.select(range(change.get("rows", 7))).map(lambda row: {"text": change.get("text", row["text"])})
    if named is None:
        label(data, teacher, processor, tmp_path / "out", collator=collator, **options)
        return
    with pytest.raises(PseudoLabelError, match=rf"other pseudo-labels: {named} differ"):
        label(data, teacher, processor, tmp_path / "out", collator=collator, **options)


def test_other_folders_and_collators_are_refused(rows, prompter, processor, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(PseudoLabelError, match="something other"):
        label(rows, prompter, processor, tmp_path / "mine")
    with pytest.raises(NotADirectoryError):
        label(rows, prompter, processor, tmp_path / "mine" / "letter.txt")
    with pytest.raises(PseudoLabelError, match="pem=True"):
        label(rows, prompter, processor, tmp_path / "out", collator=make_collator(processor, pem=False))
    with pytest.raises(PseudoLabelError, match="no rows"):
        label(rows.select([]), prompter, processor, tmp_path / "out")
    with pytest.raises(PseudoLabelError, match="batch_size"):
        label(rows, prompter, processor, tmp_path / "out", batch_size=0)
    label(rows, prompter, processor, tmp_path / "out")
    (tmp_path / "out" / pseudo_labels.MANIFEST).write_text("{")
    with pytest.raises(PseudoLabelError, match="damaged"):
        label(rows, prompter, processor, tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------- summary


def test_the_summary_against_brute_force():
    rng = np.random.default_rng(0)
    targets = rng.dirichlet(np.full(5, 0.5), size=2500).astype(np.float16)
    targets[0] = [0, 0, 1, 0, 0]
    features = datasets.Features({"pem_targets": datasets.List(datasets.Value("float16"), length=5)})
    summary = summarise(datasets.Dataset.from_dict({"pem_targets": targets}, features=features), ENTITIES, 0.6, top=3)
    best = targets.argmax(axis=1)
    assert (summary.rows, summary.kept) == (2500, sum(row.max() >= 0.6 for row in targets))
    entropies = [-sum(p * np.log(p) for p in row.astype(float) if p) for row in targets]
    assert summary.entropy == pytest.approx(np.mean(entropies), rel=1e-6)
    counts = sorted(((int((best == i).sum()), entity) for i, entity in enumerate(ENTITIES)), reverse=True)
    assert [(count, entity) for entity, count in summary.top] == counts[:3]


# ------------------------------------------------------------------------------------------------- alpro pseudo-label


@pytest.fixture(scope="module")
def saved_prompter(prompter, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompter")
    prompter.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def command(*arguments) -> int:
    return main(["pseudo-label", *map(str, arguments), "--randaugment", "torchvision"])


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "folder", "splits"])
def test_the_command_labels_rows_in_any_form(rows, prompter, processor, saved_prompter, tmp_path, capsys, form):
    data = tmp_path / f"rows.{form}"
    options = []
    if form == "jsonl":
        rows.to_json(data)
    elif form in ("csv", "parquet"):
        getattr(rows, f"to_{form}")(data)
    elif form == "folder":
        rows.save_to_disk(data)
    else:
        datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(data)
        options = ["--split", "train"]
    capsys.readouterr()
    arguments = [data, "--prompter", saved_prompter, "--output", tmp_path / "out", "--epoch", 2, "--batch-size", 3]
    assert command(*arguments, *options) == 0
    printed = capsys.readouterr().out.splitlines()
    labelled = datasets.load_from_disk(str(tmp_path / "out"))
    expected = label(rows, prompter, processor, tmp_path / "direct", epoch=2, batch_size=3)
    assert labelled.to_list() == expected.to_list()
    summary = summarise(expected, ENTITIES, 0.2)
    assert printed[0].startswith("7 rows labelled with 5 entities")
    assert f"kept at threshold 0.2: {summary.kept} (" in printed[1]
    assert printed[2] == f"mean entropy: {summary.entropy:.3f} of at most 1.609 nats"
    assert printed[3] == "most frequent: " + ", ".join(f"{entity} {count}" for entity, count in summary.top)


def test_the_command_names_what_it_skipped(broken_rows, saved_prompter, tmp_path, capsys):
    broken_rows.to_json(tmp_path / "rows.jsonl")
    capsys.readouterr()
    assert command(tmp_path / "rows.jsonl", "--prompter", saved_prompter, "--output", tmp_path / "out") == 1
    out, err = capsys.readouterr()
    assert "7 rows labelled" in out
    assert "skipped: row 2: " in err and "2 rows skipped" in err


def test_the_options_of_the_command_reach_the_collator(rows, prompter, processor, saved_prompter, tmp_path):
    rows.to_json(tmp_path / "rows.jsonl")
    out = tmp_path / "out"
    options = ["--seed", 7, "--sampling", "random", "--num-frames", 2, "--image-frames", 1, "--shard-size", 4]
    options += ["--leave-out", "horizontal_flip", "rotate"]
    assert command(tmp_path / "rows.jsonl", "--prompter", saved_prompter, "--output", out, *options) == 0
    begun = json.loads((out / pseudo_labels.MANIFEST).read_text())
    assert (begun["seed"], begun["train_sampling"], begun["image_frames"], begun["shard_size"]) == (7, "random", 1, 4)
    assert begun["processor"]["num_frames"] == 2 and begun["processor"]["size"] == {"height": SIZE, "width": SIZE}
    assert begun["patch_size"] == PATCH
    for kind in ("video", "image"):
        assert "shear_x" in begun[f"{kind}_augmentation"] and "rotate" not in begun[f"{kind}_augmentation"]
    assert command(tmp_path / "rows.jsonl", "--prompter", saved_prompter, "--output", tmp_path / "plain",
                   "--no-augmentation") == 0  # fmt: skip
    plain = label(
        read_rows(tmp_path / "rows.jsonl"),
        prompter,
        processor,
        tmp_path / "direct",
        collator=make_collator(processor, video_augmentation=None),
    )
    assert datasets.load_from_disk(str(tmp_path / "plain")).to_list() == plain.to_list()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "no file or folder"),
        ("rows.txt", r".parquet, or a folder"),
        ("splits", "name one of them with --split"),
        ("notes.jsonl", "needs a 'video' or an 'image'"),
    ],
)
def test_the_command_says_what_is_wrong(rows, saved_prompter, tmp_path, capsys, name, message):
    (tmp_path / "rows.txt").write_text("a line")
    (tmp_path / "notes.jsonl").write_text('{"clip": "a.mp4", "text": "red"}\n')
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "splits")
    assert command(tmp_path / name, "--prompter", saved_prompter, "--output", tmp_path / "out") == 1
    assert message in capsys.readouterr().err


def test_an_interrupted_command_says_how_to_go_on(rows, saved_prompter, tmp_path, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    rows.to_json(tmp_path / "rows.jsonl")
    monkeypatch.setattr(AlproPrompterModel, "pseudo_labels", interrupt)
    arguments = (tmp_path / "rows.jsonl", "--prompter", saved_prompter, "--output", tmp_path / "out")
    assert command(*arguments) == 130
    assert "continues" in capsys.readouterr().err
    monkeypatch.undo()
    assert command(*arguments) == 0

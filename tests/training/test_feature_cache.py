"""Cached tokens of a frozen tower: equal to encoding anew, computed once, and refused where frames change."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from fixtures import colours
from fixtures.colours import arguments
from fixtures.frozen_trainings import model_of, trainer_for

from alpro_hf import AlproForPreTraining, AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval
from alpro_hf.data.augmentation import AlproAugmentation
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.pretraining_collator import AlproPreTrainingCollator
from alpro_hf.data.rows import NumberedRows
from alpro_hf.model.decoding_types import VideoDecodeError
from alpro_hf.training.feature_cache import FeatureCache, FeatureCacheError, clip_version
from alpro_hf.training.trainer import AlproTrainer


def way(folder: Path, **fields):
    return {"freeze": ["video"], "feature_cache": str(folder / "tokens"), "max_steps": 4} | fields


def count_clips(model) -> list[int]:
    """Numbers of clips that the tower has encoded, one for each time that it ran."""
    seen: list[int] = []
    model.alpro.video_model.register_forward_hook(lambda *call: seen.append(len(call[-1].last_hidden_state)))
    return seen


def video_file(path: Path, shade: int) -> str:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 32
        for number in range(8):
            pixels = np.full((32, 32, 3), shade + 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows about three clips in files, one of them with two captions."""
    folder = tmp_path_factory.mktemp("clips")
    paths = [video_file(folder / f"{name}.mp4", shade) for name, shade in (("red", 0), ("green", 80), ("blue", 160))]
    return [{"video": path, "text": Path(path).stem} for path in paths] + [{"video": paths[0], "text": "red and blue"}]


@pytest.mark.parametrize("model_class", [AlproForVideoTextRetrieval, AlproForVideoQuestionAnswering])
def test_a_training_on_tokens_learns_the_same_and_encodes_each_clip_once(model_class, tmp_path):
    weights, logs, runs = [], [], []
    for fields in (way(tmp_path, feature_cache=None), way(tmp_path), way(tmp_path)):
        model = model_of(model_class)
        runs.append(count_clips(model))
        trainer = trainer_for(model, arguments(tmp_path, **fields))
        trainer.train()
        weights.append(model.state_dict())
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    plain, first, second = runs
    clips = 6  # three colours and each two of them
    assert sum(plain) > clips == sum(first) and second == []
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, atol=1e-6, rtol=1e-5, msg=name)
    assert logs[1] == pytest.approx(logs[0], abs=1e-5) and logs[2] == logs[1]


def test_files_are_decoded_once_also_those_with_two_captions_and_with_workers(files, tmp_path, monkeypatch):
    decoded = []
    frames = AlproCollator._frames
    monkeypatch.setattr(AlproCollator, "_frames", lambda self, row: decoded.append(row["video"]) or frames(self, row))
    trainer_for(model_of(), arguments(tmp_path, **way(tmp_path, per_device_train_batch_size=2)), files).train()
    assert sorted(decoded) == sorted({row["video"] for row in files})
    assert len(list((tmp_path / "tokens").glob("tokens-*.safetensors"))) == 1
    model = model_of()
    seen = count_clips(model)
    args = arguments(tmp_path, **way(tmp_path, per_device_train_batch_size=2, dataloader_num_workers=1))
    trainer_for(model, args, files).train()
    assert len(decoded) == 3 and seen == []


def test_evaluation_sees_frames(files, tmp_path):
    model = model_of()
    args = arguments(tmp_path, **way(tmp_path, eval_strategy="steps", eval_steps=2))
    trainer = trainer_for(model, args, files, eval_dataset=files[:3])
    seen = count_clips(model)
    trainer.train()
    assert seen[0] == 3 and sum(seen) == 3 + 2 * 3  # the cache, and two evaluations
    assert trainer.state.log_history[-1].get("train_steps") == 4


def test_a_clip_that_cannot_be_decoded_loses_its_row_and_one_that_changes_too(files, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    rows = [*files, {"video": str(broken), "text": "white"}]
    args = arguments(tmp_path, **way(tmp_path, per_device_train_batch_size=5, max_steps=1))
    trainer = trainer_for(model_of(), args, rows)
    trainer.train()
    assert trainer.state.log_history[-1]["train_rows"] == 4
    [listed] = [json.loads(line) for line in (tmp_path / "dropped_rows.jsonl").read_text().splitlines()]
    assert listed["clip"] == str(broken) and "broken.mp4" in listed["reason"]

    moved = Path(shutil.copy(files[0]["video"], tmp_path / "moved.mp4"))
    row = {"video": str(moved), "text": "red", "index": 0, "epoch": 0}
    cache = FeatureCache(tmp_path / "own", {"format": 1})
    rows = NumberedRows([row], training=True)
    assert cache.fill(model_of().eval(), rows, trainer.data_collator, batch_size=2, progress=False) == 1
    assert cache.tokens(row).shape == (5, 32)
    os.utime(moved, ns=(0, 0))
    with pytest.raises(VideoDecodeError, match="another file than when its tokens were computed"):
        cache.tokens(row)


def test_what_was_written_before_an_interruption_stays(tmp_path, monkeypatch):
    rows = NumberedRows([{"video": colours.clip(name), "text": name} for name in colours.COLOURS], training=True)
    trainer = trainer_for(model_of(), arguments(tmp_path))
    monkeypatch.setattr("alpro_hf.training.feature_cache._SHARD", 2)
    description = {"format": 1}
    cache = FeatureCache(tmp_path / "tokens", description)

    class Broken(NumberedRows):
        decoding = False

        def __getitems__(self, indices):
            if self.decoding and 3 in indices:
                raise KeyboardInterrupt
            return super().__getitems__(indices)

    model = model_of().eval()
    model.alpro.video_model.register_forward_hook(lambda *_: setattr(Broken, "decoding", True))
    with pytest.raises(KeyboardInterrupt):
        cache.fill(model, Broken(rows.dataset, True), trainer.data_collator, batch_size=1, progress=False)
    again = FeatureCache(tmp_path / "tokens", description)
    assert len(again) == 2
    assert again.fill(model, rows, trainer.data_collator, batch_size=1, progress=False) == 2
    assert len(FeatureCache(tmp_path / "tokens", description)) == 4
    # several processes share the work
    parts = [FeatureCache(tmp_path / "shared", description) for _ in range(2)]
    counts = [
        part.fill(model, rows, trainer.data_collator, batch_size=3, process=rank, processes=2, progress=False)
        for rank, part in enumerate(parts)
    ]
    for part in parts:
        part.agree()
    assert counts == [2, 2] and [len(part) for part in parts] == [4, 4]
    assert torch.equal(parts[0].tokens(rows[3]), again.tokens(rows[3]))


def test_a_clip_is_known_by_its_file_or_its_content(files, tmp_path):
    path = files[0]["video"]
    assert clip_version({"video": path}) == clip_version({"video": {"path": path, "bytes": None}})
    assert clip_version({"video": path}) != clip_version({"video": files[1]["video"]})
    content = Path(path).read_bytes()
    assert clip_version({"video": content}) != clip_version({"video": content + b" "})
    clip = colours.clip("red")
    assert clip_version({"video": clip}) == clip_version({"video": torch.from_numpy(clip).numpy().copy()})
    assert clip_version({"video": clip}) != clip_version({"video": clip[:2]})
    with pytest.raises(TypeError, match="received object"):
        clip_version({"video": object()})


def test_tokens_of_another_tower_or_of_other_frames_are_refused(tmp_path):
    def train(model, sampling="uniform", **fields):
        trainer = trainer_for(model, arguments(tmp_path, **way(tmp_path, max_steps=1, **fields)))
        trainer.data_collator.train_sampling = sampling
        trainer.train()

    train(model_of())
    text = model_of()
    torch.nn.init.zeros_(text.alpro.text_projection.weight)
    train(text)  # the tokens are those of the video tower alone
    other = model_of()
    torch.nn.init.ones_(other.alpro.video_model.layers[1].mlp.fc1.bias)
    with pytest.raises(FeatureCacheError, match="of another tower or of other frames: tower differs"):
        train(other)
    with pytest.raises(FeatureCacheError, match="train_sampling differs"):
        train(model_of(), sampling="center")
    [shard] = (tmp_path / "tokens").glob("tokens-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(FeatureCacheError, match=r"is damaged .* Delete this file"):
        train(model_of())
    (tmp_path / "tokens" / "features.json").write_text("{")
    with pytest.raises(FeatureCacheError, match="is damaged"):
        train(model_of())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(FeatureCacheError, match="something other than tokens"):
        train(model_of(), feature_cache=str(tmp_path / "other"))


def test_changing_frames_and_other_models_are_refused(tmp_path):
    def trainer(sampling="uniform", augmentation=None, rows=None, model=None, collator=None):
        plain = trainer_for(model_of(), arguments(tmp_path))
        collator = collator or plain.data_collator
        collator.train_sampling, collator.augmentation = sampling, augmentation
        return AlproTrainer(
            model=model or model_of(),
            args=arguments(tmp_path, **way(tmp_path)),
            data_collator=collator,
            train_dataset=rows or colours.retrieval_rows(),
        )

    with pytest.raises(ValueError, match="train_sampling='headtail' shows another one in each epoch"):
        trainer(sampling="headtail")
    with pytest.raises(ValueError, match=r"an augmentation .* augmentation='none'"):
        trainer(augmentation=AlproAugmentation("finetune", (16, 16)))
    pretraining = AlproPreTrainingCollator(colours.processor(), pem=False, patch_size=8)
    with pytest.raises(ValueError, match="AlproForPreTraining with AlproPreTrainingCollator needs the frames"):
        trainer(model=AlproForPreTraining(colours.config()), collator=pretraining)
    stream = Dataset.from_list([{"video": "a.mp4", "text": "a"}]).to_iterable_dataset()
    with pytest.raises(ValueError, match="not a stream of rows"):
        trainer(rows=stream)


def test_frames_and_tokens_are_not_given_together():
    model = model_of().eval()
    with pytest.raises(ValueError, match="exactly one of pixel_values_videos and video_hidden_states"):
        model(torch.tensor([[2, 3]]), None, torch.zeros(1, 4, 3, 16, 16), video_hidden_states=torch.zeros(1, 5, 32))
    with pytest.raises(ValueError, match="needs pixel_values_videos"):
        model(torch.tensor([[2, 3]]))

"""Train the start of every cell of the study: an image model and a language model, which are not aligned yet.

    python scripts/sprites/start.py --output runs/study

The paper starts from a ViT trained on ImageNet and from BERT (section 4.1). Here a small ViT learns to name the sprite
in a still picture, and a small BERT learns to fill in masked words of captions. Models and Trainer are those of
transformers. `AlproModel.from_unimodal_pretrained` joins the two. They have seen neither pairs of a picture and a text
nor motion.
`start.json` holds the accuracy of both models on new draws.
"""

import argparse
import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from train import MAX_TOKENS, SIZE, build_processor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from alpro_hf import AlproModel, AlproProcessor
from alpro_hf.loading import best_device, fast_bfloat16
from alpro_hf.sprites.language import captions
from alpro_hf.sprites.render import render
from alpro_hf.sprites.world import SPRITES, draw_scene, pose

WIDTH, HEADS, LAYERS, FUSION_LAYER, FRAMES = 128, 2, 4, 2, 2
EVALUATION = 1000
SHARED = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.05,
}


class Stills(Dataset):
    """Pictures of a single sprite at one moment of a scene, labelled with its place in `SPRITES`."""

    def __init__(self, processor: AlproProcessor, length: int, seed: int, split: str = "train"):
        self.processor, self.length, self.seed, self.split = processor, length, seed, split

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"stills/{self.split}/{self.seed}/{index}")
        scene = draw_scene(self.split, self.seed, index)
        actor = rng.choice(scene.actors)
        # a sprite that appears or disappears is partly transparent for a while
        time = rng.random()
        while pose(actor, time).opacity < 1:
            time = rng.random()
        picture = render(replace(scene, actors=(actor,)), (time,), SIZE)[0]
        return {"picture": picture, "label": SPRITES.index(actor.sprite)}

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Process all pictures as the frames of one clip: the video processor has a high cost per clip."""
        frames = torch.from_numpy(np.stack([row["picture"] for row in rows])).permute(0, 3, 1, 2)
        pixels = self.processor.video_processor(frames, do_sample_frames=False, return_tensors="pt")
        return {
            "pixel_values": pixels["pixel_values_videos"][0],
            "labels": torch.tensor([row["label"] for row in rows]),
        }


class Captions(Dataset):
    """Token ids of one caption per scene."""

    def __init__(self, processor: AlproProcessor, length: int, seed: int, split: str = "train"):
        self.processor, self.length, self.seed, self.split = processor, length, seed, split

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"captions/{self.split}/{self.seed}/{index}")
        text = captions(draw_scene(self.split, self.seed, index), rng)[0]
        return self.processor.tokenizer(text, truncation=True)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return DataCollatorForLanguageModeling(self.processor.tokenizer)(rows)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Percentage of correct classes or masked words."""
    logits, labels = prediction.predictions, prediction.label_ids
    asked = labels != -100  # the label of tokens that are not masked
    return {"accuracy": 100 * float((logits.argmax(-1) == labels)[asked].mean())}


def fit_tower(
    model: PreTrainedModel,
    rows: Any,
    processor: AlproProcessor,
    folder: Path,
    steps: int,
    batch: int,
    rate: float,
) -> dict[str, float]:
    """Train with the Trainer of transformers, save, and measure the accuracy on scenes of the validation split."""
    device = best_device()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=250,
        learning_rate=rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.02},
        warmup_steps=min(100, steps // 10),
        adam_beta2=0.98,
        weight_decay=1e-3,
        bf16=fast_bfloat16(device),  # emulated bf16 is slower than float32
        use_cpu=device.type == "cpu",
        dataloader_num_workers=1,
        dataloader_prefetch_factor=4,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
    )
    training = rows(processor, steps * batch, 1)
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=training.collate,
        train_dataset=training,
        eval_dataset=rows(processor, EVALUATION, 2, "validation"),
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model(str(folder))
    return {"steps": steps, "rows_a_step": batch, "accuracy": trainer.evaluate()["eval_accuracy"]}


def build_start(output: Path, scale: float = 1.0) -> Path:
    """The folder of the model that every cell starts from. The first call trains it.

    Args:
        scale: Factor for the steps of both trainings.
    """
    folder = output / "start"
    if (folder / "model.safetensors").is_file():
        return folder
    processor = build_processor(output)
    set_seed(0)
    names = {"id2label": dict(enumerate(SPRITES)), "label2id": {name: i for i, name in enumerate(SPRITES)}}
    vit = ViTForImageClassification(ViTConfig(**SHARED, image_size=SIZE, patch_size=16, **names))
    vocabulary = len(processor.tokenizer)
    bert = BertForMaskedLM(BertConfig(**SHARED, vocab_size=vocabulary, max_position_embeddings=MAX_TOKENS))
    run = partial(fit_tower, processor=processor, batch=64, rate=1e-3)
    results = {
        "vit": run(vit, Stills, folder=output / "vit", steps=max(1, round(1500 * scale))),
        "bert": run(bert, Captions, folder=output / "bert", steps=max(1, round(200 * scale))),
    }
    processor.tokenizer.save_pretrained(output / "bert")
    set_seed(0)
    model = AlproModel.from_unimodal_pretrained(
        str(output / "vit"),
        str(output / "bert"),
        text_config={"fusion_layer": FUSION_LAYER},
        video_config={"num_frames": FRAMES},
        projection_dim=WIDTH,
        initializer_range=0.05,
    )
    (output / "start.json").write_text(json.dumps(results, indent=2) + "\n")
    model.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor for the steps of both trainings (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(build_start(arguments.output, arguments.scale))


if __name__ == "__main__":
    main()

"""Fine-tune text-video retrieval on rows of your own.

    python scripts/examples/finetune_retrieval.py train.jsonl --test test.jsonl --model MODEL --output my-retrieval

A row is {"video": path, "text": caption}. The losses are VTC and VTM. The script prints R@1, R@5 and R@10 of the test.
To train with the hyper-parameters of the paper, use `alpro train --recipe msrvtt-retrieval`.
"""

import argparse
from pathlib import Path

from alpro_hf import (
    AlproAugmentation,
    AlproCollator,
    AlproForVideoTextRetrieval,
    AlproProcessor,
    AlproTrainer,
    AlproTrainingArguments,
)
from alpro_hf.data.annotations import load_annotations
from alpro_hf.loading import download_model, find_model

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("train", help="training rows: CSV, JSON lines or Parquet")
parser.add_argument("--test", required=True, help="test rows, in the same format")
parser.add_argument("--model", default="bundled", help="folder, Hub id or 'bundled' (default: %(default)s)")
parser.add_argument("--output", type=Path, required=True, help="folder for the trained model")
parser.add_argument("--batch-size", type=int, default=16, help="rows per step (default: %(default)s)")
parser.add_argument("--epochs", type=float, default=5, help="passes over the rows (default: %(default)s)")
args = parser.parse_args()
source = download_model(find_model(args.model))

model = AlproForVideoTextRetrieval.from_pretrained(source)
processor = AlproProcessor.from_pretrained(source)
trainer = AlproTrainer(
    model=model,
    args=AlproTrainingArguments(
        output_dir=str(args.output),
        learning_rate=2.5e-5,
        per_device_train_batch_size=args.batch_size,
        num_train_epochs=args.epochs,
        eval_protocol="rerank",  # similarity, then matching for the best; `reference` matches all pairs
        save_strategy="epoch",
        save_total_limit=1,
    ),
    data_collator=AlproCollator(
        processor, augmentation=AlproAugmentation("video", model.config.video_config.image_size)
    ),
    processing_class=processor,
    train_dataset=load_annotations("table", args.train),
    eval_dataset=load_annotations("table", args.test),
)
trainer.train()
metrics = trainer.evaluate()
for name in ("t2v_r1", "t2v_r5", "t2v_r10"):
    print(f"{name} {metrics[f'eval_{name}']:.1f}")
trainer.save_model()

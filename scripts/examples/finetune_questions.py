"""Fine-tune video question answering on rows of your own.

    python scripts/examples/finetune_questions.py train.jsonl --test test.jsonl --model MODEL --output my-qa

A row is {"video": path, "question": question, "answer": answer}. The model chooses from a closed list of
answers: the most frequent ones of the training rows. Towers and fusion layers start from MODEL; the classifier starts
from random weights.
"""

import argparse
from collections import Counter
from pathlib import Path

from alpro_hf import (
    AlproForVideoQuestionAnswering,
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
parser.add_argument("--answers", type=int, default=1500, help="size of the answer list (default: %(default)s)")
parser.add_argument("--batch-size", type=int, default=16, help="rows per step (default: %(default)s)")
parser.add_argument("--epochs", type=float, default=10, help="passes over the rows (default: %(default)s)")
args = parser.parse_args()
source = download_model(find_model(args.model))

train_rows = load_annotations("table", args.train)
answers = [answer for answer, _ in Counter(train_rows["answer"]).most_common(args.answers)]
label2id = {answer: label for label, answer in enumerate(answers)}
# MODEL's own classifier, if it has one, has another size: it is dropped, and the new one starts from random weights
model = AlproForVideoQuestionAnswering.from_pretrained(
    source, label2id=label2id, id2label=dict(enumerate(answers)), ignore_mismatched_sizes=True
)
processor = AlproProcessor.from_pretrained(source)
trainer = AlproTrainer(
    model=model,
    args=AlproTrainingArguments(
        output_dir=str(args.output),
        learning_rate=5e-5,
        per_device_train_batch_size=args.batch_size,
        num_train_epochs=args.epochs,
        save_strategy="epoch",
        save_total_limit=1,
    ),
    processing_class=processor,  # makes the collator, with the answers of the model
    train_dataset=train_rows,
    eval_dataset=load_annotations("table", args.test),
)
trainer.train()
print(f"accuracy {trainer.evaluate()['eval_accuracy']:.1f} with {len(answers)} answers")
trainer.save_model()

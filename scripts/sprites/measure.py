"""Measure sprite-world models on the rendered tests: every number that the README reports about them.

    python scripts/sprites/render.py sprite-world
    python scripts/sprites/measure.py --data sprite-world --output results.json

The script decodes the mp4 files and runs three tasks on each test:
  retrieval   among all clips under three protocols: `vtc` (cosine similarity), `rerank` (matching reorders the best 16
              by similarity) and `reference` (matching of all pairs)
  choices     between a true and a false caption (opposite action, swapped actions, reversed clip), by similarity (VTC)
              and by matching (VTM)
  qa          question answering, by type of question and by the kind of answer; for a wrong answer to "which first",
              whether it names the other of the two sprites
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from alpro_hf import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproProcessor
from alpro_hf.assets import bundled_model
from alpro_hf.data.rows import video_id
from alpro_hf.evaluation.encode import answer_rows, encode_rows, match_pairs
from alpro_hf.evaluation.metrics import question_answering_metrics, retrieval_metrics
from alpro_hf.evaluation.protocols import RetrievalStates, retrieval_scores
from alpro_hf.loading import fast_bfloat16
from alpro_hf.sprites.language import PASSIVE, PHRASES, noun_phrase
from alpro_hf.sprites.world import PAIR_OF, RELATION_PAIR, SPRITES

PROTOCOLS = ["vtc", "rerank", "reference"]
TASKS = ["retrieval", "choices", "qa"]
RERANK_K = 16
BATCH = 64
# the words after "what" in a question about a relation, such as "follows"
RELATIONS = tuple(form for verb in RELATION_PAIR for form in (*(one for one, _ in PHRASES[verb]), *PASSIVE[verb]))


def read_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """Rows of a rendered split; their paths, which are relative to its folder, become paths from here."""
    rows = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    return [{**row, "video": str(folder / row["video"])} for row in rows]


def evaluate_retrieval(
    model: AlproForVideoTextRetrieval, states: RetrievalStates, protocols: list[str], title: str
) -> dict[str, dict[str, float]]:
    """Retrieval metrics in both directions, by protocol."""

    def score_pairs(pairs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=fast_bfloat16(model.device)):
            return match_pairs(model, states, pairs, title=f"{title}: matching")

    return {
        protocol: retrieval_metrics(for_text, states.text_to_video, for_video)
        for protocol in protocols
        for for_text, for_video in [retrieval_scores(states, protocol, score_pairs, RERANK_K)]
    }


@torch.no_grad()
def evaluate_choices(
    model: AlproForVideoTextRetrieval, processor: AlproProcessor, states: RetrievalStates, rows: list[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Percentage of clips whose true caption scores higher than the false one, by kind and by pair of actions."""
    right: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    place = {video: index for index, video in enumerate(states.video_ids.tolist())}
    for start in tqdm(range(0, len(rows), BATCH), desc="choices", unit="batch"):
        chunk = rows[start : start + BATCH]
        videos = torch.tensor([place[video_id(row)] for row in chunk])
        scores = []
        for side in ("text", "negative"):
            words = processor(text=[row[side] for row in chunk], return_tensors="pt")
            text = model.alpro.get_text_features(**words)
            vtc = (text.pooler_output * states.video_embeds[videos]).sum(dim=1)
            vtm = model.match(text.last_hidden_state, words["attention_mask"], states.video_states[videos])
            scores.append((vtc, vtm[:, 1] - vtm[:, 0]))
        for row, by_vtc, by_vtm in zip(chunk, scores[0][0] > scores[1][0], scores[0][1] > scores[1][1], strict=True):
            result = bool(by_vtc), bool(by_vtm)
            right[row["kind"]].append(result)
            if row["kind"] == "opposite":
                right[f"opposite: {row['pair']}"].append(result)
    return {
        kind: {
            "vtc": 100 * sum(vtc for vtc, _ in values) / len(values),
            "vtm": 100 * sum(vtm for _, vtm in values) / len(values),
            "n": len(values),
        }
        for kind, values in sorted(right.items())
    }


def asked_for(row: dict[str, Any]) -> str:
    """The kind of thing that the answer to a "what" or "which way" question names."""
    question, answer = row["question"], row["answer"]
    if answer in SPRITES:
        of_relation = question.removeprefix("what ").startswith(RELATIONS)
        return "name in a relation" if of_relation else "name"
    spin = any(word in answer for word in PAIR_OF["clockwise"])
    return "spin" if spin else "motion" if row["answer_type"] == "which way" else "action"


@torch.no_grad()
def evaluate_answers(
    model: AlproForVideoQuestionAnswering, processor: AlproProcessor, rows: list[dict[str, Any]], title: str
) -> dict[str, float]:
    """Accuracy in percent: overall, by type of question, and by the kind of thing that the answer names."""
    found, skipped = answer_rows(model, processor, rows, batch_size=BATCH, title=title)
    assert not skipped, skipped
    predictions = [model.config.id2label[label] for label in found.labels.tolist()]
    answers, types = ([row[key] for row in rows] for key in ("answer", "answer_type"))
    metrics = question_answering_metrics(predictions, answers, types, model.config.label2id)
    details = defaultdict(list)
    for row, predicted in zip(rows, predictions, strict=True):
        right = predicted == row["answer"]
        if row["answer_type"] in ("what", "which way"):
            details[f"{row['answer_type']}: {asked_for(row)}"].append(right)
        elif row["answer_type"] == "which first":
            other = not right and noun_phrase(predicted, definite=True) in row["question"]
            details["which first: names the other"].append(other)
    return metrics | {name: 100 * sum(hits) / len(hits) for name, hits in sorted(details.items())}


def measure(
    folder: Path,
    split: str,
    retrieval: Path,
    qa: Path | None,
    protocols: list[str],
    tasks: list[str],
) -> dict[str, Any]:
    """All numbers of one split.

    Args:
        folder: The rendered split.
        split: Its name in progress bars.
        retrieval: Folder of the model for the tasks `retrieval` and `choices`.
        qa: Folder of the model for the task `qa`.
    """
    result: dict[str, Any] = {}
    if {"retrieval", "choices"} & set(tasks):
        model, processor = (cls.from_pretrained(retrieval) for cls in (AlproForVideoTextRetrieval, AlproProcessor))
        rows = read_rows(folder, "retrieval.jsonl")
        states, skipped = encode_rows(model, processor, rows, batch_size=BATCH, title=split)
        assert not skipped, skipped
        if "retrieval" in tasks:
            result["retrieval"] = evaluate_retrieval(model, states, protocols, split)
        if "choices" in tasks:
            result["choices"] = evaluate_choices(model, processor, states, read_rows(folder, "choices.jsonl"))
    if "qa" in tasks:
        answering, processor = (cls.from_pretrained(qa) for cls in (AlproForVideoQuestionAnswering, AlproProcessor))
        result["qa"] = evaluate_answers(answering, processor, read_rows(folder, "qa.jsonl"), split)
    return result


def rounded(value: Any) -> Any:
    """The same nested dictionaries with two decimals: a few hundred clips resolve no more."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 2) if isinstance(value, float) else value


def show(name: str, result: dict[str, Any]) -> None:
    """Print the numbers of one split."""
    print(f"\n{name}")
    for protocol, metrics in result.get("retrieval", {}).items():
        for way, title in (("t2v", "text to video"), ("v2t", "video to text")):
            shown = {"R@1": "r1", "R@5": "r5", "R@10": "r10", "median rank": "median_rank", "mean rank": "mean_rank"}
            cells = "  ".join(f"{label} {metrics[f'{way}_{key}']:.1f}" for label, key in shown.items())
            print(f"  {protocol:10s} {title}:  {cells}")
    for kind, scores in result.get("choices", {}).items():
        print(f"  {kind:40s} VTC {scores['vtc']:5.1f}  VTM {scores['vtm']:5.1f}  (n={scores['n']})")
    for metric, value in result.get("qa", {}).items():
        print(f"  question answering: {metric:24s} {value:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the rendered splits, see render.py")
    parser.add_argument(
        "--splits",
        nargs="+",
        default=["test", "test-hard", "test-unseen"],
        help="folders of --data to measure on (default: test test-hard test-unseen)",
    )
    parser.add_argument("--retrieval", type=Path, help="retrieval model (default: the bundled one)")
    parser.add_argument("--qa", type=Path, help="question-answering model (default: the bundled one)")
    parser.add_argument(
        "--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS, help="of retrieval (default: all)"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="tasks to run (default: all)")
    parser.add_argument("--output", type=Path, help="JSON file for all numbers")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    started = time.time()
    for split in arguments.splits:
        folder = arguments.data / split
        results[split] = measure(
            folder,
            split,
            arguments.retrieval or bundled_model("retrieval"),
            arguments.qa or bundled_model("qa"),
            arguments.protocols,
            arguments.tasks,
        )
        show(f"{split} ({folder})", results[split])
    if arguments.output:
        settings = {
            "rerank_k": RERANK_K,
            "matching": "bfloat16" if fast_bfloat16("cpu") else "float32",
            "seconds": round(time.time() - started),
            "torch": torch.__version__,
        }
        arguments.output.write_text(json.dumps({"settings": settings, "results": results}, indent=2) + "\n")
        print(f"\nwrote {arguments.output}")


if __name__ == "__main__":
    main()

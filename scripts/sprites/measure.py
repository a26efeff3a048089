"""Measure sprite-world models on the rendered tests: every number that the README reports about them.

    python scripts/sprites/render.py sprite-world
    python scripts/sprites/measure.py --data sprite-world --splits dev --output dev.json      while developing
    python scripts/sprites/measure.py --data sprite-world --output results.json                when all is decided

The script decodes the mp4 files and runs three tasks on each test:
  retrieval   among all clips under three protocols: `vtc` (cosine similarity), `rerank` (matching reorders the best 16
              by similarity) and `reference` (matching of all pairs)
  choices     between a true and a false caption (opposite action, swapped actions, reversed clip), by similarity (VTC)
              and by matching (VTM)
  qa          question answering, by type of question and by the kind of answer; for a wrong answer to "which first",
              whether it names the other of the two sprites; and a control with false premises: "what follows the
              fox?" is asked where the fox follows. A model that knows roles does not name the other sprite then
  order       only if --tasks names it: for each wording of a sequence, whether the true order is preferred to the
              other one, on all sequences of the split

All folders, files and models are checked before anything is computed. With --output, the numbers are written after
each split, and a run that was interrupted goes on behind the splits in the file (--again measures them again).
"""

import argparse
import json
import random
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
from alpro_hf.files import write_text_whole
from alpro_hf.loading import fast_bfloat16
from alpro_hf.sprites.language import (
    NONE,
    PASSIVE,
    PHRASES,
    SEQUENCE,
    caption_and_negatives,
    noun_phrase,
    turned_premise,
)
from alpro_hf.sprites.world import PAIR_OF, RELATION_PAIR, SPRITES, draw_scene

PROTOCOLS = ["vtc", "rerank", "reference"]
TASKS = ["retrieval", "choices", "qa"]
MORE_TASKS = [*TASKS, "order"]
FILES = {"retrieval": "retrieval.jsonl", "choices": "choices.jsonl", "qa": "qa.jsonl", "order": "scenes.jsonl"}
RERANK_K = 16  # candidates that `rerank` reorders
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

    # only matching, which takes most of the time, may use bf16
    def score_pairs(pairs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=fast_bfloat16(model.device)):
            return match_pairs(model, states, pairs, title=f"{title}: matching")

    return {
        protocol: retrieval_metrics(for_text, states.text_to_video, for_video)
        for protocol in protocols
        for for_text, for_video in [retrieval_scores(states, protocol, score_pairs, RERANK_K)]
    }


@torch.no_grad()
def evaluate_order(
    model: AlproForVideoTextRetrieval,
    processor: AlproProcessor,
    states: RetrievalStates,
    rows: list[dict[str, Any]],
) -> dict[str, dict[str, float]]:
    """Percentage of sequences whose true order scores higher than the other one, by wording.

    `rows` are those of scenes.jsonl. Empty if the split has no sequence.
    """
    rows = [row for row in rows if row["kind"] == "sequence"]
    if not rows:
        return {}
    scenes = [draw_scene(row["split"], row["seed"], row["index"]) for row in rows]
    place = {video: index for index, video in enumerate(states.video_ids.tolist())}
    videos = torch.tensor([place[video_id(row)] for row in rows])
    found = {}
    for wording in SEQUENCE:
        pairs = [
            caption_and_negatives(scene, random.Random(f"order/{row['index']}"), (wording,))
            for row, scene in zip(rows, scenes, strict=True)
        ]
        # of a sequence, the last false caption is that of the other order
        sides = [[true for true, _ in pairs], [false[-1] for _, false in pairs]]
        (vtc, vtm), (false_vtc, false_vtm) = [
            scores_of(model, processor, states, captions, videos) for captions in sides
        ]
        found[wording] = {
            "vtc": 100 * (vtc > false_vtc).float().mean().item(),
            "vtm": 100 * (vtm > false_vtm).float().mean().item(),
            "n": len(pairs),
        }
    return found


def scores_of(
    model: AlproForVideoTextRetrieval,
    processor: AlproProcessor,
    states: RetrievalStates,
    captions: list[str],
    videos: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarity and log-odds of a match, each (n,), of captions and the clips at `videos`."""
    words = processor(text=captions, return_tensors="pt")
    text = model.alpro.get_text_features(**words)
    vtc = (text.pooler_output * states.video_embeds[videos]).sum(dim=1)
    vtm = model.match(text.last_hidden_state, words["attention_mask"], states.video_states[videos])
    # the difference of the logits orders captions as the probability of a match does
    return vtc, vtm[:, 1] - vtm[:, 0]


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
        scores = [
            scores_of(model, processor, states, [row[side] for row in chunk], videos) for side in ("text", "negative")
        ]
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
    assert not skipped, skipped  # a split that was rendered here has no unreadable clips
    predictions = [model.config.id2label[label] for label in found.labels.tolist()]
    answers, types = ([row[key] for row in rows] for key in ("answer", "answer_type"))
    metrics = question_answering_metrics(predictions, answers, types, model.config.label2id)
    details = defaultdict(list)
    for row, predicted in zip(rows, predictions, strict=True):
        right = predicted == row["answer"]
        if row["answer_type"] in ("what", "which way"):
            details[f"{row['answer_type']}: {asked_for(row)}"].append(right)
        elif row["answer_type"] == "which first":
            # a model that finds both sprites but not their order errs with the other of the two
            other = not right and noun_phrase(predicted, definite=True) in row["question"]
            details["which first: names the other"].append(other)
    turned = [{**row, **other} for row in rows if (other := turned_premise(row["question"], row["answer"]))]
    if turned:
        found, _ = answer_rows(model, processor, turned, batch_size=BATCH, title=f"{title}: false premises")
        for row, label in zip(turned, found.labels.tolist(), strict=True):
            predicted = model.config.id2label[label]
            # the true question of the same clips is "what: name in a relation"
            details["false premise: names the other"].append(predicted == row["other"])
            details[f"false premise: {NONE}"].append(predicted == NONE)
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
    if {"retrieval", "choices", "order"} & set(tasks):
        model, processor = (cls.from_pretrained(retrieval) for cls in (AlproForVideoTextRetrieval, AlproProcessor))
        rows = read_rows(folder, "retrieval.jsonl")
        states, skipped = encode_rows(model, processor, rows, batch_size=BATCH, title=split)
        assert not skipped, skipped
        if "retrieval" in tasks:
            result["retrieval"] = evaluate_retrieval(model, states, protocols, split)
        if "choices" in tasks:
            result["choices"] = evaluate_choices(model, processor, states, read_rows(folder, "choices.jsonl"))
        if "order" in tasks:
            result["order"] = evaluate_order(model, processor, states, read_rows(folder, FILES["order"]))
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
    for wording, scores in result.get("order", {}).items():
        print(f"  order: {wording:33s} VTC {scores['vtc']:5.1f}  VTM {scores['vtm']:5.1f}  (n={scores['n']})")
    for metric, value in result.get("qa", {}).items():
        print(f"  question answering: {metric:24s} {value:.1f}")


def problems(data: Path, splits: list[str], tasks: list[str], retrieval: Path | None, qa: Path | None) -> list[str]:
    """What is missing of the inputs, as sentences; empty if everything is there."""
    found = []
    for split in splits:
        folder = data / split
        if not folder.is_dir():
            found.append(f"there is no folder {folder}: python scripts/sprites/render.py {data} --split {split}")
            continue
        for name in sorted(
            {FILES[task] for task in tasks} | ({"retrieval.jsonl"} if {"choices", "order"} & {*tasks} else set())
        ):
            if not (folder / name).is_file():
                found.append(f"{folder} has no {name}; render the split again")
                continue
            missing = [row["video"] for row in read_rows(folder, name) if not Path(row["video"]).is_file()]
            if missing:
                found.append(f"{folder / name} names {len(missing)} clips that are not there, such as {missing[0]}")
    for option, model in (("--retrieval", retrieval), ("--qa", qa)):
        if model is not None and not (Path(model) / "config.json").is_file():
            found.append(f"{option} {model} is no folder of a model: it has no config.json")
    return found


def write(output: Path, settings: dict[str, Any], results: dict[str, Any]) -> None:
    """Write all numbers so far, as a whole file or not at all."""
    write_text_whole(output, json.dumps({"settings": settings, "results": results}, indent=2) + "\n")


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
    parser.add_argument(
        "--tasks", nargs="+", choices=MORE_TASKS, default=TASKS, help="tasks to run (default: all but order)"
    )
    parser.add_argument("--output", type=Path, help="JSON file for all numbers, written after each split")
    parser.add_argument("--again", action="store_true", help="also measure the splits that --output has already")
    arguments = parser.parse_args()
    wrong = problems(arguments.data, arguments.splits, arguments.tasks, arguments.retrieval, arguments.qa)
    if arguments.output and not arguments.output.parent.is_dir():
        wrong.append(f"--output {arguments.output} is in no folder that exists")
    if wrong:
        parser.error("nothing was measured: " + "; ".join(wrong))
    settings = {
        "rerank_k": RERANK_K,
        "matching": "bfloat16" if fast_bfloat16("cpu") else "float32",
        "retrieval": str(arguments.retrieval or "bundled"),
        "qa": str(arguments.qa or "bundled"),
        "protocols": arguments.protocols,
        "tasks": arguments.tasks,
        "torch": torch.__version__,
    }
    results: dict[str, Any] = {}
    started, earlier = time.time(), 0.0
    if arguments.output and arguments.output.is_file() and not arguments.again:
        before = json.loads(arguments.output.read_text())
        earlier = before["settings"].pop("seconds", 0)
        if before["settings"] != settings:
            parser.error(f"{arguments.output} has numbers of other settings; name another file, or pass --again")
        results = before["results"]
    for split in arguments.splits:
        if split in results:
            print(f"{split} is in {arguments.output}; skipped")
            continue
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
            write(arguments.output, {**settings, "seconds": round(earlier + time.time() - started)}, results)
            print(f"\nwrote {arguments.output}")


if __name__ == "__main__":
    main()

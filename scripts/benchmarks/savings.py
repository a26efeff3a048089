"""Measure two inexact savings of matching: merged video tokens, and candidates by a margin. See run.py.

Clips are rendered scenes of the sprite world, and the model is the bundled one. Settings are compared on the
validation split, and the test split shows what they cost elsewhere. The sides take turns, and seconds are CPU time of
the process.
"""

import argparse
import random
import time
from statistics import median
from typing import Any

import torch
from common import write
from torch.utils.data import DataLoader

from alpro_hf import AlproForVideoTextRetrieval, AlproProcessor
from alpro_hf.assets import bundled_model
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.rows import NumberedRows
from alpro_hf.evaluation.encode import encode_batches
from alpro_hf.evaluation.metrics import retrieval_metrics
from alpro_hf.evaluation.protocols import RetrievalStates
from alpro_hf.model.matching_alpro import most_similar, vtc_scores, vtm_scores
from alpro_hf.sprites.language import captions
from alpro_hf.sprites.render import frame_times, render
from alpro_hf.sprites.world import draw_scene

MARGINS = (0.05, 0.1, 0.15, 0.2, 0.3)
CANDIDATES = (4, 8, 16, 20)
MOST = 20  # candidates of a query, whatever the margin


def states_of(model: Any, processor: Any, split: str, count: int) -> RetrievalStates:
    """Encode the first scenes of a split, each with one caption."""
    video = processor.video_processor
    times, side = frame_times(video.num_frames), video.size["height"]

    def row(number: int) -> dict[str, Any]:
        scene = draw_scene(split, 0, number)
        text = captions(scene, random.Random(f"savings/{split}/{number}"))[0]
        return {"video": render(scene, times, side), "video_id": number, "text": text}

    rows = [row(number) for number in range(count)]
    loader = DataLoader(NumberedRows(rows), batch_size=50, collate_fn=AlproCollator(processor))
    return encode_batches(model, loader, keep_states=True)


def pooled(tokens: torch.Tensor, side: int) -> torch.Tensor:
    """Patch tokens averaged to a grid of `side` x `side`; the CLS token stays. (n, 1 + N, D) -> (n, 1 + side^2, D)."""
    cls, patches = tokens[:, :1], tokens[:, 1:]
    grid = int(patches.shape[1] ** 0.5)
    picture = patches.transpose(1, 2).unflatten(2, (grid, grid))
    means = torch.nn.functional.adaptive_avg_pool2d(picture, side)
    return torch.cat([cls, means.flatten(2).transpose(1, 2)], dim=1)


def merged(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Join the most similar patch tokens, as in ToMe (arXiv 2210.09461), until `count` tokens are left with the CLS.

    In each round the tokens at even places look for the most similar one at an odd place, and the best pairs become
    their mean, weighted by how many patches each stands for.
    """
    cls, left = tokens[:, :1], tokens[:, 1:]
    weights = torch.ones(left.shape[:2])
    while left.shape[1] > count - 1:
        even, odd = left[:, ::2], left[:, 1::2]
        likeness = torch.nn.functional.cosine_similarity(even[:, :, None], odd[:, None], dim=-1)
        best, target = likeness.max(dim=2)
        fewer = min(left.shape[1] - (count - 1), even.shape[1])
        order = best.argsort(dim=1, descending=True)
        gone, kept = order[:, :fewer], order[:, fewer:].sort(dim=1).values
        width = left.shape[2]
        mass_even, mass_odd = weights[:, ::2], weights[:, 1::2]
        to = target.gather(1, gone)
        sums = odd * mass_odd[..., None]
        added = (even * mass_even[..., None]).gather(1, gone[..., None].expand(-1, -1, width))
        sums = sums.scatter_add(1, to[..., None].expand(-1, -1, width), added)
        masses = mass_odd.scatter_add(1, to, mass_even.gather(1, gone))
        left = torch.cat([even.gather(1, kept[..., None].expand(-1, -1, width)), sums / masses[..., None]], dim=1)
        weights = torch.cat([mass_even.gather(1, kept), masses], dim=1)
    return torch.cat([cls, left], dim=1)


def int8(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens as 8-bit numbers with one scale each would give them back."""
    scale = tokens.abs().amax(dim=2, keepdim=True) / 127
    return (tokens / scale).round() * scale


def candidates(similarity: torch.Tensor, k: int, margin: float | None) -> torch.Tensor:
    """The pairs to match, int64 (n, 2): of each text the k most similar clips, within a margin of its best one."""
    near = most_similar(similarity, k)
    values = similarity.gather(1, near)
    wanted = torch.ones_like(near, dtype=torch.bool) if margin is None else values >= values[:, :1] - margin
    return torch.stack([torch.arange(len(near))[:, None].expand_as(near)[wanted], near[wanted]], dim=1)


def reordered(similarity: torch.Tensor, pairs: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Scores whose order is that of re-ranking: the matched pairs of a text first."""
    scores = similarity.clone()
    scores[pairs[:, 0], pairs[:, 1]] += logits[:, 1] + 1000.0
    return scores


def rows_of(model: Any, states: RetrievalStates, rounds: int) -> list[dict[str, Any]]:
    """Recall and CPU seconds of each saving, against 16 candidates and all tokens."""
    similarity = vtc_scores(states.text_embeds, states.video_embeds)
    tokens = states.video_states
    assert tokens is not None
    grid = int((tokens.shape[1] - 1) ** 0.5)
    third = max(2, round(tokens.shape[1] / 3))
    plain = candidates(similarity, 16, None)
    cases: dict[str, tuple[torch.Tensor, torch.Tensor]] = {"top 16": (tokens, plain)}
    cases |= {f"top {k}": (tokens, candidates(similarity, k, None)) for k in CANDIDATES if k != 16}
    cases |= {f"margin {m:g}, at most {MOST}": (tokens, candidates(similarity, MOST, m)) for m in MARGINS}
    cases["8 bit tokens, top 16"] = int8(tokens), plain
    cases[f"pooled {grid}x{grid} -> {grid // 2}x{grid // 2}, top 16"] = pooled(tokens, grid // 2), plain
    cases[f"merged {tokens.shape[1]} -> {third}, top 16"] = merged(tokens, third), plain
    cases[f"merged {tokens.shape[1]} -> {2 * third}, top 16"] = merged(tokens, 2 * third), plain

    def match(video: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        return vtm_scores(model, states.text_states, states.text_mask, video, pairs)

    match(tokens, plain[:256])  # allocations do not count
    logits: dict[str, torch.Tensor] = {}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            started = time.process_time()
            logits[name] = match(*case)
            times[name].append(time.process_time() - started)
    rows = []
    for name, (video, pairs) in cases.items():
        found = retrieval_metrics(reordered(similarity, pairs, logits[name]), states.text_to_video)
        row: dict[str, Any] = {"saving": name, "pairs a text": len(pairs) / len(similarity), "tokens": video.shape[1]}
        row |= {f"R@{n}": found[f"t2v_r{n}"] for n in (1, 5, 10)}
        seconds = median(times[name])
        rows.append(row | {"cpu s": seconds, "ratio cpu": median(times["top 16"]) / seconds})
    return rows


def run(arguments: argparse.Namespace) -> None:
    """Measure all savings on both splits."""
    source = bundled_model("retrieval")
    model, processor = (
        AlproForVideoTextRetrieval.from_pretrained(source).eval(),
        AlproProcessor.from_pretrained(source),
    )
    with torch.inference_mode():
        tables = {
            split: rows_of(model, states_of(model, processor, split, arguments.clips), arguments.rounds)
            for split in arguments.splits
        }
    write(arguments.output, {"clips": arguments.clips, "rounds": arguments.rounds}, tables)


def add_arguments(commands: Any) -> None:
    command = commands.add_parser("savings", help="cost of merged tokens and of candidates by a margin")
    command.add_argument("--clips", type=int, default=1000, help="of each split (default: %(default)s)")
    command.add_argument("--rounds", type=int, default=3, help="of each side (default: %(default)s)")
    command.add_argument("--splits", nargs="+", default=["validation", "test"], help="default: validation test")
    command.add_argument("--output", default="savings", help="name of the result in docs/benchmarks")
    command.set_defaults(run=run)

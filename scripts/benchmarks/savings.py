"""Measure inexact savings: candidates by a margin, fewer or 8-bit video tokens, 8-bit or bfloat16 weights. See run.py.

Clips are rendered scenes of the sprite world, and the model is the bundled one. Settings are compared on the
validation split, and the test split shows what they cost elsewhere. At base size weights are random, so there is no
recall: the table tells how far a saving changes the order of the clips of a text. The sides take turns, and seconds
are CPU time of the process.
"""

import argparse
import copy
import json
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from common import RESULTS_FOLDER, write
from models import texts
from torch.utils.data import DataLoader

from alpro_hf import AlproConfig, AlproForVideoTextRetrieval, AlproProcessor
from alpro_hf.assets import bundled_model
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.rows import NumberedRows
from alpro_hf.evaluation.encode import encode_batches
from alpro_hf.evaluation.metrics import retrieval_metrics
from alpro_hf.evaluation.protocols import RetrievalStates
from alpro_hf.inference.index_shards import stored
from alpro_hf.loading import fast_bfloat16, with_int8_weights
from alpro_hf.model.matching_alpro import most_similar, vtc_scores, vtm_scores, within_margin
from alpro_hf.sprites.language import captions
from alpro_hf.sprites.render import frame_times, render
from alpro_hf.sprites.world import draw_scene

MARGINS = (0.02, 0.03, 0.05, 0.1)
COMBINED = (0.02, 0.05)  # margins where all savings are combined
CANDIDATES = (4, 8, 20)
MOST, TOP = 20, 8  # candidates of a query: at most, whatever the margin; and of the other savings
FEW = 50  # texts whose matching is timed in turns
Sides = dict[str, Callable[[], object]]


def scenes(split: str, count: int, processor: Any) -> DataLoader[Any]:
    """Batches of the first scenes of a split, each with one caption."""
    video = processor.video_processor
    times, side = frame_times(video.num_frames), video.size["height"]

    def row(number: int) -> dict[str, Any]:
        scene = draw_scene(split, 0, number)
        text = captions(scene, random.Random(f"savings/{split}/{number}"))[0]
        return {"video": render(scene, times, side), "video_id": number, "text": text}

    rows = NumberedRows([row(number) for number in range(count)])
    return DataLoader(rows, batch_size=50, collate_fn=AlproCollator(processor))


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
        unit_even, unit_odd = (torch.nn.functional.normalize(side, dim=-1) for side in (even, odd))
        best, target = (unit_even @ unit_odd.transpose(1, 2)).max(dim=2)
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


def candidates(similarity: torch.Tensor, k: int, margin: float | None = None) -> torch.Tensor:
    """The pairs to match, int64 (n, 2): of each text the k most similar clips, within a margin of its best one."""
    near = most_similar(similarity, k)
    wanted = within_margin(similarity, near, margin)
    return torch.stack([torch.arange(len(near))[:, None].expand_as(near)[wanted], near[wanted]], dim=1)


def reordered(similarity: torch.Tensor, pairs: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Scores whose order is that of re-ranking: the matched pairs of a text first."""
    scores = similarity.clone()
    scores[pairs[:, 0], pairs[:, 1]] += logits[:, 1] + 1000.0
    return scores


def token_savings(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tokens of clips (n, 1 + N, D) under each saving of tokens."""
    count = tokens.shape[1]
    grid = int((count - 1) ** 0.5)
    third = max(2, round(count / 3))
    return {
        "8-bit tokens (float8_e4m3fn)": stored(tokens, "float8_e4m3fn").float(),
        f"tokens pooled {grid}x{grid} -> {grid // 2}x{grid // 2}": pooled(tokens, grid // 2),
        f"tokens merged {count} -> {third}": merged(tokens, third),
    }


def matched(matcher: Any, texts: Any, mask: Any, video: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Matching logits (n, 2), computed in the numbers of the matcher."""
    return vtm_scores(matcher, texts.to(matcher.dtype), mask, video.to(matcher.dtype), pairs)


def in_turns(sides: Sides, rounds: int) -> dict[str, float]:
    """Median CPU seconds of each side."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            started = time.process_time()
            side()
            if number:  # the first round warms up
                times[name].append(time.process_time() - started)
    return {name: median(each) for name, each in times.items()}


def with_smaller_numbers(model: Any) -> dict[str, Any]:
    """Copies of a float32 model with smaller numbers; bfloat16 where the CPU does not emulate it."""
    copies = {"8-bit weights": with_int8_weights(model)}
    if fast_bfloat16("cpu"):
        copies["bfloat16 weights"] = copy.deepcopy(model).to(torch.bfloat16)
    return copies


def recall(model: Any, copies: dict[str, Any], batches: list[Any], rounds: int) -> list[dict[str, Any]]:
    """Recall, and CPU seconds of matching, of each saving."""
    states: RetrievalStates = encode_batches(model, batches, keep_states=True)
    similarity, tokens = vtc_scores(states.text_embeds, states.video_embeds), states.video_states
    assert tokens is not None
    reference, plain = f"top {TOP}", candidates(similarity, TOP)
    # what reads texts and clips, their similarity, tokens of the clips, and the pairs that are matched
    cases: dict[str, tuple[Any, RetrievalStates, torch.Tensor, Any, torch.Tensor]] = {
        f"top {k}": (model, states, similarity, tokens, candidates(similarity, k)) for k in CANDIDATES
    }
    cases |= {
        f"margin {m:g}, at most {MOST}": (model, states, similarity, tokens, candidates(similarity, MOST, m))
        for m in MARGINS
    }
    changed = token_savings(tokens)
    cases |= {f"{name}, {reference}": (model, states, similarity, one, plain) for name, one in changed.items()}
    for name, small in copies.items():
        other: RetrievalStates = encode_batches(small, batches, keep_states=True)
        near, video = vtc_scores(other.text_embeds, other.video_embeds), other.video_states
        assert video is not None
        eight_bits = stored(video, "float8_e4m3fn").float()
        cases[f"{name} of matching, {reference}"] = (small, states, similarity, tokens, plain)
        cases[f"{name} everywhere, {reference}"] = (small, other, near, video, candidates(near, TOP))
        cases |= {
            f"{name} everywhere, float8 tokens, margin {m:g}": (
                small,
                other,
                near,
                eight_bits,
                candidates(near, MOST, m),
            )
            for m in COMBINED
        }

    def match(case: tuple[Any, RetrievalStates, torch.Tensor, Any, torch.Tensor], few: bool = False) -> torch.Tensor:
        matcher, encoded, _, video, pairs = case
        pairs = pairs[pairs[:, 0] < FEW] if few else pairs
        return matched(matcher, encoded.text_states, encoded.text_mask, video, pairs)

    # the candidates of all cases with the same tokens are among the 20 most similar ones: each is matched once
    every = match(cases[f"top {MOST}"])
    logits_of = torch.zeros(*similarity.shape, 2)
    texts, clips = cases[f"top {MOST}"][4].unbind(dim=1)
    logits_of[texts, clips] = every
    seconds = in_turns({name: lambda case=case: match(case, few=True) for name, case in cases.items()}, rounds)
    found = retrieval_metrics(similarity, states.text_to_video)
    alone = {f"R@{n}": found[f"t2v_r{n}"] for n in (1, 5, 10)}
    rows: list[dict[str, Any]] = [{"saving": "no matching", "pairs a text": 0, "tokens": 0} | alone]
    for name, case in cases.items():
        _, _, alike, video, pairs = case
        known = case[0] is model and video is tokens
        logits = logits_of[pairs[:, 0], pairs[:, 1]] if known else match(case)
        found = retrieval_metrics(reordered(alike, pairs, logits), states.text_to_video)
        row: dict[str, Any] = {"saving": name, "pairs a text": len(pairs) / len(similarity), "tokens": video.shape[1]}
        row |= {f"R@{n}": found[f"t2v_r{n}"] for n in (1, 5, 10)}
        rows.append(row | {"matching, cpu ratio": seconds[reference] / seconds[name]})
    return rows


def agreement(rounds: int, count: int) -> list[dict[str, Any]]:
    """How far each saving changes the order of the clips of a text, at base size with random weights."""
    torch.manual_seed(0)
    config = AlproConfig()
    model = AlproForVideoTextRetrieval(config).eval()
    copies = with_smaller_numbers(model)
    ids, mask = texts(count, config.text_config.vocab_size)
    times, side = frame_times(config.video_config.num_frames), config.video_config.image_size
    clips = [torch.from_numpy(render(draw_scene("validation", 0, number), times, side)) for number in range(count)]
    pixels = (torch.stack(clips).permute(0, 1, 4, 2, 3).float() / 255 - 0.5) / 0.5
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(count))
    text = model.alpro.get_text_features(ids, mask).last_hidden_state

    def tokens_by(encoder: Any) -> torch.Tensor:
        return torch.cat([encoder.alpro.get_video_features(one[None]).last_hidden_state for one in pixels])

    def log_odds(matcher: Any, video: torch.Tensor) -> torch.Tensor:
        logits = matched(matcher, text, mask, video, pairs)
        return (logits[:, 1] - logits[:, 0]).view(count, count)

    tokens = tokens_by(model)
    cases: dict[str, tuple[Any, torch.Tensor]] = {"all tokens": (model, tokens)}
    cases |= {name: (model, one) for name, one in token_savings(tokens).items()}
    for name, small in copies.items():
        cases[f"{name} of matching"] = (small, tokens)
        cases[f"{name} everywhere"] = (small, tokens_by(small))
    few = pairs[:count]
    seconds = in_turns(
        {
            name: lambda matcher=matcher, video=video: matched(matcher, text, mask, video, few)
            for name, (matcher, video) in cases.items()
        },
        rounds,
    )
    encoding = in_turns(
        {
            name: lambda encoder=encoder: encoder.alpro.get_video_features(pixels[:1])
            for name, encoder in {
                "all tokens": model,
                **{f"{name} everywhere": c for name, c in copies.items()},
            }.items()
        },
        rounds,
    )
    exact = log_odds(model, tokens)
    order = (exact[:, :, None] - exact[:, None]).sign()
    rows = []
    for name, (matcher, video) in cases.items():
        found = log_odds(matcher, video)
        same = (found[:, :, None] - found[:, None]).sign() == order
        apart = ~torch.eye(count, dtype=torch.bool)
        row: dict[str, Any] = {"saving": name, "tokens": video.shape[1]}
        row["pairs of clips in the same order"] = f"{same[:, apart].float().mean():.1%}"
        row["same first clip"] = f"{(found.argmax(dim=1) == exact.argmax(dim=1)).float().mean():.1%}"
        row["matching, cpu ratio"] = seconds["all tokens"] / seconds[name]
        if name in encoding:
            row["clip, cpu ratio"] = encoding["all tokens"] / encoding[name]
        rows.append(row)
    return rows


def run(arguments: argparse.Namespace) -> None:
    """Measure all savings; what is done is written after each table."""
    source = bundled_model("retrieval")
    processor = AlproProcessor.from_pretrained(source)
    model = AlproForVideoTextRetrieval.from_pretrained(source).eval()
    copies = with_smaller_numbers(model)
    settings = {"clips": arguments.clips, "rounds": arguments.rounds}
    path = RESULTS_FOLDER / f"{arguments.output}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    # parts may be run one by one: those of an earlier run with the same settings stay
    tables: dict[str, list[dict[str, Any]]] = before["tables"] if before.get("settings") == settings else {}
    with torch.inference_mode():
        for split in arguments.splits:
            batches = list(scenes(split, arguments.clips, processor))
            tables[f"{split} split"] = recall(model, copies, batches, arguments.rounds)
            write(arguments.output, settings, tables)
        if arguments.base:
            title = f"base size, random weights, {arguments.base} clips and texts"
            tables[title] = agreement(arguments.rounds, arguments.base)
            write(arguments.output, settings, tables)


def add_arguments(commands: Any) -> None:
    command = commands.add_parser(
        "savings", help="cost of candidates by a margin, of fewer tokens and of smaller numbers"
    )
    command.add_argument("--clips", type=int, default=1000, help="of each split (default: %(default)s)")
    command.add_argument(
        "--base", type=int, default=6, help="clips and texts at base size; 0: leave it out (default: %(default)s)"
    )
    command.add_argument("--rounds", type=int, default=3, help="of each side (default: %(default)s)")
    command.add_argument("--splits", nargs="*", default=["validation", "test"], help="default: validation test")
    command.add_argument("--output", default="savings", help="name of the result in docs/benchmarks")
    command.set_defaults(run=run)

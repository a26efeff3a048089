"""Measure evaluation and training steps of this package against the plain algorithm. See run.py.

"Plain" is the algorithm of the original code. It uses eager attention in float32 and texts padded to 40 tokens. It
encodes each clip again for every 64 texts and each text again for every clip, and passes all tokens through the last
fusion layer. In training, it passes each kind of pair through the fusion encoder separately.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attention import attention
from common import NO_BF16, RESULTS_FOLDER, alternate, peak_memory_mb, write
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from alpro_hf import AlproConfig, AlproForVideoTextRetrieval, AlproProcessor
from alpro_hf.assets import bundled_model
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.rows import NumberedRows
from alpro_hf.evaluation.encode import encode_batches
from alpro_hf.evaluation.metrics import retrieval_metrics
from alpro_hf.evaluation.protocols import retrieval_scores
from alpro_hf.loading import fast_bfloat16, with_int8_weights
from alpro_hf.model.loss_alpro import classification_loss
from alpro_hf.model.matching_alpro import vtm_scores
from alpro_hf.sprites.rows import SpriteRows

MARGINS = (0.05, 0.02)  # of similarity, for candidates by a margin
PADDED, ENCODED_FOR = 40, 64  # of the plain algorithm: tokens of a text; texts per encoding of a clip
Model = AlproForVideoTextRetrieval


def build(size: str) -> Model:
    """The model of the paper with random weights (`base`), or the bundled one (`sprites`)."""
    torch.manual_seed(0)
    return (Model(AlproConfig()) if size == "base" else Model.from_pretrained(bundled_model("retrieval"))).eval()


def twin(model: Model) -> Model:
    """Another model that shares the weights of this one."""
    return copy.deepcopy(model, memo={id(weight): weight for weight in model.parameters()})


def plain(model: Model) -> Model:
    """A model with the same weights and eager attention."""
    model = twin(model)
    model.set_attn_implementation("eager")
    return model


def lengths(count: int) -> torch.Tensor:
    """Numbers of tokens as in captions of MSR-VTT: 6 to 22, 12 on average. Shape (count,)."""
    generator = torch.Generator().manual_seed(0)
    return (6 + torch.poisson(torch.full((count,), 6.0), generator)).clamp(max=22).long()


def texts(count: int, vocabulary: int, padded: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, each (count, tokens). The words do not depend on the padding; None pads to the longest."""
    sizes = lengths(count)
    words = torch.randint(5, vocabulary, (count, PADDED), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(padded or int(sizes.max())) < sizes[:, None]).long()
    return words[:, : mask.shape[1]] * mask, mask


def flops(run: Callable[[], object]) -> float:
    """Operations of a call; a multiplication and an addition are two."""
    # the counter knows only some of the fused kernels, so attention runs as plain products
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return float(counter.get_total_flops())


def every_token(model: Model, text: torch.Tensor, mask: torch.Tensor | None, video: torch.Tensor) -> torch.Tensor:
    """Matching logits (pairs, 2), with all tokens through the last fusion layer."""
    return model.vtm_head(model.alpro.fuse(text, mask, video).last_hidden_state[:, 0])


class Packed(torch.nn.Module):
    """A linear layer for inference on a CPU, with its weights in the layout that oneDNN prefers on this machine."""

    def __init__(self, linear: torch.nn.Linear, rows: int):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def packed(model: Model, rows: int) -> Model:
    """A copy of the model whose fusion layers use `Packed`."""
    model = copy.deepcopy(model)
    for layer in model.alpro.text_model.layers[model.config.text_config.fusion_layer :]:
        for part in layer.modules():
            for name, linear in list(part.named_children()):
                if type(linear) is torch.nn.Linear:
                    setattr(part, name, Packed(linear, rows))
    return model


def clock(device: str) -> str:
    """The clock of a rate: CPU time on a CPU, which other programs may share, and elapsed time on a GPU."""
    return "cpu" if device == "cpu" else "wall"


def gemm_peak(dtype: torch.dtype, device: str, size: int) -> float:
    """FLOP/s of one large matrix product, the practical limit of the machine."""
    one, two = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / alternate({"": partial(torch.mm, one, two)}, 5, device)[""][clock(device)]


@torch.inference_mode()
def inference(arguments: argparse.Namespace) -> None:
    """Measure encoding a clip, encoding a text and matching a pair; calculate whole evaluations from these parts."""
    device, clips, count_texts = arguments.device, arguments.clips, arguments.texts
    ours = build(arguments.size).to(device)
    naive, video_config = plain(ours), ours.config.video_config
    size = video_config.image_size
    pixels = torch.randn(clips, arguments.frames, 3, size, size, device=device)
    vocabulary = ours.config.text_config.vocab_size
    longest = min(PADDED, ours.config.text_config.max_position_embeddings)
    ids, mask = (tensor.to(device) for tensor in texts(count_texts, vocabulary, longest))
    text = ours.alpro.get_text_features(ids, mask).last_hidden_state
    tokens = 1 + (size // video_config.patch_size) ** 2
    video = torch.randn(clips, tokens, text.shape[2], device=device)
    pairs = torch.cartesian_prod(torch.arange(count_texts), torch.arange(clips))  # every text with every clip
    of_text, of_clip = pairs.to(device).unbind(dim=1)
    whole = text[of_text], mask[of_text], video[of_clip]
    timed = partial(alternate, rounds=arguments.rounds, device=device)
    peak = {"fp32": gemm_peak(torch.float32, device, arguments.gemm)}

    parts = {
        "clip": {
            "plain": lambda: naive.alpro.get_video_features(pixels),
            "ours": lambda: ours.alpro.get_video_features(pixels),
        },
        "text": {
            "plain": lambda: naive.alpro.get_text_features(ids, mask),
            "ours": lambda: ours.alpro.get_text_features(ids, mask),
        },
        "pair": {
            "plain": lambda: every_token(naive, *whole),
            "ours": lambda: vtm_scores(ours, text, mask, video, pairs),
        },
    }
    count = {"clip": clips, "text": count_texts, "pair": len(pairs)}
    half = {}  # stays empty where bf16 is emulated, whose times say nothing
    if fast_bfloat16(device):
        peak["bf16"] = gemm_peak(torch.bfloat16, device, arguments.gemm)
        halved = copy.deepcopy(ours).to(torch.bfloat16)
        states = text.bfloat16(), mask, video.bfloat16(), pairs
        half = {
            "clip": lambda: halved.alpro.get_video_features(pixels),
            "text": lambda: halved.alpro.get_text_features(ids, mask),
            "pair": lambda: vtm_scores(halved, *states),
        }
    rounded: dict[str, Callable[[], object]] = {}
    if device == "cpu":
        quantised = with_int8_weights(ours)
        rounded = {
            "clip": lambda: quantised.alpro.get_video_features(pixels),
            "text": lambda: quantised.alpro.get_text_features(ids, mask),
            "pair": lambda: vtm_scores(quantised, text, mask, video, pairs),
        }
    rows, cost = [], {}
    for part, sides in parts.items():
        sides = sides | ({"ours, bf16": half[part]} if half else {})
        sides = sides | ({"ours, int8": rounded[part]} if rounded else {})
        found = timed(sides)
        for side, seconds in found.items():
            # it counts no 8-bit products, of which there are as many
            work = flops(sides[side]) / count[part] if "int8" not in side else cost[part, "ours"]["flops"]
            cost[part, side] = {key: value / count[part] for key, value in seconds.items()} | {"flops": work}
            rate = work * count[part] / seconds[clock(device)]
            rows.append(
                {
                    "part": part,
                    "side": side,
                    "GFLOP each": work / 1e9,
                    "wall s each": cost[part, side]["wall"],
                    "cpu s each": cost[part, side]["cpu"],
                    "GFLOP/s": rate / 1e9,
                    "of GEMM peak": f"{rate / peak['bf16' if 'bf16' in side else 'fp32']:.0%}",
                    "ratio wall": found["plain"]["wall"] / seconds["wall"],
                    "ratio cpu": found["plain"]["cpu"] / seconds["cpu"],
                }
            )
    write(
        arguments.output,
        {key: value for key, value in vars(arguments).items() if key not in ("run",)}
        | {"GEMM peak GFLOP/s": {name: value / 1e9 for name, value in peak.items()}},
        {
            "parts": rows,
            **(
                {"savings": savings(ours, naive, text, mask, video, timed, arguments.compile)}
                if arguments.exact
                else {}
            ),
            **({"attention": attention(ours, arguments, clips)} if arguments.exact else {}),
            "evaluation": evaluations(cost, bool(half), candidates_by_margin()),
        },
        device,
    )


def savings(
    ours: Model, naive: Model, text: Any, mask: Any, video: Any, timed: Any, compiling: bool
) -> list[dict[str, Any]]:
    """Each exact saving alone, before and after, with the largest difference of the logits."""
    pairs = torch.cartesian_prod(torch.arange(len(text)), torch.arange(len(video)))
    of_text, of_clip = pairs.to(text.device).unbind(dim=1)
    whole = text[of_text], mask[of_text], video[of_clip]
    short = int(lengths(len(text)).float().mean())
    one, nothing_padded = text[of_text, :short].contiguous(), torch.ones_like(mask[of_text, :short])
    quarter = slice(0, max(8, len(pairs) // 4))  # enough pairs where their number does not matter
    rows = len(one[quarter]) * (short + video.shape[1])
    cases: dict[str, tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]] = {
        "sdpa for eager attention": (
            lambda: every_token(naive, *whole),
            lambda: every_token(ours, *whole),
        ),
        "last layer for the CLS token alone": (
            lambda: every_token(ours, *whole),
            lambda: ours.match(*whole),
        ),
        "padded to the batch's longest, batches by length": (
            lambda: every_token(ours, *whole),
            lambda: matched_by_length(ours, *whole),
        ),
        "no mask where nothing is padded": (
            lambda: every_token(naive, one[quarter], nothing_padded[quarter], whole[2][quarter]),
            lambda: every_token(naive, one[quarter], None, whole[2][quarter]),
        ),
        "Q, K, V of a clip once in the first layer": (
            lambda: ours.match(one, None, whole[2]),
            lambda: ours.match(one, None, video, of_clip),
        ),
        "batches whose activations fit the cache": (
            lambda: vtm_scores(ours, text, mask, video, pairs, len(pairs)),
            lambda: vtm_scores(ours, text, mask, video, pairs),
        ),
    }
    if text.device.type == "cpu":
        laid_out = packed(ours, rows)
        cases["weights laid out by oneDNN (not in the product)"] = (
            lambda: ours.match(one[quarter], None, whole[2][quarter]),
            lambda: laid_out.match(one[quarter], None, whole[2][quarter]),
        )
    if compiling:
        compiled = torch.compile(ours.match)
        cases["torch.compile (opt-in)"] = (
            lambda: ours.match(one[quarter], None, whole[2][quarter]),
            lambda: compiled(one[quarter], None, whole[2][quarter]),
        )
    table = []
    for name, (before, after) in cases.items():
        found = timed({"before": before, "after": after})
        counted = "oneDNN" not in name and "compile" not in name  # the counter cannot see into those
        table.append(
            {
                "saving": name,
                "ratio wall": found["before"]["wall"] / found["after"]["wall"],
                "ratio cpu": found["before"]["cpu"] / found["after"]["cpu"],
                "ratio FLOP": flops(before) / flops(after) if counted else 1.0,
                "largest difference": (before() - after()).abs().max().item(),
            }
        )
    return table


def matched_by_length(model: Model, text: Any, mask: Any, video: Any) -> torch.Tensor:
    """Matching logits (pairs, 2) in four batches by length, each padded to its own longest text."""
    logits = torch.empty(len(text), 2, device=text.device)
    for rows in mask.sum(dim=1).argsort().split(max(1, len(text) // 4)):
        longest = int(mask[rows].sum(dim=1).max())
        logits[rows] = every_token(model, text[rows, :longest], mask[rows, :longest], video[rows])
    return logits


def candidates_by_margin() -> dict[float, float]:
    """Candidates of a text within each margin among 1,000 clips, the most of all splits of `run.py savings`."""
    path = RESULTS_FOLDER / "savings.json"
    rows = [row for table in json.loads(path.read_text())["tables"].values() for row in table] if path.exists() else []
    return {
        margin: max(row["pairs a text"] for row in found)
        for margin in MARGINS
        if (found := [row for row in rows if row["saving"].startswith(f"margin {margin:g},")])
    }


def evaluations(
    cost: dict[tuple[str, str], dict[str, float]], half: bool, near: Mapping[float, float] | None = None
) -> list[dict[str, Any]]:
    """Cost of evaluations with n texts and n clips: cost of each part times how often it runs. Nothing runs here.

    `near` says how many candidates of a text a margin leaves.
    """
    rows: list[dict[str, Any]] = []
    for n in (100, 1000):
        again = math.ceil(n / ENCODED_FOR)  # the plain algorithm encodes each clip so often
        cases: dict[str, tuple[str, float, float, float]] = {
            "plain, all pairs": ("plain", n * again, n * n, n * n),
            "ours, all pairs (reference)": ("ours", n, n, n * n),
            "ours, top 20 (rerank, text to video)": ("ours", n, n, n * 20),
            "ours, bf16, all pairs": ("ours, bf16", n, n, n * n),
            "ours, bf16, top 20": ("ours, bf16", n, n, n * 20),
        }
        if ("pair", "ours, int8") in cost:
            cases["ours, int8, top 20"] = ("ours, int8", n, n, n * 20)
        for margin, pairs in (near or {}).items():
            for side in ("ours", "ours, bf16", "ours, int8"):
                if ("pair", side) in cost:
                    cases[f"{side}, margin {margin:g}"] = (side, n, n, n * pairs)
        base: dict[str, float] = {}
        for name, (side, clips, texts_, pairs) in cases.items():
            row: dict[str, Any] = {"evaluation": f"{n} x {n}: {name}"}
            if ("pair", side) in cost:
                times = {"clip": clips, "text": texts_, "pair": pairs}
                total = {
                    key: sum(number * cost[part, side][key] for part, number in times.items())
                    for key in ("wall", "cpu", "flops")
                }
                base = base or total
                row |= {"PFLOP": total["flops"] / 1e15, "wall h": total["wall"] / 3600, "cpu h": total["cpu"] / 3600}
                row |= {f"ratio {key}": base[key] / total[key] for key in ("wall", "cpu")}
                row["ratio FLOP"] = base["flops"] / total["flops"]
            else:
                row["PFLOP"] = NO_BF16
            rows.append(row)
    return rows


@torch.inference_mode()
def accuracy(arguments: argparse.Namespace) -> None:
    """R@k of the bundled model on rendered clips under inexact savings."""
    source = bundled_model("retrieval")
    model, processor = Model.from_pretrained(source).eval(), AlproProcessor.from_pretrained(source)
    lines = (arguments.data / "retrieval.jsonl").read_text().splitlines()[: arguments.clips]
    data = [json.loads(line) for line in lines]
    data = [{**row, "video": str(arguments.data / row["video"])} for row in data]
    loader = DataLoader(NumberedRows(data), batch_size=50, collate_fn=AlproCollator(processor))
    states = encode_batches(model, loader, keep_states=True)
    video = states.video_states
    assert video is not None
    # one scale per token, as a store of 8-bit tokens would have
    scale = video.abs().amax(dim=2, keepdim=True) / 127
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)

    def score(of: Any, tokens: torch.Tensor, pairs: torch.Tensor, half: bool = False) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return vtm_scores(of, states.text_states, states.text_mask, tokens, pairs)

    cases: dict[str, tuple[str, int, Callable[[torch.Tensor], torch.Tensor] | None]] = {
        "exact, all pairs": ("reference", 0, partial(score, model, video)),
        "top 20 reordered": ("rerank", 20, partial(score, model, video)),
        "top 16 reordered": ("rerank", 16, partial(score, model, video)),
        "no matching": ("vtc", 0, None),
        "clips kept in bf16, top 16": ("rerank", 16, partial(score, model, video.bfloat16().float())),
        "clips kept in 8 bit, top 16": ("rerank", 16, partial(score, model, (video / scale).round() * scale)),
        "int8 dynamic quantisation, top 16": ("rerank", 16, partial(score, quantised, video)),
        "bf16 matching (emulated here if not in hardware), top 16": (
            "rerank",
            16,
            partial(score, model, video, half=True),
        ),
    }
    rows = []
    for name, (protocol, k, pairs) in cases.items():
        started = time.process_time()
        scores = retrieval_scores(states, protocol, pairs, k)  # type: ignore[arg-type]
        seconds = time.process_time() - started
        found = retrieval_metrics(scores[0], states.text_to_video, scores[1])
        rows.append({"saving": name} | {f"R@{n}": found[f"t2v_r{n}"] for n in (1, 5, 10)} | {"cpu s": seconds})
    write("accuracy", {"texts": len(data), "clips": len(video), "data": arguments.data.name}, {"accuracy": rows})


def plain_step(model: Model, batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """The loss of a retrieval step: one fusion pass per kind of pair, every token through the last layer."""
    outputs = model.alpro(**batch, return_dict=True)
    loss = model.alpro.contrastive_loss(outputs.video_embeds, outputs.text_embeds)
    text, mask, videos, video_index, labels = model.alpro.matching_rows(
        outputs, batch["attention_mask"], generator=generator
    )
    size, video = len(text) // 3, videos[video_index]
    logits = [
        every_token(model, text[i : i + size], None if mask is None else mask[i : i + size], video[i : i + size])
        for i in range(0, 3 * size, size)
    ]
    return loss + classification_loss(torch.cat(logits), labels)


def training(arguments: argparse.Namespace) -> None:
    """Measure forward and backward of a retrieval step, and the share of time that training waits for data."""
    device, batch = arguments.device, arguments.batch
    ours = build(arguments.size).to(device).train()
    # without dropout, all sides compute the same loss; the table shows it
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for part in (ours.config.text_config, ours.config.video_config):
        part.attention_probs_dropout_prob = 0.0
    naive = plain(ours)
    for model in (ours, naive):
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
    side = ours.config.video_config.image_size
    pixels = torch.randn(batch, arguments.frames, 3, side, side, device=device)
    vocabulary = ours.config.text_config.vocab_size
    losses: dict[str, float] = {}
    peak: dict[str, float] = {}

    def step(name: str, model: Model, padded: int | None, dtype: torch.dtype | None = None) -> None:
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        ids, mask = (tensor.to(device) for tensor in texts(batch, vocabulary, padded))
        inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values_videos": pixels}
        generator = torch.Generator(device).manual_seed(0)
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = (
                plain_step(model, inputs, generator)
                if padded
                else model(**inputs, return_loss=True, generator=generator).loss
            )
        loss.backward()
        losses[name] = loss.item()
        model.zero_grad()
        if device != "cpu":
            peak[name] = torch.cuda.max_memory_allocated() / 2**20

    checkpointed = twin(ours)  # the option is a property of the model, not of its weights
    checkpointed.gradient_checkpointing_enable()
    sides: dict[str, Callable[[], None]] = {
        "plain": partial(step, "plain", naive, PADDED),
        "ours": partial(step, "ours", ours, None),
        # the sprite scripts train with it, because their sequences are short
        "ours, eager attention": partial(step, "ours, eager attention", plain(ours), None),
        "ours, checkpointing": partial(step, "ours, checkpointing", checkpointed, None),
    }
    if arguments.compile:
        compiled: Any = torch.compile(twin(ours))
        sides["ours, compiled"] = partial(step, "ours, compiled", compiled, None)
    if fast_bfloat16(device):
        sides["ours, bf16"] = partial(step, "ours, bf16", ours, None, torch.bfloat16)
    found = alternate(sides, arguments.rounds, device)
    rows: list[dict[str, Any]] = [
        {
            "step": name,
            "wall s": seconds["wall"],
            "cpu s": seconds["cpu"],
            "samples/s": batch / seconds["wall"],
            "TFLOP": flops(sides[name if "compiled" not in name else "ours"]) / 1e12,
            "ratio wall": found["plain"]["wall"] / seconds["wall"],
            "ratio cpu": found["plain"]["cpu"] / seconds["cpu"],
            "loss": losses[name],
            **({"peak MB": peak[name]} if name in peak else {}),
        }
        for name, seconds in found.items()
    ]
    if not fast_bfloat16(device):
        rows.append({"step": "ours, bf16", "wall s": NO_BF16})
    # on a CPU, the peak of a process cannot be reset: one number covers all sides
    memory = {} if peak else {"peak memory of all MB": peak_memory_mb()}
    settings = {key: value for key, value in vars(arguments).items() if key != "run"} | memory
    tables = {"step": rows}
    if arguments.data_steps:
        tables["data"] = [waiting(workers, arguments) for workers in arguments.workers]
    write(arguments.output, settings, tables, device)


def waiting(workers: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The share of time that training waits for the workers, which render the clips."""
    model, batch, steps = build(arguments.size).train(), arguments.batch, arguments.data_steps
    side = model.config.video_config.image_size
    processor = AlproProcessor.from_pretrained(bundled_model("retrieval"))
    processor.video_processor.size = {"height": side, "width": side}
    processor.video_processor.num_frames = arguments.frames
    rows = SpriteRows("retrieval", (steps + 2) * batch, seed=0, num_frames=arguments.frames, size=side)
    loader = DataLoader(rows, batch, collate_fn=AlproCollator(processor), num_workers=workers)
    keys = ("input_ids", "attention_mask", "pixel_values_videos", "video_ids", "text_ids")
    waited = total = 0.0
    batches = iter(loader)
    for number in range(steps + 2):
        started = time.perf_counter()
        found = next(batches)
        ready = time.perf_counter()
        model(**{key: found[key] for key in keys if key in found}, return_loss=True).loss.backward()
        model.zero_grad()
        if number >= 2:  # the first batches include the start of the workers
            waited, total = waited + ready - started, total + time.perf_counter() - started
    return {"workers": workers, "samples/s": steps * batch / total, "waiting for data": f"{waited / total:.1%}"}


def gpu(arguments: argparse.Namespace) -> None:
    """Inference and training at base size on a GPU."""
    if not torch.cuda.is_available():
        print("Not measured: PyTorch finds no GPU. `inference` and `training` measure the CPU.")
        return
    for name, more in {
        "gpu-inference": {
            "run": inference,
            "texts": 64,
            "clips": 16,
            "frames": 8,
            "compile": True,
            "gemm": 8192,
            "exact": True,
        },
        **{
            f"gpu-training-{n}": {"run": training, "batch": n, "frames": 8, "data_steps": 0, "compile": True}
            for n in (8, 16, 32, 64)
        },
    }.items():
        settings = argparse.Namespace(**(vars(arguments) | {"output": name, "size": "base", "device": "cuda"} | more))
        more["run"](settings)  # type: ignore[operator]


def add_arguments(commands: Any) -> None:
    one = commands.add_parser("inference", help="parts of an evaluation, and whole evaluations by calculation")
    one.add_argument("--texts", type=int, default=32, help="texts of a batch (default: %(default)s)")
    one.add_argument(
        "--clips", type=int, default=2, help="clips of a batch, each matched with all texts (default: %(default)s)"
    )
    one.add_argument("--no-exact", dest="exact", action="store_false", help="leave out the table of exact savings")
    one.add_argument("--no-compile", dest="compile", action="store_false", help="leave out torch.compile")
    one.add_argument(
        "--gemm", type=int, default=2048, help="side of the matrices of the GEMM peak (default: %(default)s)"
    )
    two = commands.add_parser("training", help="a training step")
    two.add_argument(
        "--data-steps",
        type=int,
        default=20,
        help="steps to measure the wait for data; 0: leave it out (default: %(default)s)",
    )
    two.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="data loading workers to compare")
    two.add_argument("--batch", type=int, default=4, help="rows of a step (default: %(default)s)")
    two.add_argument("--compile", action="store_true", help="measure torch.compile, too")
    for name, command in (("inference", one), ("training", two)):
        command.add_argument("--size", choices=["base", "sprites"], default="base", help="model (default: base)")
        command.add_argument("--frames", type=int, default=8, help="of a clip (default: %(default)s)")
        command.add_argument("--rounds", type=int, default=3, help="of each side (default: %(default)s)")
        command.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
        command.add_argument(
            "--output", default=name, help="name of the result in docs/benchmarks (default: %(default)s)"
        )
        command.set_defaults(run=inference if name == "inference" else training)
    three = commands.add_parser("accuracy", help="cost of the inexact savings")
    three.add_argument(
        "--data", type=Path, required=True, help="folder of a split that scripts/sprites/render.py wrote"
    )
    three.add_argument("--clips", type=int, default=1000, help="use the first so many clips (default: %(default)s)")
    three.set_defaults(run=accuracy)
    four = commands.add_parser("gpu", help="inference and training on a GPU")
    four.add_argument("--rounds", type=int, default=5, help="of each side (default: %(default)s)")
    four.set_defaults(run=gpu)

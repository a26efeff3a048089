"""Cut films of the sprite world into windows in several ways, and search the moments of each among all films.

Settings are compared on films of the validation split. The films of the test are measured at the end, with the
settings chosen. Films, windows and features are kept in the folder of the data, so an interrupted run goes on.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import write
from film_windows import TRUTH, Cut, FilmJob, FilmWindows, Span, encode_film, key_of
from tqdm.auto import tqdm

from alpro_hf.data.window_choice import window_settings
from alpro_hf.data.windows import LONGEST, WindowSettings
from alpro_hf.evaluation.moments import MOMENTS_KEPT, best_moments, moment_row
from alpro_hf.evaluation.results import Row, metric_intervals, row_metrics
from alpro_hf.inference.video_index import DEFAULT_RERANK
from alpro_hf.loading import BUNDLED, load_model
from alpro_hf.model.matching_alpro import rerank, vtc_scores, vtm_scores
from alpro_hf.sprites.films import claim_films, write_films
from alpro_hf.sprites.render import run_jobs
from alpro_hf.sprites.world import SpriteWorldError

WHOLE, ONE, SEVERAL, DEFAULT, SCENES = "whole files", "one length", "several lengths", "default", "scenes"
CHOSEN_BY = "r1_iou_0.5"
ENDLESS = LONGEST  # of a window that holds a whole film
SHOWN = {
    "video_r1": "film R@1",
    "r1_iou_0.3": "R@1, IoU 0.3",
    "r1_iou_0.5": "R@1, IoU 0.5",
    "r1_iou_0.7": "R@1, IoU 0.7",
    "mean_iou": "mean IoU",
    "r5_iou_0.5": "R@5, IoU 0.5",
}
HARD, FADING = "hard cuts", "fading"


def settings_of(*lengths: float, cuts: Any = None) -> WindowSettings:
    """Windows of some lengths, in the manner of the default; `cuts` as in `WindowSettings`."""
    return replace(WindowSettings(), lengths=lengths, stride=None, cuts=cuts)


# what is compared -> settings of which the best on validation is reported; scenes last 1.5 to 6 s
CANDIDATES: dict[str, list[Cut]] = {
    WHOLE: [settings_of(ENDLESS)],
    ONE: [settings_of(length) for length in (15.0, 3.0)],
    SEVERAL: [settings_of(*lengths) for lengths in ((15.0, 7.5), (15.0, 7.5, 3.75), (15.0, 7.5, 3.0))],
    DEFAULT: [WindowSettings()],
    "sudden cuts alone": [
        settings_of(*lengths, cuts="sudden") for lengths in ((15.0, 7.5), (15.0, 7.5, 3.75), (15.0, 7.5, 3.0))
    ],
    TRUTH: [TRUTH],
}


def scenes() -> WindowSettings:
    """What `--window scenes` does."""
    found = window_settings("scenes", None)
    assert found is not None
    return found


class Text(NamedTuple):
    """An encoded query: its unit vector (1, P), and the tokens (1, L, D) that the matching head reads."""

    embed: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True)
class Films:
    """Films of a split, their queries, and their encoded windows.

    Args:
        name: Of the films, for titles.
        rows: Those of moments.jsonl, one a query.
        texts: The encoded queries.
        names: Of the films, in the order of `windows`.
        windows: Of each film.
    """

    name: str
    rows: list[Mapping[str, Any]]
    texts: list[Text]
    names: list[str]
    windows: list[FilmWindows]

    def places(self, settings: Cut) -> list[tuple[int, int]]:
        """The windows that the settings give: film, and place among the windows kept of it."""
        return [(film, place) for film, one in enumerate(self.windows) for place in one.of_settings[key_of(settings)]]


def add_arguments(commands: Any) -> None:
    """Describe `run.py films`."""
    parser = commands.add_parser("films", help=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder for the films; those in it are used again")
    parser.add_argument("--count", type=int, default=60, help="films of each split (default: %(default)s)")
    parser.add_argument(
        "--fading",
        type=int,
        default=20,
        help="films whose scenes fade into each other; 0: none (default: %(default)s)",
    )
    parser.add_argument("--fade", type=float, default=1.0, help="seconds of a fade (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side of the frames in pixels (default: %(default)s)")
    parser.add_argument("--model", default=BUNDLED, help="folder, Hub id or 'bundled' (default: %(default)s)")
    parser.add_argument("--validation-only", action="store_true", help="choose, and leave the films of the test alone")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Choose on films of validation, report on those of the test."""
    kinds = {HARD: (arguments.count, 0.0)} | ({FADING: (arguments.fading, arguments.fade)} if arguments.fading else {})
    splits = ("validation",) if arguments.validation_only else ("validation", "test")
    # everything that can be wrong is found before the first film is rendered
    if not arguments.fade > 0 and arguments.fading:
        raise SystemExit(f"--fade is {arguments.fade}; give seconds above 0, or --fading 0 to leave such films out.")
    try:
        for split in splits:
            for count, fade in kinds.values():
                claim_films(arguments.data, split, count, size=arguments.size, fade=fade)
    except (SpriteWorldError, OSError) as error:
        raise SystemExit(f"--data {arguments.data}: {error}") from error
    model, processor = load_model("retrieval", arguments.model)
    scenes_cut = scenes()

    def films_of(split: str, kind: str, settings: Sequence[Cut]) -> Films:
        count, fade = kinds[kind]
        folder = write_films(arguments.data, split, count, size=arguments.size, fade=fade, workers=arguments.threads)
        kept = arguments.data / "windows" / folder.name
        names = [film.name for film in claim_films(arguments.data, split, count, size=arguments.size, fade=fade)[1]]
        outputs = [(kept / name).with_suffix(".safetensors") for name in names]
        rows = [json.loads(line) for line in (folder / "moments.jsonl").read_text(encoding="utf-8").splitlines()]
        scenes_of: dict[str, list[Span]] = {}
        for row in rows:
            scenes_of.setdefault(row["video"], []).append((row["start"], row["end"]))
        jobs = [
            FilmJob(folder / name, output, tuple(settings), arguments.model, tuple(scenes_of[name]))
            for name, output in zip(names, outputs, strict=True)
        ]
        run_jobs(
            encode_film,
            jobs,
            arguments.threads,
            f"{split}, {kind}: encode",
            True,
            unit="film",
            worth_processes=4,
            chunk=1,
        )
        windows = [FilmWindows(output) for output in outputs]
        return Films(f"{split}, {kind}", rows, texts_of(model, processor, rows), names, windows)

    everything = list(dict.fromkeys([*(one for group in CANDIDATES.values() for one in group), scenes_cut]))
    tables: dict[str, list[dict[str, Any]]] = {}
    chosen: dict[str, Cut] = {}
    for kind in kinds:
        films = films_of("validation", kind, everything)
        tried = []
        for name, candidates in {**CANDIDATES, SCENES: [scenes_cut]}.items():
            found = {windows: measured(films, model, windows) for windows in candidates}
            tried += [row_of(name, windows, films, rows) for windows, rows in found.items()]
            if kind == HARD:  # one choice for both kinds
                chosen[name] = max(found, key=lambda windows: metrics_of(found[windows])[CHOSEN_BY])
        tables[f"validation, {kind}"] = tried
    alone = [(name, False) for name in (WHOLE, ONE, SEVERAL, DEFAULT)]
    reported = [*alone, (DEFAULT, True), (SCENES, False), (TRUTH, False)]
    for kind in kinds if "test" in splits else ():
        films = films_of("test", kind, [chosen[name] for name, _ in reported])
        table, intervals = [], []
        for name, reranked in reported:
            rows = measured(films, model, chosen[name], DEFAULT_RERANK if reranked else 0)
            title = f"{name}, re-ranked" if reranked else name
            table.append(row_of(title, chosen[name], films, rows))
            bounds = metric_intervals(rows)
            intervals.append(
                {"cut": title} | {shown: "{:.1f} to {:.1f}".format(*bounds[metric]) for metric, shown in SHOWN.items()}
            )
        one = next(row["windows of the films"] for row in table if row["cut"] == ONE)
        for row in table:
            row["x one length"] = round(row["windows of the films"] / one, 2)
        tables[f"test, {kind}"], tables[f"test, {kind}: 95 % intervals"] = table, intervals
    settings = {"films": arguments.count, "fading films": arguments.fading, "seconds of a fade": arguments.fade}
    settings |= {"size": arguments.size, "model": arguments.model, "gallery": "all films", "re-ranked": DEFAULT_RERANK}
    settings |= {"chosen by": f"{CHOSEN_BY} on validation, hard cuts"}
    tests_first = dict(sorted(tables.items(), key=lambda table: table[0].startswith("validation")))
    name = "films-validation" if arguments.validation_only else "films"
    write(name, settings, tests_first)


@torch.inference_mode()
def measured(films: Films, model: Any, windows: Cut, reranked: int = 0) -> list[Row]:
    """Search the moment of each query among the windows of all films.

    Args:
        films: The films.
        model: Reads queries and windows together, if some are re-ranked.
        windows: How films are cut.
        reranked: Of how many windows the matching head decides on the order; 0: similarity alone.

    Returns:
        The rows of `evaluation.moments.moment_row`.
    """
    places = films.places(windows)
    spans = [(film, *films.windows[film].spans[place]) for film, place in places]
    embeds = torch.stack([films.windows[film].embeds[place] for film, place in places])
    scores = vtc_scores(torch.cat([text.embed for text in films.texts]), embeds)
    found = []
    title = f"{films.name}: {described(windows)}" + (", re-ranked" if reranked else "")
    for row, text, own in zip(tqdm(films.rows, desc=title, unit="query"), films.texts, scores, strict=True):
        best = best_moments(own, spans, max(MOMENTS_KEPT, reranked))
        if reranked:
            tokens = torch.cat([films.windows[film].tokens(place) for film, place in (places[i] for i in best)])

            def match(some: torch.Tensor, text: Text = text, tokens: torch.Tensor = tokens) -> torch.Tensor:
                pairs = torch.stack([torch.zeros_like(some), some], dim=1)
                return vtm_scores(model, text.tokens, None, tokens.to(model.device), pairs)

            best = [best[i] for i in rerank(own[best], reranked, match).order.tolist()]
        moments = [{"video": films.names[spans[i][0]], "start": spans[i][1], "end": spans[i][2]} for i in best]
        found.append(moment_row(row["text"], row["video"], [[row["start"], row["end"]]], moments))
    return found


@torch.inference_mode()
def texts_of(model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[Text]:
    """Encode the queries, one by one as a search does."""
    texts = []
    for row in rows:
        words = processor(text=[row["text"]], return_tensors="pt").to(model.device)
        output = model.base_model.get_text_features(words["input_ids"], words["attention_mask"])
        texts.append(Text(output.pooler_output.float().cpu(), output.last_hidden_state))
    return texts


def metrics_of(rows: Sequence[Row]) -> dict[str, float]:
    """Metrics in percent."""
    return {name: float(metric.statistic(metric.values)) for name, metric in row_metrics(rows).items()}


def described(windows: Cut) -> str:
    """The lengths of windows in words."""
    if isinstance(windows, str):
        return "where scenes start and end"
    if windows.longest == ENDLESS:
        return "one window"
    ends = {
        "changes": ", at cuts and fades",
        "sudden": ", at sudden cuts",
        "scenes": ", at cuts of PySceneDetect",
        None: "",
    }
    return " and ".join(f"{length:g}" for length in windows.lengths) + " s" + ends[windows.cuts]


def row_of(name: str, windows: Cut, films: Films, rows: Sequence[Row]) -> dict[str, Any]:
    """A row of a table: the cut, its cost, its metrics in percent."""
    metrics = metrics_of(rows)
    return {
        "cut": name,
        "windows": described(windows),
        **{shown: round(metrics[metric], 1) for metric, shown in SHOWN.items()},
        "windows of the films": len(films.places(windows)),
    }

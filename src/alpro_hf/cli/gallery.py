"""The gallery of `alpro demo`: rendered from the sprite world, indexed, searched and asked."""

import os
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.metrics import question_answering_metrics
from ..inference.question_answering import ask
from ..inference.video_index import SearchResult, VideoIndex
from ..sprites.render import write_split
from ..trust import printable
from ..untrusted_json import parse_json
from .contact_sheet import ShownQuestion, ShownSearch, draw_contact_sheet

HONEST = (
    "The two small models know a synthetic world of moving pictograms and nothing else.",
    "The clips are new to them: in training no sprite was seen doing what it does here.",
)
SHOWN_SEARCHES = (
    "left/right",
    "clockwise/counterclockwise",
    "grow/shrink",
    "appear/disappear",
    "follow/pass",
    "order",
)
SHOWN_QUESTIONS = ("what", "which way", "where", "which first", "how many")
RERANK = 16

Row = dict[str, str]


@dataclass(frozen=True)
class DemoScores:
    """Results of the models on the whole gallery.

    Args:
        clips: Size of the gallery.
        r1_vtc, r1_rerank: Number of captions whose clip comes first, by similarity and after re-ranking.
        opposites: Number of clips that score higher for their caption than for its opposite.
        answers: Percent of questions answered correctly; see `question_answering_metrics`.
    """

    clips: int
    r1_vtc: int
    r1_rerank: int
    opposites: int
    answers: Mapping[str, float]


def run_demo(
    output: Path, retrieval: tuple[Any, Any], qa: tuple[Any, Any], *, clips: int = 36, seed: int = 0
) -> DemoScores:
    """Render, index, search and ask; print the results and draw them.

    Args:
        output: Folder for the clips, the index and the picture. Clips and index of an earlier run are reused.
        retrieval, qa: Model and processor of each task.
        clips: Size of the gallery, at most 1,000.
        seed: Seed of the gallery.

    Raises:
        SpriteWorldError: The folder holds another gallery, or `clips` is too large.
        VideoIndexError: The folder holds an index of another model.
    """
    started = time.monotonic()
    gallery = write_split(output, "test", clips, seed)
    captions = {
        Path(os.path.abspath(gallery / row["video"])): row["text"] for row in _rows(gallery / "retrieval.jsonl")
    }
    index = VideoIndex.build(*retrieval, captions, directory=output / "index", name="bundled")
    index.remove(set(index.paths) - set(captions))  # left by an earlier run with a larger gallery

    searches, opposites = _search_opposites(index, gallery, captions)
    questions, answers = _ask_everything(*qa, gallery)
    scores = DemoScores(
        clips=len(captions),
        r1_vtc=_hits(index, captions, rerank=0),
        r1_rerank=_hits(index, captions, rerank=RERANK),
        opposites=opposites,
        answers=answers,
    )
    for number, search in enumerate(searches, start=1):
        _print_search(number, search)
    _print_questions(questions)
    numbers = _numbers(scores)
    print("\nThe whole gallery")
    for value, *meaning in numbers:
        print(f"  {value:>4}  {' '.join(meaning)}")
    print("\n" + "\n".join(HONEST))
    picture = output / "contact-sheet.png"
    draw_contact_sheet(picture, "alpro demo", HONEST, numbers, searches, questions)
    print(f"\nclips    {printable(gallery / 'clips')}\nindex    {printable(output / 'index')}")
    print(f"picture  {printable(picture)}")
    print(f"\n{time.monotonic() - started:.0f} seconds. Now try your own:")
    print(f'  alpro search {printable(output / "index")} "{min(captions.values(), key=len)}"')
    print(f'  alpro ask {printable(os.path.relpath(questions[0].clip))} "{questions[0].question}"')
    return scores


def _rows(path: Path) -> list[Row]:
    return [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _hits(index: VideoIndex, captions: Mapping[Path, str], rerank: int) -> int:
    found = index.search(list(captions.values()), top_k=1, rerank=rerank)
    return sum(best.path == clip for [best], clip in zip(found, captions, strict=True))


def _search_opposites(index: VideoIndex, gallery: Path, captions: Mapping[Path, str]) -> tuple[list[ShownSearch], int]:
    """Search for a caption of every clip and for its opposite.

    Returns:
        One search of each kind of `SHOWN_SEARCHES`, and the number of clips that score higher for their caption.
    """
    rows = [row for row in _rows(gallery / "choices.jsonl") if row["kind"] == "opposite"]
    clips = [Path(os.path.abspath(gallery / row["video"])) for row in rows]
    true = index.search([row["text"] for row in rows], top_k=len(index), rerank=RERANK)
    false = index.search([row["negative"] for row in rows], top_k=len(index), rerank=RERANK)
    shown: dict[str, ShownSearch] = {}
    preferred = 0
    for row, clip, results, opposite_results in zip(rows, clips, true, false, strict=True):
        own = next(result for result in results if result.path == clip)
        opposite = next(result for result in opposite_results if result.path == clip)
        preferred += _order(own) > _order(opposite)
        found = results[:3]
        search = ShownSearch(
            row["text"], clip, own, found, [captions[result.path] for result in found], row["negative"], opposite
        )
        shown.setdefault(row["pair"], search)
    return [shown[pair] for pair in SHOWN_SEARCHES if pair in shown], preferred


def _order(result: SearchResult) -> tuple[bool, float]:
    """Sorting key of re-ranking: scores of re-ranked results are on another scale, and all of them come first."""
    return result.match_probability is not None, result.score


def _ask_everything(model: Any, processor: Any, gallery: Path) -> tuple[list[ShownQuestion], dict[str, float]]:
    """Ask every question.

    Returns:
        One question of each type, then one whose answer the model was not trained on; and the metrics of all.
    """
    by_clip: dict[str, list[Row]] = {}
    for row in _rows(gallery / "qa.jsonl"):
        by_clip.setdefault(row["video"], []).append(row)
    known = set(model.config.id2label.values())
    asked: list[tuple[Row, ShownQuestion]] = []
    for video, rows in by_clip.items():
        answers = ask(model, processor, gallery / video, [row["question"] for row in rows], top_k=3)
        for row, best in zip(rows, answers, strict=True):
            truth = row["answer"]
            asked.append((row, ShownQuestion(gallery / video, row["question"], best, truth, truth in known)))
    shown: dict[str, ShownQuestion] = {}
    for row, question in asked:
        kind = row["answer_type"] if question.known else "unknown"
        # the shown questions are about different clips if there are enough
        if kind not in shown and question.clip not in [other.clip for other in shown.values()]:
            shown[kind] = question
    metrics = question_answering_metrics(
        [question.answers[0].answer for _, question in asked],
        [row["answer"] for row, _ in asked],
        [row["answer_type"] for row, _ in asked],
        known,
    )
    return [shown[kind] for kind in (*SHOWN_QUESTIONS, "unknown") if kind in shown], metrics


# -------------------------------------------------------------------------------------------------------------- output


def _numbers(scores: DemoScores) -> list[tuple[str, str, str]]:
    """Each result and its meaning, in two lines."""

    def share(count: int) -> str:
        return f"{count / scores.clips:.0%}"

    right = scores.answers
    return [
        (share(scores.r1_vtc), f"of {scores.clips} captions find their clip first", "(R@1) by similarity"),
        (share(scores.r1_rerank), "of them re-ranked by matching;", f"by chance {1 / scores.clips:.0%}"),
        (share(scores.opposites), "of clips prefer their caption to", "its opposite; by chance 50%"),
        (f"{right['accuracy']:.0f}%", f"of {right['n']:.0f} questions about the", "clips answered right"),
    ]


def _print_search(number: int, search: ShownSearch) -> None:
    own, opposite = search.own, search.opposite_result
    print(f"\nSearch {number}: {search.query}")
    print("   rank   match  similarity  clip       caption")
    for result, caption in zip(search.results, search.captions, strict=True):
        mark = "*" if result.path == search.target else " "
        short = textwrap.shorten(caption, 76, placeholder="...")
        print(f"{mark} {result.rank:5}  {_match(result):>6}  {result.similarity:10.2f}  {result.path.name}  {short}")
    print(f"  The opposite: {search.opposite}")
    print(f"  gives {search.target.name} match {_match(opposite)} instead of {_match(own)}, ", end="")
    print(f"rank {opposite.rank} instead of {own.rank}.")


def _match(result: SearchResult) -> str:
    return "-" if result.match_probability is None else f"{result.match_probability:.1%}"


def _print_questions(questions: Sequence[ShownQuestion]) -> None:
    print(f"\n  {'question':50}  {'answer':28}  {'right answer':24}  clip")
    for question in questions:
        best = question.answers[0]
        mark = "*" if best.answer == question.truth else " "
        answer = f"{best.answer} {best.probability:.0%}"
        truth = question.truth if question.known else f"{question.truth} (never taught)"
        print(f"{mark} {question.question:50}  {answer:28}  {truth:24}  {question.clip.name}")

"""Endless training rows from the sprite world, rendered straight to arrays: no files, no clip twice."""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from .language import captions, questions
from .render import render
from .world import Scene, content, draw_group, semantic_key

GROUP = 4  # clips with the same sprites and different actions that stand side by side
LONE = 10**12  # number of the first group of which one clip alone is shown
# how often a type of question is asked where a scene has all of them; naming one of 160 sprites takes most examples
QUESTION_WEIGHTS = {"what": 3, "where": 2, "which first": 2, "which way": 1, "how many": 1}
# Phases of a training: up to which row, and the kinds (see `draw_group`) that its groups take in turn; None: any kind.
Curriculum = Sequence[tuple[int, Sequence[str | None]]]


class SpriteRows(Dataset):
    """Rows for `AlproCollator`, each a pure function of (seed, index).

    Four neighbouring rows show the same sprites doing different things, half of the time opposite things. Read in
    order they put such groups into one batch, where the nouns of a caption no longer tell the clips apart. Without
    them the contrastive loss is content with the nouns and directions of motion stay at chance.

    Args:
        task: `retrieval` for {"video", "video_id", "text"}, `qa` for {"video", "video_id", "question", "answer",
            "answer_type"}.
        length: Number of rows.
        seed: Of everything drawn.
        num_frames: Frames of a clip. Each is taken at a random moment of its share of the clip's duration.
        size: Side of the square frames in pixels.
        curriculum: Phases of a training: (row, kinds) for the groups that start below `row` and that no phase before
            it has; they are of these kinds in turn, see `draw_group`, None for any. Rows behind the last phase are of
            any kind. What a word means is learned several times faster where nothing else moves, and what is hard to
            tell apart comes out of chance with groups that differ in nothing else.
        mixed: Whether every other group is broken up into four clips of different sprites. Matching needs them: hard
            negatives come from a clip's own group, and without others it never learns that nouns matter.
        questions_per_clip: With `qa`, how many neighbouring rows ask about one clip (and say so by their `video_id`).
            A clip costs more to render and encode than its questions do to answer.
        split: `train`, or `validation` for rows of seen combinations that training never drew.
    """

    def __init__(
        self,
        task: Literal["retrieval", "qa"],
        length: int,
        *,
        seed: int = 0,
        num_frames: int = 4,
        size: int = 64,
        curriculum: Curriculum = (),
        mixed: bool = False,
        questions_per_clip: int = 1,
        split: Literal["train", "validation"] = "train",
    ):
        if task not in ("retrieval", "qa"):
            raise ValueError(f"task={task!r} is unknown; use 'retrieval' or 'qa'.")
        if questions_per_clip < 1:
            raise ValueError(f"questions_per_clip={questions_per_clip} must be at least 1.")
        self.task = task
        self.length = length
        self.seed = seed
        self.num_frames = num_frames
        self.size = size
        self.curriculum = curriculum
        self.mixed = mixed
        self.questions_per_clip = questions_per_clip if task == "qa" else 1
        self.split = split

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"Row {index} of {self.length}.")
        clip = index // self.questions_per_clip
        group = clip // GROUP
        first = group * GROUP * self.questions_per_clip  # a group, and so a clip, belongs to one phase as a whole
        kinds = next((kinds for until, kinds in self.curriculum if first < until), (None,))
        kind = kinds[(group // 2 if self.mixed else group) % len(kinds)]
        if self.mixed and group % 2:
            group = LONE + clip  # a group of its own for this clip
        scene = draw_group(self.split, self.seed, group, kind)[clip % GROUP]
        rng = random.Random(f"sprite rows/{self.task}/{self.split}/{self.seed}/{clip}")
        times = tuple((frame + rng.uniform(0.15, 0.85)) / self.num_frames for frame in range(self.num_frames))
        video = _render(scene, times, self.size).copy()  # a row is its reader's to change
        if self.task == "retrieval":
            # clips with the same meaning are no negatives of each other
            return {"video": video, "video_id": str(semantic_key(content(scene))), "text": captions(scene, rng)[0]}
        left: list[dict[str, Any]] = []
        for _ in range(index % self.questions_per_clip + 1):
            left = left or questions(scene, rng, candidates=True)
            types = sorted({row["answer_type"] for row in left})
            [wanted] = rng.choices(types, [QUESTION_WEIGHTS[answer_type] for answer_type in types])
            drawn = rng.choice([row for row in left if row["answer_type"] == wanted])
            left.remove(drawn)
        return {"video": video, "video_id": clip, **drawn}


@lru_cache(maxsize=2)  # neighbouring rows ask about one clip
def _render(scene: Scene, times: tuple[float, ...], size: int) -> np.ndarray:
    return render(scene, times, size)


__all__ = ["GROUP", "SpriteRows"]

"""Endless training rows from the sprite world, rendered straight to arrays: no files, no clip twice."""

import random
from typing import Any, Literal

from torch.utils.data import Dataset

from .sprite_language import captions, questions
from .sprite_render import render
from .sprite_world import DIRECTIONS, content, draw_group, semantic_key

GROUP = 4  # clips with the same sprites and different actions that stand side by side
LONE = 10**12  # number of the first group of which one clip alone is shown
# how often a type of question is asked where a scene has all of them; naming one of 160 sprites takes most examples
QUESTION_WEIGHTS = {"what": 3, "where": 2, "which first": 2, "which way": 1, "how many": 1}


class SpriteRows(Dataset):
    """Rows for `AlproCollator`, each a pure function of (seed, index).

    Four neighbouring rows show the same sprites doing different things, half of the time opposite things. Read in
    order they put such groups into one batch, where the nouns of a caption no longer tell the clips apart. Without
    them the contrastive loss is content with the nouns and directions of motion stay at chance.

    Args:
        task: `retrieval` for {"video", "video_id", "text"}, `qa` for {"video", "question", "answer", "answer_type"}.
        length: Number of rows.
        seed: Of everything drawn.
        num_frames: Frames of a clip. Each is taken at a random moment of its share of the clip's duration.
        size: Side of the square frames in pixels.
        curriculum: Two numbers of rows. Rows below the first show a single sprite: what a word means is learned
            several times faster where nothing else moves. Rows below the second do so too, and every other group is a
            sprite that moves left, right, up and down, the actions that are hardest to tell apart.
        mixed: Whether every other group is broken up into four clips of different sprites. Matching needs them: hard
            negatives come from a clip's own group, and without others it never learns that nouns matter.
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
        curriculum: tuple[int, int] = (0, 0),
        mixed: bool = False,
        split: Literal["train", "validation"] = "train",
    ):
        if task not in ("retrieval", "qa"):
            raise ValueError(f"task={task!r} is unknown; use 'retrieval' or 'qa'.")
        self.task = task
        self.length = length
        self.seed = seed
        self.num_frames = num_frames
        self.size = size
        self.curriculum = curriculum
        self.mixed = mixed
        self.split = split

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"Row {index} of {self.length}.")
        single, directions = self.curriculum
        group = index // GROUP
        kind = None
        if index < max(single, directions):
            kind = DIRECTIONS if index >= single and group % 2 else "one"
        if self.mixed and group % 2:
            group = LONE + index  # a group of its own for this row
        scene = draw_group(self.split, self.seed, group, kind)[index % GROUP]
        rng = random.Random(f"sprite rows/{self.task}/{self.split}/{self.seed}/{index}")
        times = [(frame + rng.uniform(0.15, 0.85)) / self.num_frames for frame in range(self.num_frames)]
        video = render(scene, times, self.size)
        if self.task == "retrieval":
            # clips with the same meaning are no negatives of each other
            return {"video": video, "video_id": str(semantic_key(content(scene))), "text": captions(scene, rng)[0]}
        rows = questions(scene, rng)
        types = sorted({row["answer_type"] for row in rows})
        [wanted] = rng.choices(types, [QUESTION_WEIGHTS[answer_type] for answer_type in types])
        return {"video": video, **rng.choice([row for row in rows if row["answer_type"] == wanted])}


__all__ = ["GROUP", "SpriteRows"]

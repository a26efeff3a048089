"""Training rows of the sprite world, rendered to arrays when they are read: without end, files or repetition."""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from .language import NONE, SEQUENCE, caption_and_negatives, captions, false_premises, questions
from .render import render
from .world import Scene, content, draw_group, semantic_key

GROUP = 4  # neighbouring clips with the same sprites and different actions
LONE = 10**12  # number of the first group of which only one clip is shown
# Relative frequency of the types of questions, if a scene has all. Naming one of 160 sprites needs most examples.
QUESTION_WEIGHTS = {"what": 3, "where": 2, "which first": 2, "which way": 1, "how many": 1, "false premise": 1}
# Phases of a training: (first row after the phase, the kinds of its groups in turn, see `draw_group`; None: any kind).
Curriculum = Sequence[tuple[int, Sequence[str | None]]]
# Phases of the wordings of a sequence: (first row after the phase, wordings, of `SEQUENCE`); after them all wordings.
Wordings = Sequence[tuple[int, Sequence[str]]]


class SpriteRows(Dataset):
    """Rows for `AlproCollator`, each a pure function of (seed, index).

    Four neighbouring rows show the same sprites doing different things, half of the time opposite things. Read in
    order, such a group is in one batch, where the nouns of a caption do not distinguish its clips. Without groups, the
    contrastive loss can be solved by nouns, and directions of motion stay at chance.

    Args:
        task: `retrieval` for {"video", "video_id", "text"}, `qa` for {"video", "video_id", "question", "answer",
            "answer_type"}.
        length: Number of rows.
        seed: Seed of scenes, captions and questions.
        num_frames: Frames of a clip. Each is taken at a random moment of its share of the duration.
        size: Side of the square frames in pixels.
        curriculum: Phases of a training, each (row, kinds): the groups that start before `row`, and after the phases
            before, take these kinds in turn; see `draw_group`, None for any kind. Rows after the last phase are of any
            kind. The meaning of a word is learned several times faster if nothing else moves, and actions that are
            hard to distinguish get above chance with groups that differ in nothing else.
        mixed: Whether every other group is replaced by four clips of different sprites. Matching needs them: hard
            negatives come from the group of a clip, so without other clips it never learns that nouns matter.
        questions_per_clip: With `qa`, how many neighbouring rows ask about one clip, with the same `video_id`.
            Rendering and encoding a clip costs more than answering its questions.
        split: `train`; `train-dev`, which lacks the combinations of `dev`, too; or `validation` for rows of seen
            combinations that training never drew.
        negatives: With `retrieval`, whether rows have `negatives`, all false captions that differ from `text` in one
            detail; see `AlproCollator`.
        wordings: With `negatives`, phases of a training by the wordings of sequences, each (row, wordings). The order
            of events is learned more surely if one wording comes first. Name a wording twice to show it more often.
        order_share: With `negatives`, share of the sequences whose only false caption has the events in the other
            order. 0: it is one of about four.
        candidates: With `qa`, whether answers that training never shows with a question do not compete for it. They
            are known from the definition of the split, which a measurement of held-out combinations may not use:
            without them the model can learn which combinations are missing.
        false_premises: With `qa`, whether some questions assume a relation that the clip does not show; their answer
            is "none", which the answers of the model then have to include.
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
        split: Literal["train", "train-dev", "validation"] = "train",
        negatives: bool = False,
        wordings: Wordings = (),
        order_share: float = 0.0,
        candidates: bool = True,
        false_premises: bool = False,
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
        self.negatives = negatives
        self.wordings = wordings
        self.order_share = order_share
        self.candidates = candidates
        self.false_premises = false_premises

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"Row {index} of {self.length}.")
        clip = index // self.questions_per_clip
        group = clip // GROUP
        first = group * GROUP * self.questions_per_clip  # so that a group, and so a clip, is in one phase only
        kinds = next((kinds for until, kinds in self.curriculum if first < until), (None,))
        kind = kinds[(group // 2 if self.mixed else group) % len(kinds)]
        if self.mixed and group % 2:
            group = LONE + clip  # a group of its own for this clip
        scene = draw_group(self.split, self.seed, group, kind)[clip % GROUP]
        rng = random.Random(f"sprite rows/{self.task}/{self.split}/{self.seed}/{clip}")
        times = tuple((frame + rng.uniform(0.15, 0.85)) / self.num_frames for frame in range(self.num_frames))
        video = _render(scene, times, self.size).copy()  # cached, and the reader may change its row
        if self.task == "retrieval":
            # clips with the same meaning must not be negatives of each other
            row = {"video": video, "video_id": str(semantic_key(content(scene)))}
            if not self.negatives:
                return {**row, "text": captions(scene, rng)[0]}
            sequence = next((wordings for until, wordings in self.wordings if first < until), SEQUENCE)
            text, false = caption_and_negatives(scene, rng, sequence)
            if self.order_share and scene.kind == "sequence" and rng.random() < self.order_share:
                false = false[-1:]  # the order comes last
            return {**row, "text": text, "negatives": false}
        left: list[dict[str, Any]] = []
        for _ in range(index % self.questions_per_clip + 1):
            left = left or self._questions(scene, rng)
            types = sorted({row["answer_type"] for row in left})
            [wanted] = rng.choices(types, [QUESTION_WEIGHTS[answer_type] for answer_type in types])
            drawn = rng.choice([row for row in left if row["answer_type"] == wanted])
            left.remove(drawn)
        return {"video": video, "video_id": clip, **drawn}

    def _questions(self, scene: Scene, rng: random.Random) -> list[dict[str, Any]]:
        shown = "train" if self.split == "validation" else self.split
        rows = questions(scene, rng, candidates=self.candidates, split=shown)
        if not self.false_premises:
            return rows
        # where a premise may be false, "none" competes for every answer
        rows = [{**row, "candidates": (*row["candidates"], NONE)} if "candidates" in row else row for row in rows]
        return rows + [
            {name: value for name, value in row.items() if name != "other"} for row in false_premises(scene, rng)
        ]


@lru_cache(maxsize=2)  # neighbouring rows ask about one clip
def _render(scene: Scene, times: tuple[float, ...], size: int) -> np.ndarray:
    return render(scene, times, size)


__all__ = ["GROUP", "SpriteRows"]

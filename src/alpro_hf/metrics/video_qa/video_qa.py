"""Accuracy of answers to questions about videos, chosen from a closed list, overall and by type of question.

This file works alone on the Hub, so it imports nothing from `alpro_hf`, whose `question_answering_metrics` computes
the same accuracy. A test holds the two equal.
"""

from collections.abc import Collection, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """\
Accuracy of answers to questions about videos, overall and for each type of question. Where answers are chosen from a
closed list, a question whose answer is not on it counts as wrong, and the share of such questions is reported.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: one answer for each question.
    references: the right answers. Both are compared as they are, so normalise case and spaces first if needed.
    answer_types: type of each question, such as "what", in the order of the questions; None for those without one.
    known_answers: the list that the model chooses from. None: the answers are open.
Returns:
    accuracy: percent of the questions answered right.
    n: number of questions.
    accuracy_<type>, ratio_<type>, n_<type>: accuracy of the questions of a type, their percentage among all questions,
        and their number; "_" replaces blanks in the name of the type.
    out_of_list, out_of_list_share: number and percentage of questions whose right answer is not a known one; only with
        known_answers.
Examples:
    >>> metric = evaluate.load("video_qa")
    >>> result = metric.compute(
    ...     predictions=["fox", "two", "ladle"],
    ...     references=["fox", "two", "ladle"],
    ...     answer_types=["what", "how many", "what"],
    ...     known_answers=["fox", "two", "three"],
    ... )
    >>> print(round(result["accuracy"], 1), result["accuracy_what"], result["out_of_list"])
    66.7 50.0 1.0
"""

_CITATION = """\
@inproceedings{xu2017video,
  title     = {Video Question Answering via Gradually Refined Attention over Appearance and Motion},
  author    = {Xu, Dejing and Zhao, Zhou and Xiao, Jun and Wu, Fei and Zhang, Hanwang and He, Xiangnan and Zhuang, Yueting},
  booktitle = {Proceedings of the 25th ACM International Conference on Multimedia},
  year      = {2017}
}
"""  # noqa: E501


class VideoQA(evaluate.Metric):
    """The metric that `evaluate.load` finds in this file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            reference_urls=["https://arxiv.org/abs/2112.09583"],
        )

    def _compute(
        self,
        *,
        predictions: Sequence[str],
        references: Sequence[str],
        answer_types: Sequence[str | None] | None = None,
        known_answers: Collection[str] | None = None,
    ) -> dict[str, float]:
        return video_qa_metrics(predictions, references, answer_types, known_answers)


def video_qa_metrics(
    predictions: Sequence[str],
    references: Sequence[str],
    answer_types: Sequence[str | None] | None = None,
    known_answers: Collection[str] | None = None,
) -> dict[str, float]:
    """The metric as a function. Arguments and result are those in the description of the inputs.

    Raises:
        ValueError: The sequences have different lengths or are empty, or `known_answers` is a text and not a list.
    """
    total = len(references)
    types: Sequence[str | None] = [None] * total if answer_types is None else answer_types
    if not len(predictions) == total == len(types) or not total:
        raise ValueError(
            "As many predictions as references and answer_types are needed, and at least one; received "
            f"{len(predictions)}, {total} and {len(types)}."
        )
    if isinstance(known_answers, str):  # a set of it would be a set of letters
        raise ValueError(f"known_answers must be a list of answers, not the text {known_answers!r}.")
    known = None if known_answers is None else set(known_answers)
    correct_of_type: dict[str, list[bool]] = {}
    correct = []
    for given, right, kind in zip(predictions, references, types, strict=True):
        # an unknown answer is wrong even if it was predicted, as in the papers, where a model could not give it
        correct.append(given == right and (known is None or right in known))
        if kind is not None:
            correct_of_type.setdefault(kind.replace(" ", "_"), []).append(correct[-1])
    metrics: dict[str, Any] = {"accuracy": 100.0 * float(np.mean(correct))}
    for kind, values in sorted(correct_of_type.items()):
        metrics[f"accuracy_{kind}"] = 100.0 * float(np.mean(values))
        metrics[f"ratio_{kind}"] = 100.0 * len(values) / total
        metrics[f"n_{kind}"] = float(len(values))
    if known is not None:
        out_of_list = sum(right not in known for right in references)
        metrics["out_of_list"] = float(out_of_list)
        metrics["out_of_list_share"] = 100.0 * out_of_list / total
    return metrics | {"n": float(total)}

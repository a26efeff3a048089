"""Pipelines of the library's kind: `video-question-answering` and `text-video-retrieval`.

    from transformers import pipeline

    search = pipeline("text-video-retrieval", model="folder or Hub id")
    search("a fox runs to the left", videos=["fox.mp4", "pizza.mp4"], rerank=2)
    ask = pipeline("video-question-answering", model="folder or Hub id")
    ask("fox.mp4", ["which way does the fox run?", "how many animals are there?"])

Items flow as in every pipeline: a single input gives its result, a list gives a list, and a dataset or a generator
gives an iterator that computes as it is read. Each clip is decoded and encoded once, however many texts meet it.
"""

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.base import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .video_processing_alpro import is_frame, is_video_source

Row = dict[str, Any]
_FUSED_AT_ONCE = 64  # pairs
_TEXTS_AT_ONCE = 64
_BAR_AFTER = 2.0  # seconds: short work needs no bar

_ANSWERS = frozenset({"AlproForVideoQuestionAnswering"})
_MATCHES = frozenset({"AlproForVideoTextRetrieval", "AlproForPreTraining"})


class AlproPipeline(Pipeline):
    """What both pipelines share: videos in, batches of any clips, saving with the processor.

    Args:
        model: An ALPRO model with the head of the task; it is put in evaluation mode.
        processor: Its `AlproProcessor`.
        batch_size, num_workers: Defaults for calls: clips or texts encoded at a time, processes that decode ahead.
        kwargs: Defaults for the other arguments of a call, and the library's `device`, `dtype`, ...
    """

    model: Any  # no class of ours: remote code makes its own
    processor: Any
    _load_processor = True  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model.eval()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write model and processor to a folder that `pipeline(task, model=folder)` opens again.

        A pipeline that came from a repository's own code writes that code too, so that the folder opens in the same
        way; one of the installed package leaves it out, and its folder needs no `trust_remote_code`.
        """
        os.makedirs(save_directory, exist_ok=True)
        if type(self).__module__.startswith("transformers_modules."):
            custom_object_save(self, save_directory)
        elif hasattr(self.model.config, "custom_pipelines"):
            del self.model.config.custom_pipelines  # it would name files that the folder does not hold
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Results one by one; unlike the library's, batches may hold clips of different shapes and texts unpadded."""
        dataset: Any
        if isinstance(inputs, Sized):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            dataset = PipelineIterator(inputs, self.preprocess, preprocess_params)
            num_workers = min(num_workers, 1)  # each worker would read the whole stream
        loader: Iterable[Any] = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=_as_they_are)
        for batch in loader:
            for output in self.forward(batch, **forward_params):
                yield self.postprocess(output, **postprocess_params)

    def run_single(
        self,
        inputs: Any,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Any:
        return next(self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params))

    def _all(self, inputs: Sequence[Any], params: tuple[Any, ...], progress: bool, what: str) -> list[Any]:
        """Results of a list, with a bar on stderr where they take long."""
        bar = logging.tqdm(
            self.get_iterator(inputs, *params),
            total=len(inputs),
            desc=self.task,
            unit=what,
            delay=_BAR_AFTER,
            disable=not progress,
        )
        return list(bar)

    def _size(self, batch_size: int | None, num_workers: int | None) -> tuple[int, int]:
        """(num_workers, batch_size) of the call, of the pipeline, or the library's defaults."""
        size = batch_size if batch_size is not None else self._batch_size if self._batch_size is not None else 1
        workers = num_workers if num_workers is not None else self._num_workers or 0
        if size < 1:
            raise ValueError(f"batch_size={size} must be at least 1.")
        return workers, size

    def _parameters(self, kwargs: Row) -> tuple[Row, Row, Row]:
        """Those of the pipeline, and over them those of the call."""
        own = (self._preprocess_params, self._forward_params, self._postprocess_params)
        called = self._sanitize_parameters(**kwargs)
        return (own[0] | called[0], own[1] | called[1], own[2] | called[2])

    def _video_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if self.processor is None:
            raise ValueError(f"{type(self).__name__} needs processor=..., the AlproProcessor of the model.")
        known = self.processor.video_processor.valid_kwargs.__annotations__
        if unknown := sorted(options.keys() - known.keys()):
            raise TypeError(
                f"The {self.task} pipeline takes no argument {', '.join(unknown)}. It takes those of its "
                "__call__, and those of AlproVideoProcessor, such as num_frames."
            )
        return dict(options)

    def _pixels(self, video: Any, options: Mapping[str, Any]) -> torch.Tensor:
        """One clip, float32 (1, T, 3, H, W)."""
        clips = self.processor.video_processor(video, return_tensors="pt", **options)["pixel_values_videos"]
        if len(clips) != 1:
            raise ValueError(
                f"Each item is one video, but one of them holds {len(clips)}. Pass a flat list of videos."
            )
        return clips

    def _tokenize(self, texts: Sequence[str]) -> Any:
        return self.processor(text=list(texts), return_tensors="pt").to(self.device)

    def _refuse_new_head(self, head: torch.nn.Module | None, name: str, holders: frozenset[str]) -> None:
        """A head that the checkpoint lacked is random: what it says has no meaning."""
        made = set(self.model.config.architectures or holders)
        biases = [] if head is None else [bias for key, bias in head.named_parameters() if key.endswith("bias")]
        if not made & holders and not any(bias.any() for bias in biases):
            raise ValueError(
                f"The checkpoint {self.model.name_or_path!r} holds {', '.join(sorted(made))}, which has no trained "
                f"{name}. The {self.task} pipeline needs one of {', '.join(sorted(holders))}."
            )


class VideoQuestionAnsweringPipeline(AlproPipeline):
    """Answers questions about videos, out of the answers the model was trained on (`config.id2label`).

    Example:
        >>> from transformers import pipeline
        >>> import alpro_hf
        >>> from alpro_hf.data.sprite_render import write_split
        >>> clips = write_split("gallery", "test", 3, progress=False) / "clips"
        >>> ask = pipeline("video-question-answering", model=alpro_hf.bundled_model("qa"))
        >>> ask(clips / "00000.mp4", "what does the bell do?", top_k=1)[0]["answer"]
        'bouncing'
        >>> rows = [{"video": clip, "question": "where is it?"} for clip in sorted(clips.glob("*.mp4"))]
        >>> len(ask(rows, batch_size=2)) == len(rows)
        True
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (found := type(self.model).__name__) not in _ANSWERS:
            raise ValueError(f"The {self.task} pipeline needs an AlproForVideoQuestionAnswering, not a {found}.")
        self._refuse_new_head(self.model.classifier, "answer classifier", _ANSWERS)

    def _sanitize_parameters(self, top_k: int | None = None, **video_options: Any) -> tuple[Row, Row, Row]:
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1.")
        return self._video_options(video_options), {}, {} if top_k is None else {"top_k": top_k}

    def __call__(  # type: ignore[override]
        self,
        video: Any,
        question: str | Sequence[str] | None = None,
        *,
        batch_size: int | None = None,
        num_workers: int | None = None,
        progress: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Answer questions.

        Args:
            video: One video (path, bytes, file object, array or tensor (T, H, W, C) or (T, C, H, W), list of images),
                a list of videos, or a dataset or generator of videos. Without `question`: rows
                `{"video": ..., "question": ...}` in place of videos, in which `question` may be a list too.
            question: Asked of every video; a list of questions costs each clip once.
            batch_size: Clips encoded at a time.
            num_workers: Processes that decode ahead.
            progress: Show a bar on stderr when a list takes more than two seconds.
            kwargs: `top_k` (answers to each question, 5), and arguments of `AlproVideoProcessor` such as `num_frames`.

        Returns:
            For one question to one video a list of `{"answer": str, "score": probability}`, most probable first. For
            several questions a list of such lists; for a list of videos or rows a list over them. In a list, rows
            with the same video share its clip. A dataset or generator gives an iterator.

        Raises:
            ValueError: A question is missing or blank, or a number makes no sense.
            TypeError: What should be a video, a question or a row is none.
            VideoDecodeError: A video cannot be decoded; the message names the file.
        """
        preprocess, forward, postprocess = self._parameters(kwargs)
        params = (*self._size(batch_size, num_workers), preprocess, forward, postprocess)
        if question is None:
            if isinstance(video, Mapping):
                return self.run_single(video, *params[2:])
            if isinstance(video, str | os.PathLike) or _is_one_video(video):
                raise ValueError("There is no question. Ask one: pipe(video, 'what is the dog doing?').")
            if not isinstance(video, list | tuple):
                return self.get_iterator(video, *params)
            rows = list(video)
        else:
            if _is_one_video(video):
                return self.run_single({"video": video, "question": question}, *params[2:])
            if not isinstance(video, list | tuple):
                return self.get_iterator(({"video": one, "question": question} for one in video), *params)
            rows = [{"video": one, "question": question} for one in video]
        shared, places = _share_clips(rows)
        answers = self._all(shared, params, progress, "clip")
        return [answers[clip][part] for clip, part in places]

    def preprocess(self, input_: Any, **video_options: Any) -> Row:
        video, question = _read_row(input_)
        questions = [question] if isinstance(question, str) else list(question)
        return {
            "pixel_values_videos": self._pixels(video, video_options),
            "questions": questions,
            "single": isinstance(question, str),
        }

    def _forward(self, input_tensors: list[Row]) -> list[Row]:  # type: ignore[override]
        outputs = []
        for rows in _one_shape(input_tensors):
            counts = torch.tensor([len(row["questions"]) for row in rows])
            texts = self._tokenize([question for row in rows for question in row["questions"]])
            clips = torch.cat([row["pixel_values_videos"] for row in rows])
            index = torch.repeat_interleave(torch.arange(len(rows)), counts).to(self.device)
            logits = self.model(**texts, pixel_values_videos=clips, video_index=index).logits
            probabilities = logits.float().softmax(dim=1).split(counts.tolist())
            outputs += [
                {"probabilities": own, "single": row["single"]} for row, own in zip(rows, probabilities, strict=True)
            ]
        return outputs

    def postprocess(self, model_outputs: Row, top_k: int = 5) -> Any:  # type: ignore[override]
        names: Any = self.model.config.id2label
        best = model_outputs["probabilities"].topk(min(top_k, model_outputs["probabilities"].shape[1]), dim=1)
        answers = [
            [{"answer": names[i], "score": score} for i, score in zip(indices, scores, strict=True)]
            for indices, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        return answers[0] if model_outputs["single"] else answers


@dataclass
class _Candidates:
    """Texts or clips that were encoded, on the CPU.

    Args:
        kind: What they are.
        names: Text, or path; None for a clip that is no file.
        embeds: Unit vectors (P,).
        states: (L, D) without padding, or (1 + N, D).
    """

    kind: Literal["text", "video"]
    names: list[str | None] = field(default_factory=list)
    embeds: list[torch.Tensor] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)


class TextVideoRetrievalPipeline(AlproPipeline):
    """Ranks videos for a text, or texts for a video, among candidates or in an index.

    Example:
        >>> from transformers import pipeline
        >>> import alpro_hf
        >>> from alpro_hf.data.sprite_render import write_split
        >>> clips = sorted(write_split("gallery", "test", 3, progress=False).glob("clips/*.mp4"))
        >>> search = pipeline("text-video-retrieval", model=alpro_hf.bundled_model("retrieval"))
        >>> best = search("a bell bounces", videos=clips, rerank=2)[0]
        >>> best["video"], best["match_probability"] > 0.5
        ('gallery/test/clips/00000.mp4', True)
        >>> search(clips[1], texts=["a bell bounces", "a door sways"])[0]["text"]
        'a door sways'
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (found := type(self.model).__name__) not in _MATCHES | {"AlproModel", "AlproPrompterModel"}:
            raise ValueError(f"The {self.task} pipeline needs an AlproForVideoTextRetrieval, not a {found}.")
        if _ANSWERS & set(self.model.config.architectures or ()):
            self._refuse_new_head(getattr(self.model, "vtm_head", None), "matching head", _MATCHES)

    def _sanitize_parameters(
        self, top_k: int | None = None, rerank: int | None = None, **video_options: Any
    ) -> tuple[Row, Row, Row]:
        if (top_k is not None and top_k < 1) or (rerank or 0) < 0:
            raise ValueError(f"top_k={top_k} must be at least 1 and rerank={rerank} at least 0.")
        if rerank:
            if not hasattr(self.model, "vtm_head"):
                raise ValueError(
                    f"rerank={rerank} needs a matching head, and {type(self.model).__name__} has none: use a "
                    "checkpoint of AlproForVideoTextRetrieval, or rerank=0."
                )
            self._refuse_new_head(self.model.vtm_head, "matching head (rerank=0 needs none)", _MATCHES)
        return (
            self._video_options(video_options),
            {} if rerank is None else {"rerank": rerank},
            {} if top_k is None else {"top_k": top_k},
        )

    def __call__(  # type: ignore[override]
        self,
        queries: Any,
        *,
        videos: Any = None,
        texts: str | Iterable[str] | None = None,
        index: Any = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        progress: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Rank candidates for each query. Pass exactly one of `videos`, `texts` and `index`.

        Candidates are encoded by this call, once for all its queries; keep them in an index to search them again.

        Args:
            queries: One, a list, or a dataset or generator of them. With `videos` or `index`, texts; with `texts`,
                videos (see `VideoQuestionAnsweringPipeline` for what a video is).
            videos: The candidates: a list, dataset or generator of videos, which need not fit in memory together.
            texts: The candidates: texts.
            index: A `VideoIndex` (searched with its own model), or the folder of one, which is read in each call.
            batch_size: Videos encoded at a time.
            num_workers: Processes that decode ahead.
            progress: Show a bar on stderr when a list takes more than two seconds.
            kwargs: `rerank` (how many of the best candidates by similarity the matching head reorders; 0), `top_k`
                (results of a query; all candidates, and 10 with an index), and arguments of `AlproVideoProcessor`.

        Returns:
            For a query a list of results, best first, for a list of queries a list of those, else an iterator. A
            result is a dictionary: `index`, place among the candidates (not where an index is searched); `video`
            (path, None for a video that is no file) or `text`; `similarity`, cosine (VTC) in [-1, 1];
            `match_probability` (VTM) in [0, 1], None where the candidate was not re-ranked; `score`, what the order
            is made by: `similarity`, plus the matching logit where it was re-ranked. Re-ranked candidates come before
            all others.

        Raises:
            ValueError: A text is blank, there are no candidates, or a number makes no sense.
            TypeError: What should be a video or a text is none.
            VideoDecodeError: A video cannot be decoded; the message names the file.
        """
        if sum(given is not None for given in (videos, texts, index)) != 1:
            raise ValueError("Pass what to search: exactly one of videos=[...], texts=[...] and index=... .")
        preprocess, forward, postprocess = self._parameters(kwargs)
        workers, size = self._size(batch_size, num_workers)
        if index is not None:
            search = _open_index(index, self.model, self.processor).search
            options = {"top_k": postprocess.get("top_k", 10), "rerank": forward.get("rerank", 0)}
            return self._search_index(queries, search, options, progress)
        if texts is not None:
            pool = self._encode([texts] if isinstance(texts, str) else texts, "text", workers, size, preprocess, False)
            single, kind = _is_one_video(queries), "video"
        else:
            found = [videos] if _is_one_video(videos) else videos
            pool = self._encode(found, "video", workers, size, preprocess, progress)
            single, kind = isinstance(queries, str), "text"
        if not pool.names:
            raise ValueError(f"There are no candidates: {pool.kind}s is empty.")
        params: tuple[Any, ...] = (
            {"kind": kind, **preprocess},
            {"candidates": pool, **forward},
            {"candidates": pool, **postprocess},
        )
        if single:
            return self.run_single(queries, *params)
        if isinstance(queries, list | tuple):
            return self._all(queries, (workers, size, *params), progress, kind)
        return self.get_iterator(queries, workers, size, *params)

    def _search_index(self, queries: Any, search: Callable[..., Any], options: Row, progress: bool) -> Any:
        def one(query: Any) -> list[Row]:
            return [
                {
                    "video": str(result.path),
                    "score": result.score,
                    "similarity": result.similarity,
                    "match_probability": result.match_probability,
                }
                for result in search(_text(query), **options)
            ]

        if isinstance(queries, str):
            return one(queries)
        if not isinstance(queries, list | tuple):
            return map(one, queries)
        bar = logging.tqdm(queries, desc=self.task, unit="text", delay=_BAR_AFTER, disable=not progress)
        return [one(query) for query in bar]

    def _encode(
        self, items: Any, kind: Literal["text", "video"], workers: int, size: int, options: Row, progress: bool
    ) -> _Candidates:
        pool = _Candidates(kind)
        size = max(size, _TEXTS_AT_ONCE) if kind == "text" else size
        bar = logging.tqdm(
            self.get_iterator(items, workers, size, {"kind": kind, **options}, {}, {}),
            total=len(items) if isinstance(items, Sized) else None,
            desc="encoding candidates",
            unit=kind,
            delay=_BAR_AFTER,
            disable=not progress,
        )
        for encoded in bar:
            pool.names.append(encoded["name"])
            pool.embeds.append(encoded["embed"])
            pool.states.append(encoded["states"])
        return pool

    def preprocess(self, input_: Any, kind: str = "text", **video_options: Any) -> Row:  # type: ignore[override]
        if kind == "text":
            return {"name": _text(input_)}
        name = os.fsdecode(input_) if isinstance(input_, str | os.PathLike) else None
        return {"name": name, "pixel_values_videos": self._pixels(input_, video_options)}

    def _forward(  # type: ignore[override]
        self, input_tensors: list[Row], candidates: _Candidates | None = None, rerank: int = 0
    ) -> list[Row]:
        """Encode queries, and unless they are candidates themselves, compare them with the candidates."""
        encoded = self._encode_texts(input_tensors) if "pixel_values_videos" not in input_tensors[0] else []
        if not encoded:
            encoded = [row for rows in _one_shape(input_tensors) for row in self._encode_clips(rows)]
        if candidates is None:
            return encoded
        return [self._compare(query, candidates, rerank) for query in encoded]

    def _encode_texts(self, rows: list[Row]) -> list[Row]:
        inputs = self._tokenize([row["name"] for row in rows])
        output = self._towers.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        states = [tokens[:length] for tokens, length in zip(output.last_hidden_state, lengths, strict=True)]
        return _encoded(rows, output.pooler_output, states)

    def _encode_clips(self, rows: list[Row]) -> list[Row]:
        output = self._towers.get_video_features(torch.cat([row["pixel_values_videos"] for row in rows]))
        return _encoded(rows, output.pooler_output, list(output.last_hidden_state))

    @property
    def _towers(self) -> Any:
        return getattr(self.model, "alpro", self.model)

    def _compare(self, query: Row, candidates: _Candidates, rerank: int) -> Row:
        """Similarity with all candidates (C,), and matching logits (K, 2) of the K most similar."""
        similarity = torch.stack(candidates.embeds) @ query["embed"].cpu()
        best = similarity.argsort(descending=True, stable=True)[:rerank]
        logits = [
            self._match(candidates, query["states"], [candidates.states[i] for i in chunk])
            for chunk in best.split(_FUSED_AT_ONCE)
            if len(chunk)
        ]
        return {"similarity": similarity, "best": best, "logits": torch.cat(logits) if logits else torch.empty(0, 2)}

    def _match(self, candidates: _Candidates, query: torch.Tensor, states: list[torch.Tensor]) -> torch.Tensor:
        """float32 logits (n, 2) of one query with n candidates; column 1 = matched."""
        states = [state.to(self.device) for state in states]
        queries = [query] * len(states)
        texts, videos = (states, queries) if candidates.kind == "text" else (queries, states)
        lengths = torch.tensor([len(text) for text in texts], device=self.device)
        padded = pad_sequence(texts, batch_first=True)
        mask = None  # nothing is padded where one text meets many videos
        if (lengths < padded.shape[1]).any():
            mask = (torch.arange(padded.shape[1], device=self.device) < lengths[:, None]).long()
        fused = self._towers.fuse(padded, mask, torch.stack(videos), first_tokens=1)
        return self.model.vtm_head(fused.last_hidden_state[:, 0]).float().cpu()

    def postprocess(  # type: ignore[override]
        self, model_outputs: Row, candidates: _Candidates | None = None, top_k: int | None = None
    ) -> Any:
        if candidates is None:
            return model_outputs
        similarity, best, logits = (model_outputs[key] for key in ("similarity", "best", "logits"))
        scores = similarity.clone()
        scores[best] += logits[:, 1]
        matched = dict(zip(best.tolist(), logits.softmax(dim=1)[:, 1].tolist(), strict=True))
        rest = similarity.argsort(descending=True, stable=True)[len(best) :]
        order = torch.cat([best[scores[best].argsort(descending=True, stable=True)], rest])
        return [
            {
                "index": i,
                candidates.kind: candidates.names[i],
                "score": scores[i].item(),
                "similarity": similarity[i].item(),
                "match_probability": matched.get(i),
            }
            for i in order[:top_k].tolist()
        ]


def _as_they_are(items: list[Any]) -> list[Any]:
    return items


def _encoded(rows: Sequence[Row], embeds: torch.Tensor, states: Sequence[torch.Tensor]) -> list[Row]:
    return [
        {"name": row["name"], "embed": embed.float(), "states": state}
        for row, embed, state in zip(rows, embeds, states, strict=True)
    ]


def _one_shape(rows: list[Row]) -> list[list[Row]]:
    """The rows together where all clips have one shape, else each alone, in their order."""
    shapes = {row["pixel_values_videos"].shape for row in rows}
    return [rows] if len(shapes) == 1 else [[row] for row in rows]


def _is_one_video(given: Any) -> bool:
    """Whether an argument is a video rather than several of them; a list of images is a clip."""
    if isinstance(given, list | tuple):
        return bool(given) and all(is_frame(item) for item in given)
    return (
        is_video_source(given) or is_frame(given) or (isinstance(given, np.ndarray | torch.Tensor) and given.ndim == 4)
    )


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"A text is a string, not {type(text).__name__} ({str(text)[:80]!r}).")
    if not text.strip():
        raise ValueError(f"A text is blank ({text!r}). Describe what to look for, for instance 'a dog runs'.")
    return text


def _read_row(row: Any) -> tuple[Any, str | Sequence[str]]:
    if not isinstance(row, Mapping) or not {"video", "question"} <= row.keys():
        found = sorted(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise TypeError(f"Without question=..., each item is a row {{'video': ..., 'question': ...}}, not {found}.")
    question = row["question"]
    questions = [question] if isinstance(question, str) else question
    if not isinstance(questions, list | tuple) or not all(isinstance(text, str) for text in questions):
        raise TypeError(f"A question is a string, or a list of strings, not {str(question)[:80]!r}.")
    if not questions or not all(text.strip() for text in questions):
        raise ValueError(f"A question is blank ({question!r}). Ask something, for instance 'what is the dog doing?'.")
    return row["video"], question


def _share_clips(rows: Sequence[Any]) -> tuple[list[Row], list[tuple[int, Any]]]:
    """Rows about the same video become one with all their questions.

    Returns:
        The joined rows, and for each of the given rows where its answers are: which joined row, and which part of it.
    """
    joined: dict[Any, Row] = {}
    numbers: dict[Any, int] = {}
    places: list[tuple[int, Any]] = []
    for row in rows:
        video, question = _read_row(row)
        questions = [question] if isinstance(question, str) else list(question)
        # the row keeps its video alive, so that no other object can have its id
        key = os.fsdecode(video) if isinstance(video, str | os.PathLike) else id(video)
        own = joined.setdefault(key, {"video": video, "question": []})["question"]
        first = len(own)
        own += questions
        number = numbers.setdefault(key, len(numbers))
        places.append((number, first if isinstance(question, str) else slice(first, len(own))))
    return list(joined.values()), places


def _open_index(index: Any, model: Any, processor: Any) -> Any:
    if not isinstance(index, str | os.PathLike):
        return index
    try:
        # by name: this file also travels alone, where there is no such module
        retrieval = importlib.import_module("alpro_hf.retrieval")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("alpro_hf"):
            raise
        raise ModuleNotFoundError(
            f"Opening the index {os.fsdecode(index)!r} needs the package: pip install alpro-hf.", name=error.name
        ) from error
    return retrieval.VideoIndex.load(index, model, processor)

"""Pipelines for the transformers library: `video-question-answering` and `text-video-retrieval`.

    from transformers import pipeline

    search = pipeline("text-video-retrieval", model="folder or Hub id")
    search("a fox runs to the left", videos=["fox.mp4", "pizza.mp4"], rerank=2)
    ask = pipeline("video-question-answering", model="folder or Hub id")
    ask("fox.mp4", ["which way does the fox run?", "how many animals are there?"])

As in every pipeline, a single input gives its result, a list gives a list, and a dataset or a generator gives an
iterator that computes while it is read. Each clip is decoded and encoded once, however many texts it is compared with.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.base import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .decoding_column import file_of, is_file_mapping, is_frame_decoder, path_of
from .decoding_formats import is_image_sequence
from .matching_alpro import encode_clips, matching_problem, rerank, vtc_scores, vtm_scores
from .video_processing_alpro import is_frame, is_video_source
from .wrappers_alpro import plain_model

Row = dict[str, Any]
_TEXTS = 64  # encoded at a time
_BAR_AFTER = 2.0  # seconds: short work needs no bar

# Class names instead of classes: remote code defines classes of its own, which `isinstance` would not recognise.
_ANSWERS = frozenset({"AlproForVideoQuestionAnswering"})
_COMPARES = frozenset({"AlproForVideoTextRetrieval", "AlproForPreTraining", "AlproModel", "AlproPrompterModel"})


class AlproPipeline(Pipeline):
    """Base of both pipelines: reads videos, batches clips of any shape, and saves model and processor.

    Args:
        model: An ALPRO model with the head of the task. It is put in evaluation mode.
        processor: Its `AlproProcessor`.
        batch_size, num_workers: Defaults for calls: clips or texts encoded at a time, and processes that decode ahead.
        kwargs: Defaults for the other arguments of a call, and arguments of `Pipeline` such as `device` and `dtype`.
    """

    model: Any  # not typed with our classes, see `_ANSWERS`
    processor: Any
    _load_processor = True  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(plain_model(model), *args, **kwargs)
        self.model.eval()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write model and processor to a folder that `pipeline(task, model=folder)` opens again.

        A pipeline that was loaded with a repository's own code writes that code too. A pipeline of the installed
        package does not, so its folder opens without `trust_remote_code`.

        Args:
            save_directory: The folder; it need not exist.
            kwargs: Passed to `save_pretrained` of model and processor.
        """
        os.makedirs(save_directory, exist_ok=True)
        if type(self).__module__.startswith("transformers_modules."):
            custom_object_save(self, save_directory)
        elif hasattr(self.model.config, "custom_pipelines"):
            del self.model.config.custom_pipelines  # it names code files that the folder will not hold
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
        """Results one by one. Unlike in the library, a batch may hold clips of different shapes and unpadded texts."""
        dataset: Any
        if isinstance(inputs, Sized):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            dataset = PipelineIterator(inputs, self.preprocess, preprocess_params)
            num_workers = min(num_workers, 1)  # with more, each worker would read the whole stream
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
        """Results of a list, with a progress bar on stderr if they take long."""
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
        """(num_workers, batch_size) of the call, else of the pipeline, else the library's defaults."""
        size = batch_size if batch_size is not None else self._batch_size if self._batch_size is not None else 1
        workers = num_workers if num_workers is not None else self._num_workers or 0
        if size < 1:
            raise ValueError(f"batch_size={size} must be at least 1.")
        return workers, size

    def _parameters(self, kwargs: Row) -> tuple[Row, Row, Row]:
        """Parameters of the three steps: those of the call replace those of the pipeline."""
        own = (self._preprocess_params, self._forward_params, self._postprocess_params)
        called = self._sanitize_parameters(**kwargs)
        return (own[0] | called[0], own[1] | called[1], own[2] | called[2])

    def _video_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if self.processor is None:
            raise ValueError(f"{type(self).__name__} needs processor=..., the AlproProcessor of the model.")
        known = self.processor.video_processor.valid_kwargs.__annotations__
        if unknown := sorted(options.keys() - known.keys()):
            raise TypeError(
                f"The {self.task} pipeline has no argument {', '.join(unknown)}. It takes the arguments of its "
                "__call__ and those of AlproVideoProcessor, such as num_frames."
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


class VideoQuestionAnsweringPipeline(AlproPipeline):
    """Answers questions about videos with one of the answers that the model was trained on (`config.id2label`).

    Example:
        >>> from transformers import pipeline
        >>> import alpro_hf
        >>> from alpro_hf.sprites.render import write_split
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
        made = set(self.model.config.architectures or _ANSWERS)
        # A new classifier has zero biases. So one that was trained in memory is accepted, whatever its checkpoint was.
        trained = any(bias.any() for key, bias in self.model.classifier.named_parameters() if key.endswith("bias"))
        if not made & _ANSWERS and not trained:
            raise ValueError(
                f"The checkpoint {self.model.name_or_path!r} holds {', '.join(sorted(made))}, which has no trained "
                f"answer classifier. The {self.task} pipeline needs one of {', '.join(sorted(_ANSWERS))}."
            )

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
            video: One video (path, bytes, file object, value of a column of `datasets.Video`, list of images, array or
                tensor (T, H, W, C) or (T, C, H, W)), a list of videos, or a dataset or generator of videos. Without
                `question`: rows `{"video": ..., "question": ...}` instead of videos, where `question` may be a list
                too.
            question: One question or a list of questions, asked about every video. Each clip is encoded once.
            batch_size: Clips encoded at a time.
            num_workers: Processes that decode ahead.
            progress: Show a bar on stderr when a list takes more than two seconds.
            kwargs: `top_k` (answers to each question, 5), and arguments of `AlproVideoProcessor` such as `num_frames`.

        Returns:
            For one question about one video: a list of `{"answer": str, "score": probability}`, most probable first.
            For several questions: a list of such lists. For a list of videos or rows: a list over them, in which rows
            with the same video share its clip. For a dataset or generator: an iterator.

        Raises:
            ValueError: A question is missing or blank, or a number is out of range.
            TypeError: A video, a question or a row has the wrong type.
            VideoDecodeError: A video cannot be decoded; the message names the file.
        """
        preprocess, forward, postprocess = self._parameters(kwargs)
        params = (*self._size(batch_size, num_workers), preprocess, forward, postprocess)
        if question is None:
            if isinstance(video, str | os.PathLike) or _is_one_video(video):
                raise ValueError("There is no question. Ask one: pipe(video, 'what is the dog doing?').")
            if isinstance(video, Mapping):
                return self.run_single(video, *params[2:])
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
        for rows in _same_shapes(input_tensors):
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
    """Encoded texts or clips, on the CPU.

    Args:
        kind: Texts or videos.
        names: The text, or the path of the video; None for a video that is not a file.
        embeds: Unit vectors (P,).
        states: (L, D) of a text, without padding; (1 + N, D) of a clip.
    """

    kind: Literal["text", "video"]
    names: list[str | None] = field(default_factory=list)
    embeds: list[torch.Tensor] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)


class TextVideoRetrievalPipeline(AlproPipeline):
    """Ranks videos for a text, or texts for a video, among candidates or in an index.

    Attributes:
        open_index: From a folder, the model and the processor to an index. `alpro_hf` sets it when it registers the
            pipelines, so that `index=` also takes the folder of an index. This file opens no folder by itself: it
            travels with a checkpoint, without the code of indexes, and then `open_index` is None.

    Example:
        >>> from transformers import pipeline
        >>> import alpro_hf
        >>> from alpro_hf.sprites.render import write_split
        >>> clips = sorted(write_split("gallery", "test", 3, progress=False).glob("clips/*.mp4"))
        >>> search = pipeline("text-video-retrieval", model=alpro_hf.bundled_model("retrieval"))
        >>> best = search("a bell bounces", videos=clips, rerank=2)[0]
        >>> best["video"], best["match_probability"] > 0.5
        ('gallery/test/clips/00000.mp4', True)
        >>> search(clips[1], texts=["a bell bounces", "a door sways"])[0]["text"]
        'a door sways'
    """

    open_index: ClassVar[Callable[[str | os.PathLike[str], Any, Any], Any] | None] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (found := type(self.model).__name__) not in _COMPARES:
            raise ValueError(f"The {self.task} pipeline needs an AlproForVideoTextRetrieval, not a {found}.")
        made = set(self.model.config.architectures or ())
        # training on questions changes the towers and not the projections, so the vectors alone mean nothing either
        if made & _ANSWERS and matching_problem(self.model) is not None:
            raise ValueError(
                f"The checkpoint {self.model.name_or_path!r} holds {', '.join(sorted(made))}, which has no trained "
                f"matching head and was not trained to compare. The {self.task} pipeline needs one of "
                f"{', '.join(sorted(_COMPARES))}."
            )

    def _sanitize_parameters(
        self, top_k: int | None = None, rerank: int | None = None, **video_options: Any
    ) -> tuple[Row, Row, Row]:
        if (top_k is not None and top_k < 1) or (rerank or 0) < 0:
            raise ValueError(f"top_k={top_k} must be at least 1 and rerank={rerank} at least 0.")
        if rerank and (problem := matching_problem(self.model)):
            raise ValueError(
                f"rerank={rerank} needs a matching head, and {problem}. Use rerank=0, or a trained checkpoint of "
                "AlproForVideoTextRetrieval."
            )
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

        The call encodes its candidates once for all its queries. Build an index to search candidates again.

        Args:
            queries: One query, a list, or a dataset or generator of queries. With `videos` or `index` these are texts;
                with `texts` these are videos, of any kind that `VideoQuestionAnsweringPipeline` takes.
            videos: The candidates: a list, dataset or generator of videos, which need not fit in memory together.
            texts: The candidates: texts.
            index: A `VideoIndex`, or another object with its `search`. It searches with its own model. The pipeline of
                the installed package also takes the folder of an index, which it reads in each call.
            batch_size: Videos encoded at a time.
            num_workers: Processes that decode ahead.
            progress: Show a bar on stderr when a list takes more than two seconds.
            kwargs: `rerank` (how many of the best candidates by similarity the matching head reorders; 0), `top_k`
                (results for each query; all candidates, or 10 with an index), and arguments of `AlproVideoProcessor`.

        Returns:
            For one query a list of results, best first; for a list of queries a list of such lists; else an iterator.
            A result is a dictionary: `index`, place among the candidates (not with an index); `video` (path, None for
            a video that is not a file) or `text`; `similarity`, cosine (VTC) in [-1, 1]; `match_probability` (VTM) in
            [0, 1], None if the candidate was not re-ranked; `score`, the similarity, plus the matching logit if it was
            re-ranked. Re-ranked candidates come before all others. A moment of a long video in an index also has its
            `start` and `end` in seconds.

        Raises:
            ValueError: A text is blank, there are no candidates, a number is out of range, or `rerank` is above 0 and
                the model has no trained matching head.
            TypeError: A video or a text has the wrong type.
            VideoDecodeError: A video cannot be decoded; the message names the file.
            ModuleNotFoundError: `index` is a folder, and `open_index` is None.
        """
        if sum(given is not None for given in (videos, texts, index)) != 1:
            raise ValueError("Pass what to search: exactly one of videos=[...], texts=[...] and index=... .")
        preprocess, forward, postprocess = self._parameters(kwargs)
        workers, size = self._size(batch_size, num_workers)
        if index is not None:
            search = self._opened(index).search
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

    def _opened(self, index: Any) -> Any:
        if not isinstance(index, str | os.PathLike):
            return index
        open_index = type(self).open_index
        if open_index is None:
            raise ModuleNotFoundError(
                f"The code of a checkpoint cannot open the folder of an index by itself: {os.fsdecode(index)!r}. "
                "Install the package (pip install alpro-hf) and pass an index: "
                "index=alpro_hf.VideoIndex.load(folder, pipe.model, pipe.processor).",
                name="alpro_hf",
            )
        return open_index(index, self.model, self.processor)

    def _search_index(self, queries: Any, search: Callable[..., Any], options: Row, progress: bool) -> Any:
        def one(query: Any) -> list[Row]:
            return [
                {
                    "video": str(result.path),
                    "score": result.score,
                    "similarity": result.similarity,
                    "match_probability": result.match_probability,
                    **({} if result.start is None else {"start": result.start, "end": result.end}),
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
        size = max(size, _TEXTS) if kind == "text" else size
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
        return {"name": path_of(input_), "pixel_values_videos": self._pixels(input_, video_options)}

    def _forward(  # type: ignore[override]
        self, input_tensors: list[Row], candidates: _Candidates | None = None, rerank: int = 0
    ) -> list[Row]:
        """Encode texts or clips. Those that are queries are compared with the candidates."""
        encode = self._encode_clips if "pixel_values_videos" in input_tensors[0] else self._encode_texts
        encoded = encode(input_tensors)
        if candidates is None:
            return encoded
        return [self._compare(query, candidates, rerank) for query in encoded]

    def _encode_texts(self, rows: list[Row]) -> list[Row]:
        inputs = self._tokenize([row["name"] for row in rows])
        output = self.model.base_model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        return [
            {"name": row["name"], "embed": embed.float(), "states": tokens[:length]}
            for row, embed, tokens, length in zip(
                rows, output.pooler_output, output.last_hidden_state, lengths, strict=True
            )
        ]

    def _encode_clips(self, rows: list[Row]) -> list[Row]:
        encoded = encode_clips(self.model, [row["pixel_values_videos"][0] for row in rows])
        return [
            {"name": row["name"], "embed": clip.embed, "states": clip.tokens}
            for row, clip in zip(rows, encoded, strict=True)
        ]

    def _compare(self, query: Row, candidates: _Candidates, k: int) -> Row:
        """Similarity (C,) with all candidates, and their order after the k most similar ones are re-ranked."""
        similarity = vtc_scores(query["embed"].cpu()[None], torch.stack(candidates.embeds))[0]

        def match(places: torch.Tensor) -> torch.Tensor:
            states = [candidates.states[i] for i in places.tolist()]
            return self._match(query["states"].cpu(), states, candidates.kind)

        return {"similarity": similarity, **rerank(similarity, k, match)._asdict()}

    def _match(self, query: torch.Tensor, states: list[torch.Tensor], kind: str) -> torch.Tensor:
        """float32 logits (n, 2) of one query with n candidates; column 1 = matched."""
        places = torch.arange(len(states))
        if kind == "video":  # one text, which is not padded, meets n clips
            pairs = torch.stack([torch.zeros_like(places), places], dim=1)
            return vtm_scores(self.model, query[None], None, torch.stack(states), pairs)
        texts, lengths = pad_sequence(states, batch_first=True), torch.tensor([len(state) for state in states])
        mask = (torch.arange(texts.shape[1]) < lengths[:, None]).long()
        pairs = torch.stack([places, torch.zeros_like(places)], dim=1)
        return vtm_scores(self.model, texts, mask, query[None], pairs)

    def postprocess(  # type: ignore[override]
        self, model_outputs: Row, candidates: _Candidates | None = None, top_k: int | None = None
    ) -> Any:
        if candidates is None:
            return model_outputs
        return [
            {
                "index": i,
                candidates.kind: candidates.names[i],
                "score": model_outputs["scores"][i].item(),
                "similarity": model_outputs["similarity"][i].item(),
                "match_probability": model_outputs["probabilities"].get(i),
            }
            for i in model_outputs["order"][:top_k].tolist()
        ]


def _as_they_are(items: list[Any]) -> list[Any]:
    return items


def _same_shapes(rows: list[Row]) -> list[list[Row]]:
    """The rows in their order, split where the shape of the clip changes."""
    return [list(run) for _, run in groupby(rows, key=lambda row: row["pixel_values_videos"].shape)]


def _is_one_video(given: Any) -> bool:
    """Whether an argument is one video and not several. A list of images, or of their paths, is one video."""
    if isinstance(given, list | tuple):
        return is_image_sequence(given) or (bool(given) and all(is_frame(item) for item in given))
    if is_video_source(given) or is_frame(given) or is_file_mapping(given) or is_frame_decoder(given):
        return True
    return isinstance(given, np.ndarray | torch.Tensor) and given.ndim == 4


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
    """Join rows about the same video into one row with all their questions.

    Returns:
        The joined rows; and for each given row the place of its answers, as a joined row and a part of its answers.
    """
    joined: dict[Any, Row] = {}
    numbers: dict[Any, int] = {}
    places: list[tuple[int, Any]] = []
    for row in rows:
        video, question = _read_row(row)
        questions = [question] if isinstance(question, str) else list(question)
        # an id is safe as a key: the joined row keeps the video alive, so no other object can get its id
        source = file_of(video)
        key = os.fsdecode(source) if isinstance(source, str | os.PathLike) else id(video)
        own = joined.setdefault(key, {"video": video, "question": []})["question"]
        first = len(own)
        own += questions
        number = numbers.setdefault(key, len(numbers))
        places.append((number, first if isinstance(question, str) else slice(first, len(own))))
    return list(joined.values()), places

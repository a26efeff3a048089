"""`AlproProcessor`: turns videos and texts into the inputs of the ALPRO models."""

from typing import Any

from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, TextKwargs, VideosKwargs

# A tokenizer without a maximum length has a huge number in its place (transformers' VERY_LARGE_INTEGER, 1e30).
NO_LENGTH_LIMIT = 10**9

_TEXT_KWARGS: TextKwargs = {
    "padding": True,
    "truncation": True,
    "return_token_type_ids": False,
    "return_tensors": "pt",
}
_VIDEOS_KWARGS: VideosKwargs = {"return_tensors": "pt"}


class _Kwargs(ProcessingKwargs, total=False):
    # transformers 5.20 reads the defaults here; later versions read the class attributes of the processor
    _defaults = {"text_kwargs": _TEXT_KWARGS, "videos_kwargs": _VIDEOS_KWARGS}  # type: ignore[misc]  # noqa: RUF012


class AlproProcessor(ProcessorMixin):
    """An `AlproVideoProcessor` and a BERT tokenizer behind one call.

    ```python
    batch = processor(text=["a fox runs to the left", "a pizza spins"], videos=["fox.mp4", "pizza.mp4"])
    outputs = model(**batch)
    ```

    `text` and `videos` may each be a single item, a list, or left out. Their numbers need not be equal. Texts are
    padded to the longest text of the call and truncated to `tokenizer.model_max_length` tokens.

    A call returns torch tensors: `input_ids` and `attention_mask`, int64 (texts, L), and `pixel_values_videos`,
    float32 (videos, T, 3, H, W), normalised. With `return_metadata=True` it also returns the list `video_metadata`.
    ALPRO has one text segment, so there are no `token_type_ids`.

    Args:
        video_processor (`AlproVideoProcessor`): Samples frames and turns them into pixel values.
        tokenizer (`BertTokenizer`): Has a `model_max_length`.

    Raises:
        ValueError: The tokenizer has no maximum length.
    """

    text_kwargs = _TEXT_KWARGS
    videos_kwargs = _VIDEOS_KWARGS
    valid_processor_kwargs = _Kwargs

    def __init__(self, video_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(video_processor, tokenizer, **kwargs)
        if tokenizer.model_max_length > NO_LENGTH_LIMIT:
            raise ValueError(
                "The tokenizer of an AlproProcessor needs a maximum length, because longer texts than the model reads "
                "must be truncated: set tokenizer.model_max_length to config.text_config.max_position_embeddings."
            )

    @property
    def unused_input_names(self) -> list[str]:
        return ["token_type_ids"]

"""`AlproProcessor`: videos and texts to the inputs of the ALPRO models."""

from typing import Any

from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, TextKwargs, VideosKwargs

# Tokenizers without a limit of their own carry a number of this order instead of one.
NO_LENGTH_LIMIT = 10**9

_TEXT_KWARGS: TextKwargs = {
    "padding": True,
    "truncation": True,
    "return_token_type_ids": False,
    "return_tensors": "pt",
}
_VIDEOS_KWARGS: VideosKwargs = {"return_tensors": "pt"}


class _Kwargs(ProcessingKwargs, total=False):
    # where transformers 5.20, the last for Python 3.10, looks for what later ones read off the processor
    _defaults = {"text_kwargs": _TEXT_KWARGS, "videos_kwargs": _VIDEOS_KWARGS}  # type: ignore[misc]  # noqa: RUF012


class AlproProcessor(ProcessorMixin):
    """An `AlproVideoProcessor` and a BERT tokenizer behind one call.

    ```python
    batch = processor(text=["a fox runs to the left", "a pizza spins"], videos=["fox.mp4", "pizza.mp4"])
    outputs = model(**batch)
    ```

    `text` and `videos` may each be one, a list, or left out, and need not be equal in number. Texts are padded to the
    longest of the call and truncated to `tokenizer.model_max_length`. The result holds torch tensors: `input_ids` and
    `attention_mask` (texts, length), `pixel_values_videos` (videos, frames, 3, height, width), and with
    `return_metadata=True` a list `video_metadata`. ALPRO has one text segment, so there are no `token_type_ids`.

    Args:
        video_processor (`AlproVideoProcessor`): which frames, which pixels.
        tokenizer (`BertTokenizer`): with a `model_max_length`.

    Raises:
        ValueError: the tokenizer knows no maximum length.
    """

    text_kwargs = _TEXT_KWARGS
    videos_kwargs = _VIDEOS_KWARGS
    valid_processor_kwargs = _Kwargs

    def __init__(self, video_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(video_processor, tokenizer, **kwargs)
        if tokenizer.model_max_length > NO_LENGTH_LIMIT:
            raise ValueError(
                "The tokenizer of an AlproProcessor needs a maximum length, to truncate texts to what the model can "
                "read: set tokenizer.model_max_length to config.text_config.max_position_embeddings."
            )

    @property
    def unused_input_names(self) -> list[str]:
        return ["token_type_ids"]

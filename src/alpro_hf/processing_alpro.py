"""`AlproProcessor`: videos and texts to the inputs of the ALPRO models."""

from typing import Any

from transformers.processing_utils import ProcessorMixin, TextKwargs, VideosKwargs

# Tokenizers without a limit of their own carry a number of this order instead of one.
NO_LENGTH_LIMIT = 10**9


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

    text_kwargs: TextKwargs = {  # noqa: RUF012 (the library's way)
        "padding": True,
        "truncation": True,
        "return_token_type_ids": False,
        "return_tensors": "pt",
    }
    videos_kwargs: VideosKwargs = {"return_tensors": "pt"}  # noqa: RUF012

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

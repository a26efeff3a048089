"""`AlproProcessor`: turns videos and texts into the inputs of the ALPRO models."""

from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, TextKwargs

from .video_processing_alpro import AlproVideoProcessor

# A tokenizer without a maximum length has a huge number in its place (transformers' VERY_LARGE_INTEGER, 1e30).
NO_LENGTH_LIMIT = 10**9

_TEXT_KWARGS: TextKwargs = {
    "padding": True,
    "truncation": True,
    "return_token_type_ids": False,
    "return_tensors": "pt",
}


class AlproProcessorKwargs(ProcessingKwargs, total=False):
    """Arguments of a call of `AlproProcessor`: those of the tokenizer and those of `AlproVideoProcessor`."""

    # The library finds this class by its name. Version 5.20 reads the defaults here; later ones read the class
    # attributes of the processor. The video processor has its own defaults, `return_tensors="pt"` among them.
    _defaults = {"text_kwargs": _TEXT_KWARGS}  # type: ignore[misc]  # noqa: RUF012


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
    valid_processor_kwargs = AlproProcessorKwargs

    def __init__(self, video_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(video_processor, tokenizer, **kwargs)
        if tokenizer.model_max_length > NO_LENGTH_LIMIT:
            raise ValueError(
                "The tokenizer of an AlproProcessor needs a maximum length, because longer texts than the model reads "
                "must be truncated: set tokenizer.model_max_length to config.text_config.max_position_embeddings."
            )

    @classmethod
    def from_image_text_pretrained(cls, source: str, max_length: int = 35, **video_kwargs: Any) -> "AlproProcessor":
        """Build the processor of a model that starts from BLIP, see `AlproModel.from_image_text_pretrained`.

        Size, filter, mean and standard deviation are those of the checkpoint's image processor. The tokenizer is that
        of the checkpoint; a text starts with `[CLS]`, as BLIP's text encoder expects without an image.

        Args:
            source: Folder or Hub id of a BLIP checkpoint with its image processor and tokenizer.
            max_length: Longest text in tokens; BLIP was fine-tuned for retrieval on texts of at most 35.
            video_kwargs: Attributes of `AlproVideoProcessor`, such as `num_frames=4` or
                `size={"height": 224, "width": 224}`.
        """
        images = AutoImageProcessor.from_pretrained(source)
        copied = ("size", "resample", "image_mean", "image_std", "rescale_factor")
        settings: dict[str, Any] = {name: getattr(images, name) for name in copied}
        settings["size"] = dict(settings["size"])
        tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=max_length)
        return cls(AlproVideoProcessor(**(settings | video_kwargs)), tokenizer)

    @property
    def unused_input_names(self) -> list[str]:
        return ["token_type_ids"]

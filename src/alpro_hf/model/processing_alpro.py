"""`AlproProcessor`: turns videos and texts into the inputs of the ALPRO models."""

import os
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, TextKwargs
from transformers.utils import logging

from .decoding_formats import VIDEO_EXTENSIONS, has_video_extension, is_video_file
from .video_processing_alpro import AlproVideoProcessor

logger = logging.get_logger(__name__)

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
        ValueError: The tokenizer has no maximum length. In a call: a text is blank, or is the name of a video file.
        TypeError: In a call: an argument is neither `text` nor `videos`, or a text is not a string.
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

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> BatchFeature:
        """See the class. The order of the arguments is that of transformers; pass them by name.

        Args:
            images: Not taken; here so that a text or video without a name is not lost.
            text: A text or a list of texts.
            videos: A video or a list of videos, see `AlproVideoProcessor`.
            kwargs: Arguments of the tokenizer and of the video processor.
        """
        # the library calls with audio=None, too
        unknown = {"images": images, "audio": kwargs.pop("audio", None)}
        for name, value in unknown.items():
            if value is not None:
                raise TypeError(
                    f"AlproProcessor takes text=... and videos=..., by name, and no {name}; received "
                    f"{type(value).__name__} {str(value)[:60]!r}. A single image is a video of one frame."
                )
        if text is not None:
            check_texts(text)
        return super().__call__(text=text, videos=videos, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> "AlproProcessor":
        """Load a processor as the library does, but never ask whether code of the folder may run.

        The library loads both parts by their Auto classes, which ask on the terminal unless `trust_remote_code` is
        passed. Here its default is False.

        Raises:
            OSError: A part of the processor needs code of the folder, and `trust_remote_code=True` was not passed.
        """
        if kwargs.get("trust_remote_code") is None:
            kwargs["trust_remote_code"] = False
        try:
            loaded: AlproProcessor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            return loaded
        except ValueError as error:
            if kwargs["trust_remote_code"] or "trust_remote_code" not in str(error):  # the library has no class for it
                raise
            raise OSError(
                f"The processor of {pretrained_model_name_or_path} names classes that come as code with it, of which "
                "nothing was run. An ALPRO model does not need that code: save its AlproProcessor there with "
                "save_pretrained, or name another model."
            ) from error

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
        images = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        copied = ("size", "resample", "image_mean", "image_std", "rescale_factor")
        settings: dict[str, Any] = {name: getattr(images, name) for name in copied}
        settings["size"] = dict(settings["size"])
        tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=max_length, trust_remote_code=False)
        return cls(AlproVideoProcessor(**(settings | video_kwargs)), tokenizer)

    @property
    def unused_input_names(self) -> list[str]:
        return ["token_type_ids"]


def check_texts(text: Any) -> None:
    """Refuse texts that would give a vector without meaning, and warn of a text that looks like a video.

    Args:
        text: A text or a list of texts. Texts that are split into words already are not looked at.

    Raises:
        TypeError: A text is not a string.
        ValueError: A text is blank, or there is a video file of that name.
    """
    alone = not isinstance(text, list | tuple)
    for row, item in enumerate([text] if alone else text):
        field = "text" if alone else f"text[{row}]"
        if isinstance(item, list | tuple):
            continue
        if not isinstance(item, str):
            raise TypeError(f"{field} is {item!r:.60}, not a string. Fill it in, or leave out the row.")
        if not item.strip():
            raise ValueError(f"{field} is empty ({item!r}). Fill it in, or leave out the row.")
        extension = os.path.splitext(item)[1]
        if not 1 < len(extension) <= _LONGEST_EXTENSION:
            continue
        if os.path.isfile(item):
            if is_video_file(item):
                raise ValueError(
                    f"{field}={item!r} is a video file, and would be encoded as words. Pass it as videos=..., or as "
                    "{'video': path} to sentence-transformers."
                )
        elif has_video_extension(item):
            logger.warning(
                "%s=%r ends like a video, and there is no such file: it is encoded as words. Check the path.",
                field,
                item,
            )


_LONGEST_EXTENSION = max(map(len, VIDEO_EXTENSIONS))

"""ALPRO for the Hugging Face stack: search and ask videos in plain language (arXiv 2112.09583).

Importing the package registers its classes with transformers. Then `AutoModel.from_pretrained` and
`AutoProcessor.from_pretrained` load checkpoints of the type `alpro`, and `pipeline` knows the tasks
`video-question-answering` and `text-video-retrieval`.

Public names are imported when they are first used, so that `import alpro_hf` loads no trainer and no `datasets`.
"""

import sys
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .assets import bundled_model
    from .data.augmentation import AlproAugmentation
    from .data.collator import AlproCollator
    from .data.mixed_rows import MixedRows
    from .data.pretraining_collator import AlproPreTrainingCollator
    from .hub.convert import convert_original_checkpoint
    from .inference.video_index import VideoIndex
    from .model.configuration_alpro import AlproConfig, AlproTextConfig, AlproVideoConfig
    from .model.decoding_types import VideoDecodeError
    from .model.modeling_alpro import (
        AlproForVideoQuestionAnswering,
        AlproForVideoTextRetrieval,
        AlproModel,
        AlproPreTrainedModel,
        AlproTextModel,
        AlproVideoModel,
    )
    from .model.pipeline_alpro import TextVideoRetrievalPipeline, VideoQuestionAnsweringPipeline
    from .model.pretraining_alpro import AlproForPreTraining, AlproPrompterModel
    from .model.processing_alpro import AlproProcessor
    from .model.video_processing_alpro import AlproVideoProcessor
    from .training.arguments import AlproTrainingArguments
    from .training.prompter import build_prompter
    from .training.trainer import AlproTrainer

# public name -> the module that defines it
_MODULES = {
    "AlproAugmentation": "data.augmentation",
    "AlproCollator": "data.collator",
    "AlproConfig": "model.configuration_alpro",
    "AlproForPreTraining": "model.pretraining_alpro",
    "AlproForVideoQuestionAnswering": "model.modeling_alpro",
    "AlproForVideoTextRetrieval": "model.modeling_alpro",
    "AlproModel": "model.modeling_alpro",
    "AlproPreTrainedModel": "model.modeling_alpro",
    "AlproPreTrainingCollator": "data.pretraining_collator",
    "AlproProcessor": "model.processing_alpro",
    "AlproPrompterModel": "model.pretraining_alpro",
    "AlproTextConfig": "model.configuration_alpro",
    "AlproTextModel": "model.modeling_alpro",
    "AlproTrainer": "training.trainer",
    "AlproTrainingArguments": "training.arguments",
    "AlproVideoConfig": "model.configuration_alpro",
    "AlproVideoModel": "model.modeling_alpro",
    "AlproVideoProcessor": "model.video_processing_alpro",
    "MixedRows": "data.mixed_rows",
    "TextVideoRetrievalPipeline": "model.pipeline_alpro",
    "VideoDecodeError": "model.decoding_types",
    "VideoIndex": "inference.video_index",
    "VideoQuestionAnsweringPipeline": "model.pipeline_alpro",
    "build_prompter": "training.prompter",
    "bundled_model": "assets",
    "convert_original_checkpoint": "hub.convert",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value  # found there from now on, without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


# Registration needs the model classes, and they need torch. The script `alpro` and `python -m alpro_hf` print help
# without them: there `alpro_hf.cli.main` registers before a command runs. See alpro_hf_launch, which is asked here
# without importing it. While Python looks for the module of `-m`, `sys.argv[0]` is "-m"; in `sys.orig_argv` its name
# follows the option, or is joined to it.
_launch = sys.modules.get("alpro_hf_launch")
_is_command = sys.argv[:1] == ["-m"] and (
    f"-m{__name__}" in sys.orig_argv or ("-m", __name__) in pairwise(sys.orig_argv)
)
if not (_is_command or (_launch is not None and _launch.registers_later)):
    from . import registration as registration

__all__ = [
    "AlproAugmentation",
    "AlproCollator",
    "AlproConfig",
    "AlproForPreTraining",
    "AlproForVideoQuestionAnswering",
    "AlproForVideoTextRetrieval",
    "AlproModel",
    "AlproPreTrainedModel",
    "AlproPreTrainingCollator",
    "AlproProcessor",
    "AlproPrompterModel",
    "AlproTextConfig",
    "AlproTextModel",
    "AlproTrainer",
    "AlproTrainingArguments",
    "AlproVideoConfig",
    "AlproVideoModel",
    "AlproVideoProcessor",
    "MixedRows",
    "TextVideoRetrievalPipeline",
    "VideoDecodeError",
    "VideoIndex",
    "VideoQuestionAnsweringPipeline",
    "build_prompter",
    "bundled_model",
    "convert_original_checkpoint",
]

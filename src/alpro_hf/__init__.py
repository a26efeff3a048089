"""ALPRO for the Hugging Face stack: search and ask videos in plain language (arXiv 2112.09583).

Importing the package registers its classes, so that `AutoModel.from_pretrained` and `AutoProcessor.from_pretrained`
know checkpoints of the type `alpro`, and `pipeline` the tasks `video-question-answering` and `text-video-retrieval`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    AutoTokenizer,
    BertTokenizer,
)
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_alpro import AlproConfig, AlproTextConfig, AlproVideoConfig
from .decoding import VideoDecodeError
from .modeling_alpro import (
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproPreTrainedModel,
    AlproTextModel,
    AlproVideoModel,
)
from .pipeline_alpro import TextVideoRetrievalPipeline, VideoQuestionAnsweringPipeline
from .pretraining_alpro import AlproForPreTraining, AlproPrompterModel
from .processing_alpro import AlproProcessor
from .video_processing_alpro import AlproVideoProcessor

if TYPE_CHECKING:
    from .assets import bundled_model
    from .convert import convert_original_checkpoint
    from .data.augmentation import AlproAugmentation
    from .data.collator import AlproCollator
    from .data.pretraining import AlproPreTrainingCollator
    from .data.sources import MixedRows
    from .entities import build_prompter
    from .retrieval import VideoIndex
    from .trainer import AlproTrainer, AlproTrainingArguments

__version__ = "0.1.0"

# Needed by some programs only, and slower to import than all the rest.
_LAZY = {
    "AlproAugmentation": ".data.augmentation",
    "AlproCollator": ".data.collator",
    "AlproPreTrainingCollator": ".data.pretraining",
    "AlproTrainer": ".trainer",
    "AlproTrainingArguments": ".trainer",
    "MixedRows": ".data.sources",
    "VideoIndex": ".retrieval",
    "build_prompter": ".entities",
    "bundled_model": ".assets",
    "convert_original_checkpoint": ".convert",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _register() -> None:
    for config, model in (
        (AlproConfig, AlproModel),
        (AlproTextConfig, AlproTextModel),
        (AlproVideoConfig, AlproVideoModel),
    ):
        AutoConfig.register(config.model_type, config)
        AutoModel.register(config, model)
    AutoModelForPreTraining.register(AlproConfig, AlproForPreTraining)
    # the library's only Auto class for "do these two belong together"
    AutoModelForNextSentencePrediction.register(AlproConfig, AlproForVideoTextRetrieval)
    AutoModelForVisualQuestionAnswering.register(AlproConfig, AlproForVideoQuestionAnswering)
    AutoVideoProcessor.register(AlproConfig, AlproVideoProcessor)
    AutoProcessor.register(AlproConfig, AlproProcessor)
    AutoTokenizer.register(AlproConfig, BertTokenizer)
    for task, pipeline, auto_model in (
        ("video-question-answering", VideoQuestionAnsweringPipeline, AutoModelForVisualQuestionAnswering),
        ("text-video-retrieval", TextVideoRetrievalPipeline, AutoModelForNextSentencePrediction),
    ):
        PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=pipeline, pt_model=auto_model, type="multimodal")


_register()

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

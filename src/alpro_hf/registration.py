"""Registers our classes with the Auto classes and pipelines of transformers when this module is imported.

Python imports a module once, so nothing is registered twice.
"""

import os
from pathlib import Path
from typing import Any

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

from .model.configuration_alpro import AlproConfig, AlproTextConfig, AlproVideoConfig
from .model.modeling_alpro import (
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproTextModel,
    AlproVideoModel,
)
from .model.pipeline_alpro import TextVideoRetrievalPipeline, VideoQuestionAnsweringPipeline
from .model.pretraining_alpro import AlproForPreTraining
from .model.processing_alpro import AlproProcessor
from .model.video_processing_alpro import AlproVideoProcessor

for _config, _model in (
    (AlproConfig, AlproModel),
    (AlproTextConfig, AlproTextModel),
    (AlproVideoConfig, AlproVideoModel),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
AutoModelForPreTraining.register(AlproConfig, AlproForPreTraining)
# transformers has no Auto class for matching. Next sentence prediction answers the same question: do two inputs belong
# together?
AutoModelForNextSentencePrediction.register(AlproConfig, AlproForVideoTextRetrieval)
AutoModelForVisualQuestionAnswering.register(AlproConfig, AlproForVideoQuestionAnswering)
AutoVideoProcessor.register(AlproConfig, AlproVideoProcessor)
AutoProcessor.register(AlproConfig, AlproProcessor)
AutoTokenizer.register(AlproConfig, BertTokenizer)
# Without a model, `pipeline(task)` takes the bundled one, as the commands do, and the library warns that it does. Its
# folder is not looked at here, nor `assets` imported, because the package must import without them.
for _task, _pipeline, _auto_model, _bundled in (
    ("video-question-answering", VideoQuestionAnsweringPipeline, AutoModelForVisualQuestionAnswering, "sprites-qa"),
    ("text-video-retrieval", TextVideoRetrievalPipeline, AutoModelForNextSentencePrediction, "sprites-retrieval"),
):
    PIPELINE_REGISTRY.register_pipeline(
        _task,
        pipeline_class=_pipeline,
        pt_model=_auto_model,
        default={"model": (str(Path(__file__).parent / "assets" / _bundled), None)},  # a folder has no revision
        type="multimodal",
    )


def _open_index(folder: str | os.PathLike[str], model: Any, processor: Any) -> Any:
    from .inference.video_index import VideoIndex  # only imported by those who pass a folder

    return VideoIndex.load(folder, model, processor)


# the module of the pipelines travels with checkpoints and knows nothing of indexes
TextVideoRetrievalPipeline.open_index = _open_index
